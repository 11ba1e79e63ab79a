//! The training loop.

use std::sync::atomic::{AtomicBool, Ordering};

use elf_flow::LatentBatch;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::Device;

use crate::checkpoint::{Checkpoint, CheckpointFolder};
use crate::evaluations::{Evaluations, JUDGED_BY};
use crate::trainer::{StepMetrics, StepReport, Trainer};
use crate::{Comm, Error, KeepPolicy, Result, TrainingObjective};

/// Any error of the program around the loop.
type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Where training batches come from.
pub trait BatchSource<B = LatentBatch> {
    /// The next micro-batch of this rank; `None` when there are no more. All ranks get equally many batches of equally many
    /// rows.
    ///
    /// # Errors
    /// Whatever goes wrong in making it; training stops.
    fn next_batch(&mut self) -> Result<Option<B>, AnyError>;

    /// Where the batches continue after those already given: stored with a checkpoint, and given back to whoever makes the
    /// source of the resumed run.
    fn cursor(&self) -> Value;
}

/// A named result of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Metric {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: f64,
}

/// Judges a network during training.
pub trait Evaluator<N> {
    /// Evaluates `net`, which holds the averaged parameters, after `steps_done` optimiser steps. It is called on every rank of
    /// `comm`, which may share the work; all must return the same.
    ///
    /// # Errors
    /// Whatever goes wrong; training stops.
    fn evaluate(&mut self, net: &N, comm: &dyn Comm, steps_done: u64) -> Result<Vec<Metric>, AnyError>;
}

impl<N, F: FnMut(&N, &dyn Comm, u64) -> Result<Vec<Metric>, AnyError>> Evaluator<N> for F {
    fn evaluate(&mut self, net: &N, comm: &dyn Comm, steps_done: u64) -> Result<Vec<Metric>, AnyError> {
        self(net, comm, steps_done)
    }
}

/// Is told what happens; shows or records it. All methods do nothing unless they are written.
pub trait Observer {
    /// A step is done and its numbers are finite. Reported in order; on a GPU one step late.
    fn stepped(&mut self, _: &StepMetrics) {}

    /// An evaluation is done.
    fn evaluated(&mut self, _steps_done: u64, _: &[Metric]) {}

    /// A checkpoint is on disk; those of the steps in `removed` are gone.
    fn saved(&mut self, _: &Checkpoint, _removed: &[u64]) {}
}

/// An observer that ignores everything.
impl Observer for () {}

/// When to do what.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunControl {
    /// Optimiser steps in all, those before a resumption included.
    pub total_steps: u64,
    /// Save after every so many steps; 0 for only at the end, and when stopped.
    pub save_every: u64,
    /// Evaluate after every so many steps and at the end; 0 for never.
    pub evaluate_every: u64,
    /// Which checkpoints stay.
    pub keep: KeepPolicy,
    /// Stop after so many evaluations in a row that were no better than the best, by [`JUDGED_BY`](crate::JUDGED_BY), and leave
    /// the best one's checkpoint as the newest, also where the run comes to its end before. 0: the last one is the last one.
    pub patience: u64,
}

/// How a run came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// It was asked to stop.
    Stopped,
    /// The batches ended before the steps did.
    OutOfData,
    /// Held-out rows were no longer learned better; the best checkpoint is the newest now.
    NoLongerBetter,
}

/// Everything that a run needs beside its trainer.
pub struct Run<'a, N, B = LatentBatch> {
    /// The batches, positioned at the trainer's step.
    pub source: &'a mut dyn BatchSource<B>,
    /// When to do what.
    pub control: RunControl,
    /// Where checkpoints go.
    pub checkpoints: &'a CheckpointFolder,
    /// Stored with each checkpoint: what the run was asked to do.
    pub plan: Value,
    /// Judges the network; on every rank.
    pub evaluator: Option<&'a mut dyn Evaluator<N>>,
    /// Is told what happens.
    pub observer: &'a mut dyn Observer,
    /// Set from outside (a signal, a deadline) to stop: the step in hand is finished and saved.
    pub stop: &'a AtomicBool,
}

