//! Progressive distillation: a student learns to cover in one step what its teacher covers in many.
//!
//! After Salimans and Ho, for a network that predicts clean latents (the authors' note on distilling ELF, and their released
//! code, whose behaviour is followed here).

use elf_core::device::upload;
use elf_core::{Network, Noise, TrunkInput};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::elf_objective::ElfObjective;
use super::own_runs::OwnRuns;
use super::rows::{Prepared, RowPlan, Words, check_channels, dropout, mixed_trunk, pin};
use super::teacher::{Teacher, TeacherStart};
use super::{Loss, LossTerm, Objective};
use crate::{Error, Guide, LatentBatch, Result, TimeLaw};

/// The shortest step that can be learned: the target divides by it.
const SHORTEST_STEP: f64 = 1e-3;

/// One step of a student, and the teacher's steps over the same time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistillStep {
    /// How much time a step of the student covers: 1/N for a student of N steps (`pd_step_size`).
    pub step_size: f64,
    /// K, Euler steps of the teacher over the same time (`pd_teacher_steps`).
    pub substeps: usize,
    /// The law of u in the time `u (1 - step_size)` at which a step begins (`pd_student_schedule`).
    pub student_times: TimeLaw,
    /// The law of the places within a step at which one step of the teacher ends and the next begins (`pd_teacher_schedule`).
    pub teacher_times: TimeLaw,
    /// Starts on the teacher's own runs, for which neither law above counts; `None` for starts in noisy data, as in the released code.
    #[serde(default)]
    pub own_runs: Option<OwnRuns>,
}

impl DistillStep {
    /// Checks all settings.
    ///
    /// # Errors
    /// Names the first setting that is out of its range.
    pub fn check(&self) -> Result<()> {
        if !(SHORTEST_STEP..=1.0).contains(&self.step_size) {
            let reason =
                format!("{} is not between {SHORTEST_STEP} and 1; 1/N makes a student of N steps", self.step_size);
            return Err(Error::setting("pd_step_size", reason));
        }
        if self.substeps == 0 {
            return Err(Error::setting("pd_teacher_steps", "the teacher needs at least 1 step"));
        }
        self.student_times.check()?;
        self.teacher_times.check()?;
        self.own_runs.as_ref().map_or(Ok(()), OwnRuns::check)
    }

    /// Steps that carry a student from noise to data: 1 / [`DistillStep::step_size`], rounded.
    pub fn student_steps(&self) -> usize {
        (1.0 / self.step_size).round() as usize
    }

    /// The times `[B]` at which each row's step begins. Draws `student_t_normal` or `student_t_uniform` `[B]`.
    fn starts(&self, rows: i64, noise: &mut dyn Noise) -> Result<Tensor> {
        // A step that covers all of the time has one possible start, t = 0; the released code draws from [0, 1e-6).
        let room = (1.0 - self.step_size).max(1e-6);
        Ok(self.student_times.draw_named("student_t", &[rows], noise)? * room)
    }

    /// The K + 1 times `[B, K + 1]` of the teacher's steps, ascending, from `starts` `[B]` to one step later. Draws
    /// `teacher_t_normal` or `teacher_t_uniform` `[B, K - 1]` if K > 1.
    fn teacher_grid(&self, starts: &Tensor, noise: &mut dyn Noise) -> Result<Tensor> {
        let first = starts.f_unsqueeze(-1)?;
        let last = &first + self.step_size;
        let inner = self.substeps as i64 - 1;
        if inner == 0 {
            return Ok(Tensor::f_cat(&[first, last], -1)?);
        }
        let drawn = self.teacher_times.draw_named("teacher_t", &[starts.size1()?, inner], noise)?;
        let places = drawn.f_sort(-1, false)?.0;
        let inner = &first + (&last - &first) * places;
        Ok(Tensor::f_cat(&[first, inner, last], -1)?)
    }
}

/// The targets of a batch's denoise rows.
#[derive(Debug)]
pub struct Targets {
    /// The denoise rows' places in the batch, in the order of `target`.
    pub rows: Vec<i64>,
    /// Clean latents, `[rows, S, C]`.
    pub target: Tensor,
}

/// The student's rows with their targets: denoise rows, then decode rows.
struct StudentInputs {
    /// The rows' places in the batch; several of them may be of one row.
    plan: RowPlan,
    /// Noisy latents, `[R, S, C]`.
    z: Tensor,
    /// Times `[R]`, 1 in decode rows.
    t: Tensor,
    /// Guidance scales `[R]`.
    w: Tensor,
    /// Token ids of the condition positions, `[R, S]`.
    words: Option<Tensor>,
    /// The previous estimate, `[R, S, C]`.
    x_prev: Option<Tensor>,
    /// Clean latents that denoise rows learn to predict, `[R - decode rows, S, C]`.
    target: Tensor,
}

