//! The loss of an autoregressive model.

use elf_core::device::upload;
use elf_core::{Noise, TokenNetwork};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{NLL, TokenBatch, TokenObjective, dropout};
use crate::{Loss, LossTerm, Result};

/// The loss of predicting each token of a text from all before it: the mean negative log-likelihood in nats over the texts' tokens, the
/// first EOS of each included, from which the model learns to stop. Conditions are read and not predicted; tokens after EOS are neither.
///
/// The network must be causal. It reads `bos ++ row` without the row's last token, so that a text without a condition has a
/// first input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NextToken {
    /// The token before each row; EOS in GPT-2, which ends one text and begins the next.
    pub bos: i64,
}

impl TokenObjective for NextToken {
    fn loss(&self, net: &dyn TokenNetwork, batch: &TokenBatch, noise: &mut dyn Noise) -> Result<Loss> {
        let (b, s) = batch.sizes()?;
        let device = net.device();
        // Positions after the longest text are left out: the network is causal, so they change nothing.
        let length = batch.ends.iter().copied().max().unwrap_or(0);
        let mut places = Vec::new();
        for (row, (&start, &end)) in (0..).zip(batch.starts.iter().zip(&batch.ends)) {
            places.extend((start..end).map(|i| row * length + i));
        }
        let count = places.len() as f64;
        let sum = match places.is_empty() {
            true => Tensor::f_zeros([], (Kind::Float, device))?,
            false => {
                let ids = batch.ids.f_narrow(1, 0, length)?;
                let bos = Tensor::f_full([b, 1], self.bos, (Kind::Int64, ids.device()))?;
                let input = Tensor::f_cat(&[&bos, &ids.f_narrow(1, 0, length - 1)?], 1)?;
                let hidden = net.hidden(&input, dropout(net, (b, s), noise)?.as_ref())?;
                let places = Tensor::f_from_slice(&places)?;
                let targets = upload(&ids.f_reshape([-1])?.f_index_select(0, &places)?, device)?;
                let hidden = hidden.f_flatten(0, 1)?.f_index_select(0, &upload(&places, device)?)?;
                net.cross_entropy_sum(&hidden, &targets, None)?
            }
        };
        let terms = vec![LossTerm { name: NLL, sum: sum.f_detach()?, count }];
        Ok(Loss { sum, count, terms, by_time: Vec::new() })
    }
}
