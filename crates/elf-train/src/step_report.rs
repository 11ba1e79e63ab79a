//! The results of one optimiser step.

use std::time::Duration;

use elf_flow::TimeBins;
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use crate::{Error, Result, TermMean, TermSums};

/// The results of one micro-batch; tensors are scalars on the device, not yet read.
#[derive(Debug)]
pub struct MicroReport {
    /// The micro-batch's mean loss over all ranks.
    pub loss: Tensor,
    /// This rank's part of it.
    pub own_loss: Tensor,
    /// Name, sum and count of each part of the loss, of this rank's rows.
    pub terms: Vec<(&'static str, Tensor, f64)>,
    /// Parts of the loss by time, of this rank's rows.
    pub by_time: Vec<TimeBins>,
}

/// The time of a step by parts, measured on the host. On a GPU that is the time in which the work was queued, unless the trainer
/// waits between the parts; see [`Trainer::wait_between_parts`](crate::Trainer::wait_between_parts).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepTimes {
    /// Reading and encoding micro-batches.
    pub batches: Duration,
    /// Computing losses and gradients.
    pub gradients: Duration,
    /// Clipping, updating parameters and averages.
    pub update: Duration,
}

/// The results of one optimiser step, not yet read from the device: [`StepReport::read`] waits for it, once.
#[derive(Debug)]
pub struct StepReport {
    /// The step, counted from 0.
    pub step: u64,
    /// The learning rate.
    pub lr: f64,
    /// Gradient norm before clipping, over all ranks; a scalar on the device.
    pub grad_norm: Tensor,
    /// The micro-batches in order.
    pub micro: Vec<MicroReport>,
    /// Rows in this rank's micro-batches.
    pub rows: u64,
    /// Positions in them, padding included: the unit of throughput.
    pub positions: u64,
    /// The step's time by parts.
    pub times: StepTimes,
}

/// A [`StepReport`] as numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepMetrics {
    /// The step, counted from 0.
    pub step: u64,
    /// Mean over the micro-batches of their mean losses.
    pub loss: f64,
    /// Parts of the loss, each a mean over all positions of the step that it counts.
    pub terms: Vec<TermMean>,
    /// The same by time, for each bin in which the step has rows, under [`TimeBins::label`].
    pub by_time: Vec<TermMean>,
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Rows in this rank's micro-batches.
    pub rows: u64,
    /// Positions in them, padding included.
    pub positions: u64,
    /// The step's time by parts.
    #[serde(skip)]
    pub times: StepTimes,
}

impl StepReport {
    /// Reads all numbers with one copy from the device.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn read(&self) -> Result<StepMetrics> {
        let device = self.grad_norm.device();
        let mut scalars = vec![self.grad_norm.f_view([1])?];
        for m in &self.micro {
            for t in std::iter::once(&m.loss).chain(m.terms.iter().map(|(_, sum, _)| sum)) {
                scalars.push(t.f_to_device(device)?.f_to_kind(Kind::Float)?.f_view([1])?);
            }
            for bins in &m.by_time {
                scalars.extend([&bins.sums, &bins.counts].map(Tensor::shallow_clone));
            }
        }
        let numbers = Tensor::f_cat(&scalars, 0)?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?;
        let mut numbers = Vec::<f64>::try_from(&numbers)?.into_iter();
        let mut next = || numbers.next().unwrap_or(f64::NAN);

        let grad_norm = next();
        let (mut loss, mut terms, mut by_time) = (0.0, TermSums::default(), TermSums::default());
        for m in &self.micro {
            loss += next() / self.micro.len() as f64;
            for (name, _, count) in &m.terms {
                terms.add(name, next(), *count);
            }
            for bins in &m.by_time {
                let [sums, counts] = [(); 2].map(|()| [(); TimeBins::COUNT].map(|()| next()));
                by_time.add_bins(bins, &sums, &counts);
            }
        }
        let Self { step, lr, rows, positions, times, .. } = *self;
        Ok(StepMetrics {
            step,
            loss,
            terms: terms.means(),
            by_time: by_time.means(),
            grad_norm,
            lr,
            rows,
            positions,
            times,
        })
    }
}

impl StepMetrics {
    /// Checks that the loss and the gradient norm are finite.
    ///
    /// # Errors
    /// [`Error::NonFinite`] with the step.
    pub fn check(&self) -> Result<()> {
        for (what, value) in [("loss", self.loss), ("gradient norm", self.grad_norm)] {
            if !value.is_finite() {
                return Err(Error::NonFinite { step: self.step, what, value, ranks: Vec::new() });
            }
        }
        Ok(())
    }
}
