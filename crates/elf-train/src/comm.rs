//! What data parallelism needs of the processes of a run.

use tch::Tensor;

use crate::Result;

/// Sums over the processes (ranks) of a run. Every rank makes the same calls in the same order.
///
/// Training calls these without asking how many ranks there are: one process is the case in which a sum has one summand.
pub trait Comm {
    /// This process's number, from 0.
    fn rank(&self) -> u64;

    /// How many processes there are.
    fn world(&self) -> u64;

    /// Replaces each tensor, in place, by its sum over all ranks. Shapes are equal on all ranks.
    ///
    /// # Errors
    /// If a rank is gone.
    fn sum_tensors(&self, tensors: &mut [Tensor]) -> Result<()>;

    /// Replaces each number on the host by its sum over all ranks.
    ///
    /// # Errors
    /// If a rank is gone.
    fn sum_numbers(&self, numbers: &mut [f64]) -> Result<()>;
}

/// One process alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct Solo;

impl Comm for Solo {
    fn rank(&self) -> u64 {
        0
    }

    fn world(&self) -> u64 {
        1
    }

    fn sum_tensors(&self, _: &mut [Tensor]) -> Result<()> {
        Ok(())
    }

    fn sum_numbers(&self, _: &mut [f64]) -> Result<()> {
        Ok(())
    }
}