/// The objective of progressive distillation: a row is either a *denoise* row, whose loss is the squared error of the clean
/// prediction against [`teacher_target`](super::teacher_target), or a *decode* row as in [`ElfObjective`].
///
/// On self-conditioned rows the teacher's prediction without a previous estimate is the previous estimate of both. The loss of a
/// row is the mean over its loss positions; the loss of a batch the mean over its rows. The target has no guidance other than
/// that which the teacher has learned.
///
/// Draws: `decoder_coin`, `self_cond_u` (host), `student_t_normal` or `student_t_uniform` `[B]`, `teacher_t_normal` or
/// `teacher_t_uniform` `[B, K - 1]`, `cfg_scale_u` `[B]`, `noise` `[B, S, C]`, `decoder_lambda_normal` `[B, S]`,
/// `decoder_noise_normal` `[B, S, C]`.
///
/// The released code runs the teacher over all rows K + 1 times. Here it sees self-conditioned rows once and denoise rows K
/// times, decode rows never, and no gradient is recorded for it; logits are taken at the loss positions of decode rows only.
///
/// With `self_cond_prob` 0 teacher and student take z alone, as networks trained and sampled that way do.
///
/// With [`OwnEstimates`](crate::OwnEstimates) in `base`, decode rows are read from the student's estimates.
///
/// With [`OwnRuns`] a denoise row is a run of the teacher, and as many rows for the student as it makes steps; coins of self-conditioning
/// and laws of times do not count, and `noise` is where runs begin.
#[derive(Clone, Copy)]
pub struct DistillObjective<'t> {
    base: ElfObjective,
    step: DistillStep,
    teacher: Teacher<'t>,
}

impl<'t> DistillObjective<'t> {
    /// Distils `teacher`, which was trained with the path, guidance law and decoder settings of `base` (its law of times is not
    /// used).
    ///
    /// # Errors
    /// Names the first setting that is out of its range.
    pub fn new(base: ElfObjective, step: DistillStep, teacher: &'t dyn Network) -> Result<Self> {
        base.check()?;
        step.check()?;
        Ok(Self { base, step, teacher: Teacher { net: teacher, guide: None } })
    }

    /// Leads the teacher's steps away from a weaker network.
    #[must_use]
    pub fn with_guide(self, guide: Guide<'t>) -> Self {
        Self { teacher: Teacher { guide: Some(guide), ..self.teacher }, ..self }
    }

    /// The step that is learned.
    pub fn step(&self) -> &DistillStep {
        &self.step
    }

    /// How often the teacher, or its guide, sees a row on average: its K steps for denoise rows, and once more for those that are
    /// self-conditioned.
    pub fn teacher_passes_per_row(&self) -> f64 {
        let passes = match &self.step.own_runs {
            Some(_) => self.run_times().iter().map(|step| step.len() - 1).sum::<usize>() as f64,
            None => self.step.substeps as f64 + self.base.self_cond_prob,
        };
        (1.0 - self.base.decoder_prob) * passes * if self.teacher.guide.is_some() { 2.0 } else { 1.0 }
    }

    /// The times of a run ([`OwnRuns::times`]); none where students start in noisy data.
    fn run_times(&self) -> Vec<Vec<f64>> {
        let step = &self.step;
        step.own_runs.as_ref().map_or(Vec::new(), |runs| runs.times(step.student_steps(), step.substeps))
    }

    /// Rows that the student sees, with gradient, for each of the batch's on average.
    pub fn student_rows_per_row(&self) -> f64 {
        let of_denoise = self.run_times().len().max(1) as f64;
        (1.0 - self.base.decoder_prob) * of_denoise + self.base.decoder_prob
    }

    /// The targets of a batch's denoise rows, by the same draws as [`Objective::loss`].
    ///
    /// # Errors
    /// As [`Objective::loss`].
    pub fn targets(&self, batch: &LatentBatch, noise: &mut dyn Noise) -> Result<Targets> {
        let StudentInputs { plan, target, .. } = self.inputs(None, batch, noise)?;
        Ok(Targets { rows: plan.order[..plan.denoise as usize].to_vec(), target })
    }

