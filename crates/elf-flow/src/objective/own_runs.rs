//! Starts of a student's steps on the teacher's own runs from noise.

use elf_core::{Network, Noise};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::distillation::{DistillObjective, StudentInputs};
use super::rows::{Prepared, RowPlan, pin};
use super::teacher::TeacherStart;
use crate::{Error, LatentBatch, Result};

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

impl DistillObjective<'_> {
    /// The student's rows: all first steps, all second ones and so on, and then the batch's decode rows.
    pub(super) fn inputs_of_runs(
        &self,
        student: Option<&dyn Network>,
        batch: &LatentBatch,
        plan: &RowPlan,
        noise: &mut dyn Noise,
    ) -> Result<StudentInputs> {
        let (b, ..) = batch.sizes()?;
        let (n, d) = (plan.denoise, plan.decode);
        let start = Tensor::f_zeros([b], (Kind::Float, batch.latents.device()))?;
        let mut prepared = self.base.prepare(batch, plan, &start, noise)?;
        if let Some(student) = student {
            self.base.put_estimates(student, &mut prepared, plan, noise)?;
        }
        let Prepared { x0, z, t, w, condition, words, .. } = prepared;
        let no_estimate = match &condition {
            Some(condition) => &x0 * condition,
            None => z.f_zeros_like()?,
        };
        let first = |x: &Tensor| x.f_narrow(0, 0, n);
        let (clean, scales) = (first(&x0)?, first(&w)?);
        let (given, known) = (condition.as_ref().map(first).transpose()?, words.as_ref().map(first).transpose()?);

        let mut rows = Rows::default();
        let (mut at, mut estimate, mut previous) = (first(&z)?, first(&no_estimate)?, first(&no_estimate)?);
        for times in if n == 0 { Vec::new() } else { self.run_times() } {
            let grid = Tensor::f_from_slice(&times)?.f_to_kind(Kind::Float)?.f_to_device(at.device())?;
            let grid = grid.f_unsqueeze(0)?.f_expand([n, times.len() as i64], false)?;
            let t = grid.f_select(1, 0)?;
            let start = TeacherStart {
                z: &at,
                x_prev: self.base.self_conditioned().then_some(&estimate),
                guidance: &scales,
                times: &grid,
                condition: given.as_ref().map(|mask| (&clean, mask)),
                words: known.as_ref(),
            };
            let end = self.teacher.steps(&self.base.path, &start)?;
            let target = match &given {
                Some(mask) => pin(&end.target, &clean, mask),
                None => end.target,
            };
            rows.z.push(at);
            rows.x_prev.push(previous);
            rows.t.push(t);
            rows.target.push(target.shallow_clone());
            (at, estimate, previous) = (end.z, end.x, target);
        }
        let steps = rows.z.len();
        let last = |x: &Tensor| x.f_narrow(0, n, d);
        let repeated = |x: &Tensor| -> Result<Tensor> {
            let own = first(x)?;
            Ok(Tensor::f_cat(&(0..steps).map(|_| &own).chain([&last(x)?]).collect::<Vec<_>>(), 0)?)
        };
        let with_decode = |mut rows: Vec<Tensor>, all: &Tensor| -> Result<Tensor> {
            rows.push(last(all)?);
            Ok(Tensor::f_cat(&rows, 0)?)
        };
        let order =
            (0..steps).flat_map(|_| &plan.order[..n as usize]).chain(&plan.order[n as usize..]).copied().collect();
        let target = if steps == 0 { first(&z)? } else { Tensor::f_cat(&rows.target, 0)? };
        Ok(StudentInputs {
            plan: RowPlan { order, self_cond: 0, denoise: n * steps as i64, decode: d, estimated: 0 },
            z: with_decode(rows.z, &z)?,
            t: with_decode(rows.t, &t)?,
            w: repeated(&w)?,
            words: words.as_ref().map(repeated).transpose()?,
            x_prev: match self.base.self_conditioned() {
                true => Some(with_decode(rows.x_prev, &no_estimate)?),
                false => None,
            },
            target,
        })
    }
}

/// The student's rows of each of its steps.
#[derive(Default)]
struct Rows {
    z: Vec<Tensor>,
    x_prev: Vec<Tensor>,
    t: Vec<Tensor>,
    target: Vec<Tensor>,
}
