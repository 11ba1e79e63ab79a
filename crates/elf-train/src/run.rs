//! The training loop.

use std::sync::atomic::{AtomicBool, Ordering};

use elf_flow::LatentBatch;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::Device;

use crate::checkpoint::{Checkpoint, CheckpointFolder};
use crate::evaluations::{Evaluations, JUDGED_BY};
use crate::step_report::{StepMetrics, StepReport};
use crate::trainer::Trainer;
use crate::{Comm, Error, KeepPolicy, Result, TrainingObjective};

/// An error of the calling program.
type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// A source of training batches.
pub trait BatchSource<B = LatentBatch> {
    /// The next micro-batch of this rank; `None` when there are no more. All ranks get equally many batches of equally
    /// many rows.
    ///
    /// # Errors
    /// Any error; training stops.
    fn next_batch(&mut self) -> Result<Option<B>, AnyError>;

    /// The position in the data after the batches already given. It is stored with a checkpoint; the source of a
    /// resumed run starts there.
    fn cursor(&self) -> Value;
}

/// A named result of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Metric {
    /// The metric's name.
    pub name: String,
    /// The metric's value.
    pub value: f64,
}

/// Evaluates a network during training.
pub trait Evaluator<N> {
    /// Evaluates `net`, which holds the averaged parameters, after `steps_done` optimiser steps. It is called on every
    /// rank of `comm`, which may share the work; all must return the same.
    ///
    /// # Errors
    /// Any error; training stops.
    fn evaluate(&mut self, net: &N, comm: &dyn Comm, steps_done: u64) -> Result<Vec<Metric>, AnyError>;
}

impl<N, F: FnMut(&N, &dyn Comm, u64) -> Result<Vec<Metric>, AnyError>> Evaluator<N> for F {
    fn evaluate(&mut self, net: &N, comm: &dyn Comm, steps_done: u64) -> Result<Vec<Metric>, AnyError> {
        self(net, comm, steps_done)
    }
}

/// Receives the events of a run. By default, all methods do nothing.
pub trait TrainingObserver {
    /// A step is done and its numbers are finite. Called in the order of steps; on a GPU one step late.
    fn stepped(&mut self, _: &StepMetrics) {}

    /// An evaluation is done.
    fn evaluated(&mut self, _steps_done: u64, _: &[Metric]) {}

    /// A checkpoint has been written; those of the steps in `removed` have been deleted.
    fn saved(&mut self, _: &Checkpoint, _removed: &[u64]) {}
}

/// An observer that ignores all events.
impl TrainingObserver for () {}

/// When a run saves, evaluates and ends.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunControl {
    /// Total number of optimiser steps, including those before a resume.
    pub total_steps: u64,
    /// Steps between two checkpoints; 0 for one at the end, or when stopped, only.
    pub save_every: u64,
    /// Steps between two evaluations; one more is made at the end. 0 for none at all.
    pub evaluate_every: u64,
    /// Which checkpoints are kept.
    pub keep: KeepPolicy,
    /// Number of consecutive evaluations without an improvement on the best, by [`JUDGED_BY`](crate::JUDGED_BY), after
    /// which the run ends. At its end, whether early or after all steps, the best evaluation's checkpoint is the
    /// newest. 0 turns this off: all checkpoints stay.
    pub patience: u64,
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// The run was asked to stop.
    Stopped,
    /// The batches ended before the steps did.
    OutOfData,
    /// The held-out loss stopped improving; the best checkpoint is now the newest.
    NoLongerBetter,
}

/// The inputs of a run besides its trainer.
pub struct Run<'a, N, B = LatentBatch> {
    /// The batches, starting at the trainer's step.
    pub source: &'a mut dyn BatchSource<B>,
    /// When the run saves, evaluates and ends.
    pub control: RunControl,
    /// The folder of checkpoints.
    pub checkpoints: &'a CheckpointFolder,
    /// The run's plan, which is stored with each checkpoint.
    pub plan: Value,
    /// Evaluates the network, on every rank.
    pub evaluator: Option<&'a mut dyn Evaluator<N>>,
    /// Receives the run's events.
    pub observer: &'a mut dyn TrainingObserver,
    /// A flag that stops the run (set by a signal or at a deadline): the current step is finished and saved.
    pub stop: &'a AtomicBool,
}

