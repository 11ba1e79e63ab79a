//! What objectives and samplers over token ids need of a network: the counterpart of [`Network`](crate::Network) for models
//! that read words instead of latents.

use tch::{Device, Tensor};

use crate::{Dropout, ParamSet, Result};

/// A network from token ids to hidden states, and from those to the words that stand, or come next, there.
///
/// The trunk is run for whole rows, the vocabulary head for chosen positions only.
pub trait TokenNetwork {
    /// V, entries of the vocabulary that the head chooses among.
    fn vocab_size(&self) -> i64;

    /// The id of the symbol that hides a word, beyond the vocabulary, so that no prediction can name it; none for networks
    /// without such a symbol.
    fn mask_id(&self) -> Option<i64> {
        None
    }

    /// Where the parameters are.
    fn device(&self) -> Device;

    /// Whether two passes over the same rows can differ (dropout in training).
    fn stochastic(&self) -> bool;

    /// The parameters by name.
    fn params(&self) -> &ParamSet;

    /// Hidden states `[B, S, H]` on the network's device, in fp32 or bf16, of ids `[B, S]` (int64, on the CPU). `dropout`
    /// says which numbers are dropped; `None` switches dropout off.
    ///
    /// # Errors
    /// If an id or a length is none that the network knows, or libtorch fails.
    fn hidden(&self, ids: &Tensor, dropout: Option<&Dropout>) -> Result<Tensor>;

    /// Vocabulary logits: `[N, H]` to `[N, V]`, fp32. Memory grows with N times V.
    ///
    /// # Errors
    /// If libtorch fails.
    fn logits(&self, hidden: &Tensor) -> Result<Tensor>;

    /// The weighted sum of cross-entropies of `hidden` `[N, H]` against `ids` `[N]`, a differentiable fp32 scalar. `weights` `[N]`
    /// scales each position; `None` is 1 everywhere.
    ///
    /// # Errors
    /// If libtorch fails.
    fn cross_entropy_sum(&self, hidden: &Tensor, ids: &Tensor, weights: Option<&Tensor>) -> Result<Tensor>;
}
