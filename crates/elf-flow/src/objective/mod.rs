//! Training losses as functions of a network, a batch, and explicit draws.

mod distillation;
mod elf_loss;
mod elf_objective;
mod own_estimates;
mod own_runs;
mod rows;
mod teacher;
mod time_bins;

pub use distillation::{DistillObjective, DistillStep, Targets};
pub use elf_objective::{ElfObjective, OwnEstimates};
pub use own_runs::OwnRuns;
pub use teacher::{TeacherStart, teacher_target};
pub use time_bins::TimeBins;

use elf_core::{Network, Noise};
use tch::Tensor;

use crate::{LatentBatch, Result};

/// A named part of a loss, for logs.
#[derive(Debug)]
pub struct LossTerm {
    /// The part's name: `l2`, `ce`, ...
    pub name: &'static str,
    /// Its sum over the positions that it counts, without gradient; a scalar on the network's device.
    pub sum: Tensor,
    /// The number of those positions.
    pub count: f64,
}

/// A loss before normalisation, so that batches, accumulation steps and ranks can be added up correctly.
#[derive(Debug)]
pub struct Loss {
    /// The sum to differentiate; a scalar.
    pub sum: Tensor,
    /// The number to divide the sum by (over all parts of a global batch, at least 1).
    pub count: f64,
    /// Named parts.
    pub terms: Vec<LossTerm>,
    /// Parts by time, for objectives whose rows have one.
    pub by_time: Vec<TimeBins>,
}

impl Loss {
    /// The loss of this batch alone.
    pub fn mean(&self) -> Tensor {
        &self.sum / self.count.max(1.0)
    }
}

/// A training loss. All randomness comes from `noise`, so equal draws give equal losses.
pub trait Objective {
    /// The loss of one batch.
    ///
    /// # Errors
    /// If tensors do not fit together, or the network or the noise fails.
    fn loss(&self, net: &dyn Network, batch: &LatentBatch, noise: &mut dyn Noise) -> Result<Loss>;
}