/// Trains until all steps are done, the batches end, or [`Run::stop`] is set, and saves at the end.
///
/// A resumed run first makes an evaluation that was due when it was interrupted; no evaluation is made twice. A run
/// whose steps are all done does nothing.
///
/// The loss and the gradient norm of each step are read once: on a CPU at once, on a GPU after the next step has been
/// queued, so that the device never waits for the host. If one of them is not finite, training ends with an error that
/// names the step. All steps so far are read before anything is saved or evaluated, so checkpoints on disk are always
/// finite.
///
/// # Errors
/// If the folder holds checkpoints of later steps than the trainer's, or the batches, the objective, an evaluation or
/// the disk fail, or a loss is not finite.
pub fn run<N, O: TrainingObjective<N>>(trainer: &mut Trainer<N, O>, run: Run<N, O::Batch>) -> Result<Outcome> {
    let started_at = trainer.steps_done();
    let mut state = Loop::begin(trainer, run)?;
    // A process interrupted during an evaluation had saved before it.
    let is_amid = (1..state.run.control.total_steps).contains(&started_at);
    if is_amid && !state.stop_requested(trainer)? {
        state.evaluate_if_due(trainer)?;
    }
    let outcome = loop {
        if state.evaluations.have_stopped_improving() {
            break Outcome::NoLongerBetter;
        }
        if trainer.steps_done() >= state.run.control.total_steps {
            break Outcome::Finished;
        }
        if state.stop_requested(trainer)? {
            break Outcome::Stopped;
        }
        let source = &mut *state.run.source;
        let batches = std::iter::from_fn(|| source.next_batch().map_err(Error::Source).transpose());
        let Some(report) = trainer.step(batches)? else { break Outcome::OutOfData };
        state.reports.push(report, state.run.observer, trainer.comm())?;
        if is_due(state.run.control.save_every, trainer.steps_done()) {
            state.save(trainer)?;
        }
        state.evaluate_if_due(trainer)?;
    };
    state.reports.flush(state.run.observer, trainer.comm())?;
    if trainer.steps_done() > started_at {
        state.save(trainer)?;
    }
    if outcome != Outcome::Stopped {
        if state.run.control.evaluate_every > 0 {
            state.evaluate(trainer)?;
        }
        state.make_best_newest(trainer)?;
    }
    Ok(outcome)
}

fn is_due(every: u64, steps_done: u64) -> bool {
    every > 0 && steps_done.is_multiple_of(every)
}

/// A run in progress.
struct Loop<'a, N, B> {
    run: Run<'a, N, B>,
    reports: Reports,
    /// The step of the newest checkpoint.
    saved_at: Option<u64>,
    evaluations: Evaluations,
}

impl<'a, N, B> Loop<'a, N, B> {
    /// Reads the state of a run that may have been interrupted.
    fn begin<O: TrainingObjective<N, Batch = B>>(trainer: &Trainer<N, O>, run: Run<'a, N, B>) -> Result<Self> {
        let device = trainer.params().iter().next().map_or(Device::Cpu, |(_, p)| p.tensor.device());
        let together = if device == Device::Cpu { 1 } else { Reports::ON_GPU };
        let reports = Reports { together, waiting: Vec::new() };
        let step = trainer.steps_done();
        let saved_at = run.checkpoints.list()?.last().map(|(step, _)| *step);
        if let Some(later) = saved_at.filter(|saved| *saved > step) {
            // Only the newest checkpoints are kept: those of this run would be removed at once.
            return Err(Error::Checkpoint {
                path: run.checkpoints.root().to_owned(),
                reason: format!(
                    "it holds a checkpoint of step {later}, but this run is at step {step}: choose another folder, or move the \
                     later checkpoints away"
                ),
            });
        }
        let evaluations = Evaluations::open(run.checkpoints, run.control.patience, step)?;
        Ok(Self { run, reports, saved_at, evaluations })
    }

    /// Whether the stop flag of any rank is set.
    fn stop_requested<O: TrainingObjective<N, Batch = B>>(&self, trainer: &Trainer<N, O>) -> Result<bool> {
        let mut asked = [f64::from(u8::from(self.run.stop.load(Ordering::Relaxed)))];
        trainer.comm().sum_numbers(&mut asked)?;
        Ok(asked[0] > 0.0)
    }

