//! Baselines that the flow is compared with on the same rows: models of token ids instead of latents.
//!
//! * [`TokenObjective`]: a training loss over a [`TokenBatch`]; [`NextToken`] is that of autoregressive models,
//!   [`MaskedDiffusion`] that of masked diffusion.
//! * [`AncestralSampler`]: the sampler of masked diffusion.

mod ancestral;
mod batch;
mod masked_diffusion;
mod next_token;

pub use ancestral::{AncestralSampler, MaskedRequest, MaskedSample};
pub use batch::TokenBatch;
pub use masked_diffusion::MaskedDiffusion;
pub use next_token::NextToken;

use elf_core::{Dropout, Noise, TokenNetwork};

use crate::{Loss, Result};

/// The name under which both objectives report the cost of a text in nats per token, up to and including its first EOS.
pub const NLL: &str = "nll";

/// A training loss over token ids. All randomness comes from `noise`, so equal draws give equal losses.
pub trait TokenObjective {
    /// The loss of one batch, with dropout if the network has any and `noise` allows it.
    ///
    /// # Errors
    /// If tensors do not fit together, or the network or the noise fails.
    fn loss(&self, net: &dyn TokenNetwork, batch: &TokenBatch, noise: &mut dyn Noise) -> Result<Loss>;
}

/// Dropout for one pass over rows of the shape `[B, S]`, if the network uses any.
fn dropout(net: &dyn TokenNetwork, (b, s): (i64, i64), noise: &mut dyn Noise) -> Result<Option<Dropout>> {
    match net.stochastic() {
        true => Ok(Dropout::draw(noise, b as usize, s)?),
        false => Ok(None),
    }
}
