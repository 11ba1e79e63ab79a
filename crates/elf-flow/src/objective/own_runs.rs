//! Starts of a student's steps on the teacher's own runs from noise.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How students learn the teacher's own runs: each denoise row of a batch is a run from noise over all of the student's steps, and
/// every one of them is a row for the student, which starts where the teacher comes by.
///
/// Noisy data, where the released code's students start, is not where a guided teacher comes by. Nor is the estimate that a step begins
/// with: here it is the target of the step before, which the student's own estimate tends to, and none in the first.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnRuns {
    /// The time from which the last step leads to the end, all others lying evenly before it
    /// ([`GenerateConfig::leap_at`](crate::GenerateConfig::leap_at)); 1 for even steps.
    pub leap_at: f64,
    /// The scale of the teacher's guide, to be known to those who read of the step; 1 is none.
    pub guide_scale: f64,
}

impl OwnRuns {
    pub(super) fn check(&self) -> Result<()> {
        if !(self.leap_at > 0.0 && self.leap_at <= 1.0) {
            return Err(Error::setting("pd_leap_at", format!("{} is not a time in (0, 1]", self.leap_at)));
        }
        match (self.guide_scale as f32).is_finite() {
            true => Ok(()),
            false => Err(Error::setting("pd_guide_scale", format!("{} is not a scale", self.guide_scale))),
        }
    }

    /// The times of the teacher's steps within each of the student's `steps`: `substeps` even ones, but for a leap, which is one step of
    /// both.
    pub(super) fn times(&self, steps: usize, substeps: usize) -> Vec<Vec<f64>> {
        let even = |from: f64, to: f64, n: usize| -> Vec<f64> {
            (0..=n).map(|k| if k == n { to } else { from + (to - from) * k as f64 / n as f64 }).collect()
        };
        let leap = self.leap_at;
        match (leap < 1.0, steps) {
            (false, _) => even(0.0, 1.0, steps).windows(2).map(|step| even(step[0], step[1], substeps)).collect(),
            (true, 1) if substeps == 1 => vec![vec![0.0, 1.0]],
            (true, 1) => vec![[even(0.0, leap, substeps - 1), vec![1.0]].concat()],
            (true, _) => {
                let before = even(0.0, leap, steps - 1);
                let steps = before.windows(2).map(|step| even(step[0], step[1], substeps));
                steps.chain([vec![leap, 1.0]]).collect()
            }
        }
    }
}
