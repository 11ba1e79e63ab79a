//! Rotary position embedding over adjacent pairs of channels.

use elf_core::Result;
use tch::{Device, Kind, Tensor};

/// Angles for a sequence of `prefix` tokens that are not rotated and `text` tokens at positions 0, 1, 2, ...
///
/// Channels 2i and 2i + 1 form a pair that turns by `position * 10000^(-2i / head_dim)`.
#[derive(Debug)]
pub struct Rope {
    /// `[prefix + text, head_dim / 2]`.
    angles: Tensor,
    /// cos + i sin of them, complex, `[prefix + text, 1, head_dim / 2]`.
    turns: Tensor,
}

const THETA: f64 = 10_000.0;

impl Rope {
    /// Angles for one sequence length.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn new(prefix: i64, text: i64, head_dim: i64, device: Device) -> Result<Self> {
        let wide = (Kind::Double, Device::Cpu);
        let speeds = (Tensor::f_arange(head_dim / 2, wide)? * (-2.0 / head_dim as f64 * THETA.ln())).exp();
        let positions = Tensor::f_arange(text, wide)?;
        let angles = Tensor::f_cat(&[Tensor::f_zeros([prefix, head_dim / 2], wide)?, positions.f_outer(&speeds)?], 0)?;
        let angles = angles.to_kind(Kind::Float).f_to_device(device)?;
        let turns = Tensor::f_complex(&angles.cos(), &angles.sin())?.f_unsqueeze(1)?;
        Ok(Self { angles, turns })
    }

    /// Another handle on the same angles.
    pub(crate) fn shallow_clone(&self) -> Self {
        Self { angles: self.angles.shallow_clone(), turns: self.turns.shallow_clone() }
    }

    /// Positions, prefix included.
    pub fn len(&self) -> i64 {
        self.angles.size()[0]
    }

    /// Whether there are no positions.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Turns `x` `[.., prefix + text, heads, head_dim]`, fp32; the same shape comes back.
    pub fn rotate(&self, x: &Tensor) -> Tensor {
        let shape = x.size();
        let pairs: Vec<i64> = [&shape[..shape.len() - 1], &[shape[shape.len() - 1] / 2, 2]].concat();
        // As complex numbers a rotation is one product, forwards and backwards.
        (x.view(&pairs[..]).view_as_complex() * &self.turns).view_as_real().view(&shape[..])
    }

    /// `(cos, sin)` as tables `[prefix + text, head_dim]`, each angle standing at both channels of its pair.
    pub fn tables(&self) -> (Tensor, Tensor) {
        let both = self.angles.repeat_interleave_self_int(2, 1, None);
        (both.cos(), both.sin())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scores of rotated vectors depend on the distance of their positions only.
    #[test]
    fn rotation_is_relative_and_keeps_lengths() {
        let rope = Rope::new(2, 10, 8, Device::Cpu).unwrap();
        let v = Tensor::arange(16, (Kind::Float, Device::Cpu)).view([2, 8]).sin();
        let at = |row: i64| rope.rotate(&v.get(row).view([1, 1, 8]).expand([12, 1, 8], false).contiguous());
        let (q, k) = (at(0).squeeze_dim(1), at(1).squeeze_dim(1));
        let score = |i: i64, j: i64| (q.get(i) * k.get(j)).sum(Kind::Float).double_value(&[]);
        assert!((score(4, 2) - score(9, 7)).abs() < 1e-5);
        assert!((score(2, 5) - score(6, 9)).abs() < 1e-5);
        assert!(
            (score(0, 1) - (v.get(0) * v.get(1)).sum(Kind::Float).double_value(&[])).abs() < 1e-6,
            "prefix is not turned"
        );
        let lengths = q.square().sum_dim_intlist(-1, false, Kind::Float);
        assert!((lengths - v.get(0).square().sum(Kind::Float)).abs().max().double_value(&[]) < 1e-5);
    }
}
