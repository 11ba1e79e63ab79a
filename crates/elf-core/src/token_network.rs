//! The interface of networks that read token ids, the counterpart of [`Network`](crate::Network).

use tch::{Device, Tensor};

use crate::{Dropout, ParamSet, Result};

/// A network from token ids to hidden states, and from these to logits of the tokens at, or after, each position.
///
/// The trunk runs on whole rows, the vocabulary head on selected positions.
pub trait TokenNetwork {
    /// V, number of entries of the head's vocabulary.
    fn vocab_size(&self) -> i64;

    /// The id of the mask symbol, which lies beyond the vocabulary, so that it cannot be predicted; `None` for networks
    /// without one.
    fn mask_id(&self) -> Option<i64> {
        None
    }

    /// The parameters' device.
    fn device(&self) -> Device;

    /// Whether two passes over the same rows can differ (dropout in training).
    fn stochastic(&self) -> bool;

    /// The parameters by name.
    fn params(&self) -> &ParamSet;

    /// Hidden states `[B, S, H]` on the network's device, in fp32 or bf16, of ids `[B, S]` (int64, on the CPU). `None`
    /// switches dropout off.
    ///
    /// # Errors
    /// If an id or a length is out of the network's range, or libtorch fails.
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

/// The least or greatest of `ids` (int64, any shape), if a table of `size` rows has no row for it.
///
/// Call this before ids are looked up: an id out of range aborts a GPU's context, and some CPU paths do not notice it.
/// Takes microseconds for ids on the CPU; waits for the device for ids on a GPU.
///
/// # Errors
/// If libtorch fails.
pub fn id_outside(ids: &Tensor, size: i64) -> Result<Option<i64>> {
    if ids.numel() == 0 {
        return Ok(None);
    }
    let (least, greatest) = ids.f_aminmax(None::<i64>, false)?;
    let ends = Vec::<i64>::try_from(Tensor::f_stack(&[least, greatest], 0)?)?;
    Ok(ends.into_iter().find(|id| !(0..size).contains(id)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn an_id_outside_is_found_on_either_side() {
        let ids = |ids: &[i64]| Tensor::from_slice(ids).reshape([1, -1]);
        assert_eq!(id_outside(&ids(&[3, 0, 4]), 5).unwrap(), None);
        assert_eq!(id_outside(&ids(&[3, 5, 1]), 5).unwrap(), Some(5));
        assert_eq!(id_outside(&ids(&[3, -1, 7]), 5).unwrap(), Some(-1));
        assert_eq!(id_outside(&Tensor::zeros([2, 0], (Kind::Int64, Device::Cpu)), 0).unwrap(), None);
    }
}