    fn save<O: TrainingObjective<N, Batch = B>>(&mut self, trainer: &Trainer<N, O>) -> Result<()> {
        self.reports.flush(self.run.observer, trainer.comm())?;
        if self.saved_at == Some(trainer.steps_done()) {
            return Ok(());
        }
        // Cursors count global batches: they are the same on all ranks.
        let saved = trainer.save(self.run.checkpoints, self.run.source.cursor(), self.run.plan.clone())?;
        if let Some(checkpoint) = saved {
            let pinned = self.evaluations.pinned();
            let removed = self.run.checkpoints.prune(&KeepPolicy { pinned, ..self.run.control.keep })?;
            self.run.observer.saved(&checkpoint, &removed);
        }
        self.saved_at = Some(trainer.steps_done());
        Ok(())
    }

    fn evaluate_if_due<O: TrainingObjective<N, Batch = B>>(&mut self, trainer: &mut Trainer<N, O>) -> Result<()> {
        match is_due(self.run.control.evaluate_every, trainer.steps_done()) {
            true => self.evaluate(trainer),
            false => Ok(()),
        }
    }

    fn evaluate<O: TrainingObjective<N, Batch = B>>(&mut self, trainer: &mut Trainer<N, O>) -> Result<()> {
        self.reports.flush(self.run.observer, trainer.comm())?;
        let step = trainer.steps_done();
        if self.evaluations.include(step) {
            return Ok(());
        }
        let Some(evaluator) = &mut self.run.evaluator else { return Ok(()) };
        let metrics = trainer.with_averages(|net, comm| evaluator.evaluate(net, comm, step))?;
        let metrics = metrics.map_err(|source| Error::Evaluation { step, source })?;
        self.run.observer.evaluated(step, &metrics);
        self.evaluations.add(step, metrics.iter().find(|metric| metric.name == JUDGED_BY).map(|metric| metric.value));
        if self.evaluations.pinned() == Some(step) {
            self.save(trainer)?;
        }
        self.save_evaluations(trainer)
    }

    /// Writes the evaluations, on the first rank only.
    fn save_evaluations<O: TrainingObjective<N, Batch = B>>(&self, trainer: &Trainer<N, O>) -> Result<()> {
        if trainer.comm().rank() > 0 {
            return Ok(());
        }
        self.evaluations.save()
    }

    /// At the end of a run that may stop early: makes the best checkpoint the newest.
    fn make_best_newest<O: TrainingObjective<N, Batch = B>>(&mut self, trainer: &Trainer<N, O>) -> Result<()> {
        let Some(best) = self.evaluations.pinned() else { return Ok(()) };
        self.evaluations.end();
        if trainer.comm().rank() == 0 {
            self.run.checkpoints.remove_after(best)?;
        }
        self.save_evaluations(trainer)
    }
}

/// Step reports that have not been read yet.
struct Reports {
    /// The number of reports that are read together: reading makes the host wait for the device.
    together: usize,
    waiting: Vec<StepReport>,
}

impl Reports {
    /// A device that is waited for once in so many steps hardly ever stands idle.
    const ON_GPU: usize = 10;

    fn push(&mut self, report: StepReport, observer: &mut dyn TrainingObserver, comm: &dyn Comm) -> Result<()> {
        self.waiting.push(report);
        match self.waiting.len() < self.together {
            true => Ok(()),
            false => self.flush(observer, comm),
        }
    }

    fn flush(&mut self, observer: &mut dyn TrainingObserver, comm: &dyn Comm) -> Result<()> {
        for report in self.waiting.drain(..) {
            let metrics = report.read()?;
            match metrics.check() {
                Err(Error::NonFinite { step, what, value, .. }) => {
                    let ranks = ranks_not_finite(&report, comm)?;
                    return Err(Error::NonFinite { step, what, value, ranks });
                }
                checked => checked?,
            }
            observer.stepped(&metrics);
        }
        Ok(())
    }
}

/// The ranks whose own losses are not finite; empty if that holds for all ranks. All ranks call this together, since
/// the sums that they check are the same.
fn ranks_not_finite(report: &StepReport, comm: &dyn Comm) -> Result<Vec<u64>> {
    let mut finite = true;
    for micro in &report.micro {
        finite &= micro.own_loss.f_double_value(&[])?.is_finite();
    }
    let all = comm.gather_bytes(&[u8::from(finite)])?;
    let others = all.iter().any(|flag| *flag == [1]);
    let numbered = (0..).zip(&all).filter(|(_, flag)| **flag != [1]).map(|(rank, _)| rank);
    Ok(if others { numbered.collect() } else { Vec::new() })
}