    /// The student's rows of a batch, without gradient. Without `student` no decode row holds an estimate.
    fn inputs(
        &self,
        student: Option<&dyn Network>,
        batch: &LatentBatch,
        noise: &mut dyn Noise,
    ) -> Result<StudentInputs> {
        let (b, s, c) = batch.sizes()?;
        let wanted = self.teacher.net.shape().latent_dim;
        if c != wanted {
            let expected = format!("[B, S, {wanted}], as the teacher's latents have");
            return Err(elf_core::Error::Shape { what: "latents".into(), found: vec![b, s, c], expected }.into());
        }
        let plan = self.base.plan_rows(b, noise)?;
        tch::no_grad(|| match &self.step.own_runs {
            Some(_) => self.inputs_of_runs(student, batch, &plan, noise),
            None => self.inputs_of_data(student, batch, plan, noise),
        })
    }

    /// The batch as the network sees it, with the student's estimates in the decode rows that are to have them.
    fn prepared(
        &self,
        student: Option<&dyn Network>,
        batch: &LatentBatch,
        plan: &RowPlan,
        starts: &Tensor,
        noise: &mut dyn Noise,
    ) -> Result<Prepared> {
        let mut prepared = self.base.prepare(batch, plan, starts, noise)?;
        if let Some(student) = student {
            self.base.put_estimates(student, &mut prepared, plan, noise)?;
        }
        Ok(prepared)
    }

    /// Corrupts the rows of a batch and lets the teacher make its steps.
    fn inputs_of_data(
        &self,
        student: Option<&dyn Network>,
        batch: &LatentBatch,
        plan: RowPlan,
        noise: &mut dyn Noise,
    ) -> Result<StudentInputs> {
        let (b, ..) = batch.sizes()?;
        let (n, u) = (plan.denoise, plan.self_cond);
        let starts = self.step.starts(b, noise)?;
        let denoise_rows = upload(&Tensor::f_from_slice(&plan.order[..n as usize])?, batch.latents.device())?;
        let times = self.step.teacher_grid(&starts, noise)?.f_index_select(0, &denoise_rows)?;
        let prepared = self.prepared(student, batch, &plan, &starts, noise)?;
        let Prepared { x0, z, w, condition, words, .. } = &prepared;

        let x_prev = match self.base.self_conditioned() {
            false => None,
            // In self-conditioned rows the teacher's estimate.
            true => Some(prepared.previous_estimate(self.teacher.net, &self.base.path, prepared.no_estimate()?, u)?.0),
        };

        let first = |t: &Tensor| t.f_narrow(0, 0, n);
        let (z, w, x0) = (first(z)?, first(w)?, first(x0)?);
        let hint = x_prev.as_ref().map(first).transpose()?;
        let (condition, words) = (condition.as_ref().map(first).transpose()?, words.as_ref().map(first).transpose()?);
        let target = if n == 0 {
            z
        } else {
            let start = TeacherStart {
                z: &z,
                x_prev: hint.as_ref(),
                guidance: &w,
                times: &times,
                condition: condition.as_ref().map(|mask| (&x0, mask)),
                words: words.as_ref(),
            };
            self.teacher.steps(&self.base.path, &start)?.target
        };
        let Prepared { z, t, w, words, .. } = prepared;
        Ok(StudentInputs { plan, z, t, w, words, x_prev, target })
    }

