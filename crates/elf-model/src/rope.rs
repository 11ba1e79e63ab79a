//! Rotary position embedding over adjacent pairs of channels.

use elf_core::Result;
use elf_core::device::upload;
use tch::{Device, Kind, Tensor};

/// Angles for a sequence of `prefix` tokens that are not rotated and `text` tokens at positions 0, 1, 2, ...
///
/// Channels 2i and 2i + 1 form a pair that turns by `position * 10000^(-2i / head_dim)`.
#[derive(Debug)]
pub struct Rope {
    /// Cosines, `[prefix + text, head_dim / 2]`.
    cos: Tensor,
    /// Sines, of the same shape.
    sin: Tensor,
}

const THETA: f64 = 10_000.0;

impl Rope {
    /// Angles for one sequence length.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn new(prefix: i64, text: i64, head_dim: i64, device: Device) -> Result<Self> {
        Self::at(prefix, &Tensor::f_arange(text, (Kind::Double, Device::Cpu))?, head_dim, device)
    }

    /// Angles for `prefix` tokens that are not rotated and others at `positions` `[N]`.
    ///
    /// # Errors
    /// If libtorch fails.
    pub(crate) fn at(prefix: i64, positions: &Tensor, head_dim: i64, device: Device) -> Result<Self> {
        let wide = (Kind::Double, Device::Cpu);
        let speeds = (Tensor::f_arange(head_dim / 2, wide)? * (-2.0 / head_dim as f64 * THETA.ln())).exp();
        let angles = Tensor::f_cat(
            &[Tensor::f_zeros([prefix, head_dim / 2], wide)?, positions.f_to_kind(Kind::Double)?.f_outer(&speeds)?],
            0,
        )?;
        let angles = upload(&angles.to_kind(Kind::Float), device)?;
        Ok(Self { cos: angles.f_cos()?, sin: angles.f_sin()? })
    }

    /// Angles of rows that are at positions of their own: for each row `prefix` tokens that are not rotated and `text` tokens from
    /// its position in `firsts` on, row after row.
    ///
    /// # Errors
    /// If libtorch fails.
    pub(crate) fn of_rows(prefix: i64, firsts: &[i64], text: i64, head_dim: i64, device: Device) -> Result<Self> {
        let row = |&first: &i64| std::iter::repeat_n(0, prefix as usize).chain(first..first + text);
        let positions: Vec<i64> = firsts.iter().flat_map(row).collect();
        Self::at(0, &Tensor::f_from_slice(&positions)?, head_dim, device)
    }

    /// These angles at `places` `[N]`, i64, on their device, each a place among [`Rope::len`] positions.
    ///
    /// # Errors
    /// If libtorch fails.
    pub(crate) fn picked(&self, places: &Tensor) -> Result<Self> {
        Ok(Self { cos: self.cos.f_index_select(0, places)?, sin: self.sin.f_index_select(0, places)? })
    }

    /// The angles of `n` rows from `first` on, of `rows` rows with angles of their own.
    ///
    /// # Errors
    /// If libtorch fails.
    pub(crate) fn of_some(&self, rows: i64, first: i64, n: i64) -> Result<Self> {
        let each = self.len() / rows;
        let some = |x: &Tensor| x.f_narrow(0, each * first, each * n);
        Ok(Self { cos: some(&self.cos)?, sin: some(&self.sin)? })
    }

    /// Another handle of the same angles.
    pub(crate) fn shallow_clone(&self) -> Self {
        Self { cos: self.cos.shallow_clone(), sin: self.sin.shallow_clone() }
    }

    /// Positions, prefix included.
    pub fn len(&self) -> i64 {
        self.cos.size()[0]
    }

    /// Whether there are no positions.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Cosines, `[prefix + text, head_dim / 2]`, fp32.
    pub fn cos(&self) -> &Tensor {
        &self.cos
    }

    /// Sines, of the same shape and kind.
    pub fn sin(&self) -> &Tensor {
        &self.sin
    }

    /// `(cos, sin)` as tables `[prefix + text, head_dim]`, with each angle at both channels of its pair.
    pub fn tables(&self) -> (Tensor, Tensor) {
        let both = |x: &Tensor| x.repeat_interleave_self_int(2, 1, None);
        (both(&self.cos), both(&self.sin))
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
        let v = &v / v.square().mean_dim(-1, true, Kind::Float).sqrt();
        let one = Tensor::ones([8], (Kind::Float, Device::Cpu));
        let how = elf_kernels::Heads {
            q_weight: &one,
            k_weight: &one,
            cos: rope.cos(),
            sin: rope.sin(),
            eps: 0.0,
            q_scale: 1.0,
        };
        let qkv = Tensor::cat(&[&v, &v.narrow(0, 0, 1)], 0).view([1, 1, 3, 1, 8]).expand([1, 12, 3, 1, 8], false);
        let turned = elf_kernels::heads(&qkv, &how).unwrap();
        let (q, k) = (turned.q.squeeze_dim(0), turned.k.squeeze_dim(0));
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