/// Trains until all steps are done, the batches end, or it is asked to stop; saves at the end in each of these cases.
///
/// What was begun is gone on with: an evaluation that was due where a lost process left off is made first, and none is made
/// twice. A run whose steps are all done has nothing to do.
///
/// The loss and the gradient norm of each step are read once. On a CPU that happens at once; on a GPU after the next step
/// has been queued, so that the device never waits for the host. If one of them is no number, training ends with an error
/// that names the step. Nothing is saved or evaluated before all steps so far have been read, so the checkpoints on disk are
/// always good.
///
/// # Errors
/// If the folder holds checkpoints of later steps than the trainer's, or the batches, the objective, an evaluation or the disk
/// fail, or a loss is no number.
pub fn run<N, O: TrainingObjective<N>>(trainer: &mut Trainer<N, O>, run: Run<N, O::Batch>) -> Result<Outcome> {
    let started_at = trainer.steps_done();
    let mut state = Loop::begin(trainer, run)?;
    // A process that was lost in an evaluation had saved before.
    let is_amid = (1..state.run.control.total_steps).contains(&started_at);
    if is_amid && !state.stop_requested(trainer)? {
        state.evaluate_if_due(trainer)?;
    }
    let outcome = loop {
        if state.evaluations.are_no_longer_better() {
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
        state.leave_the_best(trainer)?;
    }
    Ok(outcome)
}

fn is_due(every: u64, steps_done: u64) -> bool {
    every > 0 && steps_done.is_multiple_of(every)
}

/// A run under way.
struct Loop<'a, N, B> {
    run: Run<'a, N, B>,
    reports: Reports,
    /// The step of the newest checkpoint.
    saved_at: Option<u64>,
    evaluations: Evaluations,
}

impl<'a, N, B> Loop<'a, N, B> {
    /// Takes up what was done before.
    fn begin<O: TrainingObjective<N, Batch = B>>(trainer: &Trainer<N, O>, run: Run<'a, N, B>) -> Result<Self> {
        let device = trainer.params().iter().next().map_or(Device::Cpu, |(_, p)| p.tensor.device());
        let reports = Reports { lag: usize::from(device != Device::Cpu), waiting: Vec::new() };
        let step = trainer.steps_done();
        let saved_at = run.checkpoints.list()?.last().map(|(step, _)| *step);
        if let Some(later) = saved_at.filter(|saved| *saved > step) {
            // The newest checkpoints are those that stay: this run's would go as they come.
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

    /// Whether any rank was asked to stop.
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
        // Cursors count in global batches: the first rank's is everyone's.
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
        self.evaluations.note(step, metrics.iter().find(|metric| metric.name == JUDGED_BY).map(|metric| metric.value));
        if self.evaluations.pinned() == Some(step) {
            self.save(trainer)?;
        }
        self.write_down(trainer)
    }

    /// One writer: the first rank.
    fn write_down<O: TrainingObjective<N, Batch = B>>(&self, trainer: &Trainer<N, O>) -> Result<()> {
        if trainer.comm().rank() > 0 {
            return Ok(());
        }
        self.evaluations.save()
    }

    /// At the end of a run that may stop early: makes the best checkpoint the newest.
    fn leave_the_best<O: TrainingObjective<N, Batch = B>>(&mut self, trainer: &Trainer<N, O>) -> Result<()> {
        let Some(best) = self.evaluations.pinned() else { return Ok(()) };
        self.evaluations.end();
        if trainer.comm().rank() == 0 {
            self.run.checkpoints.remove_after(best)?;
        }
        self.write_down(trainer)
    }
}

/// Step reports that have not been read yet.
struct Reports {
    /// How many may wait: reading makes the host wait for the device.
    lag: usize,
    waiting: Vec<StepReport>,
}

impl Reports {
    fn push(&mut self, report: StepReport, observer: &mut dyn Observer, comm: &dyn Comm) -> Result<()> {
        self.waiting.push(report);
        self.read(self.lag, observer, comm)
    }

    fn flush(&mut self, observer: &mut dyn Observer, comm: &dyn Comm) -> Result<()> {
        self.read(0, observer, comm)
    }

    fn read(&mut self, leave: usize, observer: &mut dyn Observer, comm: &dyn Comm) -> Result<()> {
        let ready = self.waiting.len().saturating_sub(leave);
        for report in self.waiting.drain(..ready) {
            let metrics = report.read()?;
            match metrics.check() {
                Err(Error::NonFinite { step, what, value, .. }) => {
                    let ranks = culprits(&report, comm)?;
                    return Err(Error::NonFinite { step, what, value, ranks });
                }
                checked => checked?,
            }
            observer.stepped(&metrics);
        }
        Ok(())
    }
}

/// The ranks whose own losses are no numbers. The sums were the same on all of them, so all come here together. Where there
/// is only one, that goes without saying.
fn culprits(report: &StepReport, comm: &dyn Comm) -> Result<Vec<u64>> {
    let mut finite = true;
    for micro in &report.micro {
        finite &= micro.own_loss.f_double_value(&[])?.is_finite();
    }
    let all = comm.gather_bytes(&[u8::from(finite)])?;
    let others = all.iter().any(|flag| *flag == [1]);
    let numbered = (0..).zip(&all).filter(|(_, flag)| **flag != [1]).map(|(rank, _)| rank);
    Ok(if others { numbered.collect() } else { Vec::new() })
}
