//! The latents of each token as one Gaussian class.

use tch::Tensor;

/// What the names of parameters begin with that a network keeps for guides made of [`TokenClasses`], and does not use itself.
pub const WORD_GUIDE: &str = "word_guide.";

/// A model of latents without context: those of token w are normal around a mean of its own, with variances that all
/// tokens share, along the principal axes of all latents.
#[derive(Debug)]
pub struct TokenClasses {
    /// The axes as columns, largest variance of all latents first: `[C, C]`, orthonormal.
    pub axes: Tensor,
    /// Each token's mean along the first K axes, `[V, K]`. Along the others the means are not told apart.
    pub means: Tensor,
    /// Variances along all axes, `[C]`: around the tokens' means along the first K, of all latents along the others.
    pub variances: Tensor,
    /// Log shares of the tokens, `[V]`.
    pub log_shares: Tensor,
}