    /// The student's rows: all first steps, all second ones and so on, and then the batch's decode rows.
    fn inputs_of_runs(
        &self,
        student: Option<&dyn Network>,
        batch: &LatentBatch,
        plan: &RowPlan,
        noise: &mut dyn Noise,
    ) -> Result<StudentInputs> {
        let (b, ..) = batch.sizes()?;
        let (n, d) = (plan.denoise, plan.decode);
        let start = Tensor::f_zeros([b], (Kind::Float, batch.latents.device()))?;
        let prepared = self.prepared(student, batch, plan, &start, noise)?;
        let no_estimate = prepared.no_estimate()?;
        let Prepared { x0, z, t, w, condition, words, .. } = prepared;
        let first = |x: &Tensor| x.f_narrow(0, 0, n);
        let (start, clean, none, scales) = (first(&z)?, first(&x0)?, first(&no_estimate)?, first(&w)?);
        let (given, known) = (condition.as_ref().map(first).transpose()?, words.as_ref().map(first).transpose()?);
        let start = TeacherStart {
            z: &start,
            x_prev: Some(&none),
            guidance: &scales,
            times: &t,
            condition: given.as_ref().map(|mask| (&clean, mask)),
            words: known.as_ref(),
        };
        let rows = self.runs_from(&start)?;
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
        let target = if steps == 0 { clean.shallow_clone() } else { Tensor::f_cat(&rows.target, 0)? };
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

    /// The teacher's runs from `start` (whose times do not count), as rows of each of the student's steps; none without runs.
    fn runs_from(&self, start: &TeacherStart) -> Result<Rows> {
        let (n, mut rows) = (start.z.size3()?.0, Rows::default());
        let (mut at, none) = (start.z.shallow_clone(), start.x_prev.map(Tensor::shallow_clone));
        let (mut estimate, mut previous) = (none.as_ref().map(Tensor::shallow_clone), none);
        for times in if n == 0 { Vec::new() } else { self.run_times() } {
            let grid = Tensor::f_from_slice(&times)?.f_to_kind(Kind::Float)?.f_to_device(at.device())?;
            let grid = grid.f_unsqueeze(0)?.f_expand([n, times.len() as i64], false)?;
            let hint = estimate.as_ref().filter(|_| self.base.self_conditioned());
            let step = TeacherStart { z: &at, x_prev: hint, times: &grid, ..*start };
            let end = self.teacher.steps(&self.base.path, &step)?;
            let target = match start.condition {
                Some((clean, mask)) => pin(&end.target, clean, mask),
                None => end.target,
            };
            rows.t.push(grid.f_select(1, 0)?);
            rows.z.push(at);
            rows.x_prev.extend(previous);
            rows.target.push(target.shallow_clone());
            (at, estimate, previous) = (end.z, Some(end.x), Some(target));
        }
        Ok(rows)
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

impl Objective for DistillObjective<'_> {
    fn loss(&self, net: &dyn Network, batch: &LatentBatch, noise: &mut dyn Noise) -> Result<Loss> {
        let (b, s, c) = batch.sizes()?;
        check_channels(net, (b, s, c))?;
        let device = batch.latents.device();
        let StudentInputs { plan, z, t, w, words, x_prev, target } = self.inputs(Some(net), batch, noise)?;
        let (n, d) = (plan.denoise, plan.decode);

        let dropout = dropout(net, &plan, (b, s), noise)?;
        let input = TrunkInput {
            x_prev: x_prev.as_ref(),
            guidance: Some(&w),
            words: words.as_ref(),
            dropout: dropout.as_ref(),
            ..TrunkInput::new(&z, &t)
        };
        let hidden = mixed_trunk(net, &plan, input)?;

        // Each row's loss positions share a weight of 1, on the host.
        let mask = batch.loss_mask.f_index_select(0, &Tensor::f_from_slice(&plan.order)?)?;
        let share = &mask / mask.f_sum_dim_intlist([-1i64].as_slice(), true, Kind::Float)?.f_clamp_min(1.0)?;
        let mut sum = Tensor::f_zeros([], (Kind::Float, device))?;
        let mut terms = Vec::new();
        if n > 0 {
            let (z, t) = (z.f_narrow(0, 0, n)?, t.f_narrow(0, 0, n)?.f_view([-1, 1, 1])?);
            let x_hat = self.base.path.clean_of(net.clean(&hidden.f_narrow(0, 0, n)?)?, &z, &t);
            let per_position = (x_hat - target).square().f_mean_dim(-1, false, Kind::Float)?;
            let l2 = (per_position * upload(&share.f_narrow(0, 0, n)?, device)?).f_sum(Kind::Float)?;
            terms.push(LossTerm { name: "l2", sum: l2.f_detach()?, count: n as f64 });
            sum = &sum + l2;
        }
        if d > 0 {
            let (hidden, share, rows) =
                (hidden.f_narrow(0, n, d)?, share.f_narrow(0, n, d)?, &plan.order[n as usize..]);
            let Words { hidden, ids, places } = Words::of(&hidden, &batch.ids, rows, &share)?;
            let weights = share.f_reshape([-1])?.f_index_select(0, &places)?;
            let ce = net.cross_entropy(&hidden, &ids, Some(&upload(&weights, device)?))?.sum;
            terms.push(LossTerm { name: "ce", sum: ce.f_detach()?, count: d as f64 });
            sum = &sum + ce;
        }
        Ok(Loss { sum, count: (n + d) as f64, terms, by_time: Vec::new() })
    }
}

impl std::fmt::Debug for DistillObjective<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("DistillObjective").field("base", &self.base).field("step", &self.step).finish_non_exhaustive()
    }
}
