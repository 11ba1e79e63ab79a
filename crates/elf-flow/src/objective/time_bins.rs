//! Losses by the time of their rows, which show where on the path from noise to data a network errs.

use tch::{Kind, Tensor};

use crate::Result;

/// Sums of a part of a loss in ten equal bins of time, on the network's device and without gradient.
#[derive(Debug)]
pub struct TimeBins {
    /// The part's name, as in [`LossTerm`](super::LossTerm).
    pub name: &'static str,
    /// The loss in each bin, `[10]`.
    pub sums: Tensor,
    /// The number of positions in each bin, `[10]`.
    pub counts: Tensor,
}

impl TimeBins {
    /// The number of bins.
    pub const COUNT: usize = 10;

    /// From the times of N rows or positions, their losses and the numbers of positions that those sum, each `[N]` and fp32.
    ///
    /// # Errors
    /// If libtorch fails.
    pub(super) fn of(name: &'static str, times: &Tensor, losses: &Tensor, counts: &Tensor) -> Result<Self> {
        tch::no_grad(|| {
            let bins = Self::COUNT as i64;
            let bin = (times * bins as f64).f_clamp(0.0, (bins - 1) as f64)?.f_to_kind(Kind::Int64)?;
            let empty = Tensor::f_zeros([bins], (Kind::Float, losses.device()))?;
            let sum = |values: &Tensor| empty.f_index_add(0, &bin, &values.f_detach()?);
            Ok(Self { name, sums: sum(losses)?, counts: sum(counts)? })
        })
    }

    /// The name of a bin in logs: `l2@0.3` for times from 0.3 to 0.4.
    pub fn label(&self, bin: usize) -> String {
        format!("{}@{:.1}", self.name, bin as f64 / Self::COUNT as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_counts_in_its_bin_and_the_ends_in_the_outer_ones() {
        let of = |values: &[f32]| Tensor::from_slice(values);
        let times = of(&[0.0, 0.05, 0.31, 0.39, 0.95, 1.0]);
        let bins = TimeBins::of("l2", &times, &of(&[1.0, 2.0, 4.0, 8.0, 16.0, 32.0]), &of(&[1.0; 6])).unwrap();
        let read = |t: &Tensor| Vec::<f32>::try_from(t).unwrap();
        assert_eq!(read(&bins.sums), [3.0, 0.0, 0.0, 12.0, 0.0, 0.0, 0.0, 0.0, 0.0, 48.0]);
        assert_eq!(read(&bins.counts), [2.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0]);
        assert_eq!((bins.label(0), bins.label(3)), ("l2@0.0".to_owned(), "l2@0.3".to_owned()));
    }
}
