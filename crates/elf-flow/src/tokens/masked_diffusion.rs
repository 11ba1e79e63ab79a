//! The loss of masked diffusion.

use elf_core::device::upload;
use elf_core::{Noise, TokenNetwork};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{NLL, TokenBatch, TokenObjective, dropout};
use crate::{Error, Loss, LossTerm, Result};

/// Masked diffusion language modelling (MDLM; Sahoo et al. 2024, arXiv 2406.07524): at time t each token of a text is hidden with
/// probability t (`alpha_t = 1 - t`, the log-linear schedule), and the network predicts the hidden ones.
///
/// Their SUBS parameterisation holds by construction: the mask symbol is no entry of the vocabulary, so it has probability 0;
/// visible tokens are known, so they carry no loss. The negative evidence lower bound is then a
/// cross-entropy at the hidden positions with weight 1/t. Conditions are never hidden; filling is learned like any text.
///
/// The loss is the bound in nats per learned position; its part `nll` is the same bound over the tokens of the texts, the
/// first EOS of each included. It includes the cost of the filling, so it is an upper bound of the `nll` of an autoregressive model.
///
/// Draws: `mask_time` (host; one per row, spread evenly over a global micro-batch, where the authors' code spreads it over that of a
/// rank, and so that a row's draw does not depend on how rows are batched), `mask` `[B, S]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskedDiffusion {
    /// The smallest time, which bounds the weight.
    pub t_min: f64,
}

impl Default for MaskedDiffusion {
    /// The value of the authors' code.
    fn default() -> Self {
        Self { t_min: 1e-3 }
    }
}

impl MaskedDiffusion {
    /// Checks the setting.
    ///
    /// # Errors
    /// If the smallest time is not in (0, 1).
    pub fn check(&self) -> Result<()> {
        match self.t_min > 0.0 && self.t_min < 1.0 {
            true => Ok(()),
            false => Err(Error::setting("t_min", format!("{} is not between 0 and 1", self.t_min))),
        }
    }

    /// Times from [`MaskedDiffusion::t_min`] to 1, from numbers in [0, 1).
    fn times(&self, numbers: &[f64]) -> Vec<f64> {
        numbers.iter().map(|u| self.t_min + (1.0 - self.t_min) * u).collect()
    }
}

impl TokenObjective for MaskedDiffusion {
    fn loss(&self, net: &dyn TokenNetwork, batch: &TokenBatch, noise: &mut dyn Noise) -> Result<Loss> {
        let (b, s) = batch.sizes()?;
        let mask_id = mask_id(net)?;
        let device = net.device();
        let times = self.times(&noise.spread("mask_time", b as usize)?);
        let t = Tensor::f_from_slice(&times)?.f_to_kind(Kind::Float)?.f_view([b, 1])?;
        let starts = Tensor::f_from_slice(&batch.starts)?.f_view([b, 1])?;
        let learned = Tensor::f_arange(s, (Kind::Int64, batch.ids.device()))?.f_view([1, s])?.f_ge_tensor(&starts)?;
        let draws = noise.uniform("mask", &[b, s])?.f_to_device(batch.ids.device())?;
        let hidden_here = draws.f_lt_tensor(&t)?.f_logical_and(&learned)?;
        let places = hidden_here.f_reshape([-1])?.f_nonzero()?.f_reshape([-1])?;
        let sum = match places.numel() {
            0 => Tensor::f_zeros([], (Kind::Float, device))?,
            _ => {
                let seen = batch.ids.f_masked_fill(&hidden_here, mask_id)?;
                let hidden = net.hidden(&seen, dropout(net, (b, s), noise)?.as_ref())?;
                let targets = batch.ids.f_reshape([-1])?.f_index_select(0, &places)?;
                let weights = t.f_reciprocal()?.f_expand([b, s], false)?.f_reshape([-1])?.f_index_select(0, &places)?;
                let hidden = hidden.f_flatten(0, 1)?.f_index_select(0, &upload(&places, device)?)?;
                net.cross_entropy_sum(&hidden, &upload(&targets, device)?, Some(&upload(&weights, device)?))?
            }
        };
        let count = (b * s - batch.starts.iter().sum::<i64>()) as f64;
        let terms = vec![LossTerm { name: NLL, sum: sum.f_detach()?, count: batch.text_tokens() as f64 }];
        Ok(Loss { sum, count, terms, by_time: Vec::new() })
    }
}

/// The id of the mask symbol.
pub(super) fn mask_id(net: &dyn TokenNetwork) -> Result<i64> {
    net.mask_id().ok_or_else(|| Error::setting("network", "masked diffusion needs one with a symbol that hides a word"))
}
