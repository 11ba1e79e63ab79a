//! The optimiser step from micro-batches.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::time::{Duration, Instant};

use elf_core::weights::ParamKind;
use elf_core::{Noise, ParamSet, Seeded};
use elf_flow::Loss;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::{Device, Tensor};

use crate::checkpoint::{Checkpoint, CheckpointFolder, CheckpointState};
use crate::gradients::{allocate_gradients, clip_grad_norm, grad_norm, norm_of};
use crate::optim::{Group, Optimizer, OptimizerConfig};
use crate::sharding::{Sharding, gather_named};
use crate::step_report::{MicroReport, StepReport, StepTimes};
use crate::validation::{Validation, validation_loss_over_ranks};
use crate::{Comm, Ema, Error, GradientSum, ReleasedCheckpoint, Result, Schedule, TrainingBatch, TrainingObjective};

/// Settings of a [`Trainer`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainerConfig {
    /// The optimiser.
    pub optimizer: OptimizerConfig,
    /// Learning rates by step.
    pub schedule: Schedule,
    /// Limit of the global gradient norm; `None` for no limit.
    pub clip_norm: Option<f64>,
    /// Decay of the averaged parameters.
    pub ema_decay: f64,
    /// Micro-batches in one optimiser step.
    pub accumulation: NonZeroU32,
    /// The seed of all draws of the run.
    pub seed: u64,
}

/// A network with the state that training it needs: objective, optimiser, averages and step count.
pub struct Trainer<N, O> {
    net: N,
    objective: O,
    /// The parameters that steps change: all but frozen ones.
    trained: ParamSet,
    /// Updates this rank's share of the parameters.
    optimizer: Box<dyn Optimizer>,
    /// The groups of all ranks' parameters.
    groups: Vec<Group>,
    /// Averages of this rank's share of the parameters.
    ema: Ema,
    config: TrainerConfig,
    sharding: Sharding,
    gradient_sum: Box<dyn GradientSum>,
    comm: Rc<dyn Comm>,
    /// Optimiser steps done.
    step: u64,
    wait_between_parts: bool,
}

impl<N, O: TrainingObjective<N>> Trainer<N, O> {
    /// Makes a trainer at step 0. Enables gradients for all parameters but frozen ones, and sends the parameters of rank 0
    /// to all ranks. Numbers too small to be normal are 0 in this thread from here on ([`elf_kernels::flush_denormals`]).
    ///
    /// # Errors
    /// If a setting is out of its range, or a rank has failed.
    pub fn new(net: N, objective: O, config: TrainerConfig, comm: Rc<dyn Comm>) -> Result<Self> {
        config.schedule.check()?;
        elf_kernels::flush_denormals();
        if let Some(limit) = config.clip_norm
            && !(limit > 0.0 && limit.is_finite())
        {
            return Err(Error::setting(
                "clip_norm",
                format!("{limit} is not a positive number; leave it out for no limit"),
            ));
        }
        let params = objective.params(&net);
        let all: Vec<Tensor> = params.iter().map(|(_, p)| p.tensor.shallow_clone()).collect();
        comm.share_tensors(&all, &vec![0; all.len()])?;
        comm.agree_on_tensors("the initial weights", &all)?;
        params.changed();
        let trained = params.trained();
        trained.set_requires_grad(true);
        allocate_gradients(&trained)?;
        let leaves = trained.iter().map(|(_, p)| p.tensor.shallow_clone()).collect();
        let sharding = Sharding::new(&trained, |p| config.optimizer.update_cost(&p.tensor.size()), comm.as_ref());
        let groups = config.optimizer.groups(&trained)?;
        let optimizer = config.optimizer.build_share(sharding.owned())?;
        let ema = Ema::new(sharding.owned(), config.ema_decay)?;
        let gradient_sum = comm.gradient_sum(leaves)?;
        Ok(Self {
            net,
            objective,
            trained,
            optimizer,
            groups,
            ema,
            config,
            sharding,
            gradient_sum,
            comm,
            step: 0,
            wait_between_parts: false,
        })
    }

    /// Makes one optimiser step from the next [`TrainerConfig::accumulation`] micro-batches. Returns `None`, with
    /// nothing changed, if the batches end first.
    ///
    /// A row's draws are a function of the run's seed, the step, the micro-batch's number and the row's index in the
    /// global micro-batch (row times ranks, plus rank). They do not depend on the number of ranks, as long as all ranks
    /// have equally many rows.
    ///
    /// The loss is the mean over micro-batches of each one's own mean. Then the global gradient norm is limited, and
    /// parameters and averages are updated.
    ///
    /// # Errors
    /// If the batches, the objective or libtorch fail; the parameters are then unchanged, unless libtorch failed in the
    /// update itself.
    pub fn step(&mut self, batches: impl IntoIterator<Item = Result<O::Batch>>) -> Result<Option<StepReport>> {
        let (seed, step, rank, world) = (self.config.seed, self.step, self.comm.rank(), self.comm.world());
        self.step_with_noise(batches.into_iter().enumerate().map(move |(micro, batch)| {
            let batch = batch?;
            let (rows, _) = batch.sizes()?;
            let places = (0..rows).map(|row| row * world + rank);
            let noise: Box<dyn Noise> = Box::new(Seeded::at(&[seed, step, micro as u64], places, batch.device()));
            Ok((batch, noise))
        }))
    }

    /// Does the same as [`Trainer::step`] with the caller's draws for each micro-batch.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn step_with_noise(
        &mut self,
        batches: impl IntoIterator<Item = Result<(O::Batch, Box<dyn Noise>)>>,
    ) -> Result<Option<StepReport>> {
        let wanted = self.config.accumulation.get();
        self.clear_gradients()?;
        let (mut micro, mut rows, mut positions) = (Vec::new(), 0, 0);
        let mut times = StepTimes::default();
        let mut watch = Stopwatch::start(self);
        let mut batches = batches.into_iter();
        for part in 1..=wanted {
            let Some(next) = batches.next() else { return Ok(None) };
            let (batch, mut noise) = next?;
            watch.lap(&mut times.batches);
            let (b, s) = batch.sizes()?;
            (rows, positions) = (rows + b, positions + b * s);
            micro.push(self.accumulate(&batch, noise.as_mut(), part, wanted)?);
            watch.lap(&mut times.gradients);
        }
        let lr = self.config.schedule.lr_at(self.step);
        let grad_norm = self.update(lr, &micro)?;
        watch.lap(&mut times.update);
        let report = StepReport { step: self.step, lr, grad_norm, micro, rows, positions, times };
        self.step += 1;
        Ok(Some(report))
    }

    /// Gradients of 0. On a GPU of its own a process has none instead, which saves a launch for each parameter; several processes
    /// need the tensors that they exchange.
    fn clear_gradients(&self) -> Result<()> {
        let leaves: Vec<Tensor> = self.trained.iter().map(|(_, p)| p.tensor.shallow_clone()).collect();
        let gpu = leaves.iter().any(|p| elf_kernels::takes_gpu_path(p.device()));
        match gpu && self.comm.world() == 1 {
            true => Ok(elf_kernels::lists::forget_gradients(&leaves)?),
            false => {
                self.params().zero_grad();
                Ok(())
            }
        }
    }

    /// Makes the host wait for the device after each part of a step, so that [`StepTimes`] is the device's time.
    /// Slower; for measurements.
    pub fn wait_between_parts(&mut self, wait: bool) {
        self.wait_between_parts = wait;
    }

    /// Adds the gradients of the `part`-th micro-batch of `parts`, counted from 1. During the last one, gradients are
    /// sent to the other ranks as soon as they are complete; before it ranks exchange only the number of positions that
    /// the loss counts.
    fn accumulate(&self, batch: &O::Batch, noise: &mut dyn Noise, part: u32, parts: u32) -> Result<MicroReport> {
        let Loss { sum, count, terms, by_time } = self.objective.training_loss(&self.net, batch, noise)?;
        let mut total = [count];
        self.comm.sum_numbers(&mut total)?;
        let mean = sum * (1.0 / total[0].max(1.0));
        if part == parts {
            self.gradient_sum.begin();
        }
        // A batch without rows or positions may have a loss without gradient.
        if mean.requires_grad() {
            (&mean * (1.0 / f64::from(parts))).f_backward()?;
        }
        let terms = terms.into_iter().map(|t| (t.name, t.sum, t.count)).collect();
        let own_loss = mean.f_detach()?;
        Ok(MicroReport { loss: own_loss.copy(), own_loss, terms, by_time })
    }

    /// Sums gradients and losses over ranks, limits the gradients, and updates parameters and averages.
    fn update(&mut self, lr: f64, micro: &[MicroReport]) -> Result<Tensor> {
        let params = &self.trained;
        self.gradient_sum.finish()?;
        let mut losses: Vec<Tensor> = micro.iter().map(|m| m.loss.shallow_clone()).collect();
        self.comm.sum_tensors(&mut losses)?;
        let norm = match self.config.clip_norm {
            Some(limit) => clip_grad_norm(params, limit)?,
            None => grad_norm(params)?,
        };
        self.optimizer.step(self.sharding.owned(), lr)?;
        self.ema.update(self.sharding.owned())?;
        self.sharding.share(params, self.comm.as_ref())?;
        Ok(norm)
    }

    /// The loss on held-out batches with the averaged parameters. Each rank gives some of the batches, each with the
    /// index of its first row among all rows; see [`validation_loss_over_ranks`](crate::validation_loss_over_ranks).
    ///
    /// # Errors
    /// As [`validation_loss_over_ranks`](crate::validation_loss_over_ranks).
    pub fn validate(
        &mut self,
        batches: impl IntoIterator<Item = Result<(u64, O::Batch)>>,
        seed: u64,
    ) -> Result<Validation> {
        self.exchange_averages()?;
        let found = validation_loss_over_ranks(&self.objective, &self.net, batches, seed, self.comm.as_ref());
        self.exchange_averages()?;
        found
    }

    /// Calls `f` with the network while it holds the averaged parameters, which models are evaluated and used with.
    /// Every rank calls it; the ranks may share the work of `f`.
    ///
    /// # Errors
    /// If libtorch fails or a rank has failed. The outer result is that of the exchange, the inner one that of `f`.
    pub fn with_averages<R>(&mut self, f: impl FnOnce(&N, &dyn Comm) -> R) -> Result<R> {
        self.exchange_averages()?;
        let result = f(&self.net, self.comm.as_ref());
        self.exchange_averages()?;
        Ok(result)
    }

    /// Exchanges the averages and the parameters of all ranks; a second call exchanges them back, bit for bit.
    fn exchange_averages(&mut self) -> Result<()> {
        self.ema.swap(self.sharding.owned())?;
        self.sharding.share(&self.trained, self.comm.as_ref())
    }

    /// Saves the complete training state as `step-NNNNNNNN` in `folder`. `cursor` is the position in the data at which
    /// training continues and `plan` the run's plan; both are stored unchanged.
    ///
    /// Every rank calls it; rank 0 writes the state of all ranks, and only rank 0 gets the checkpoint. The files do not
    /// depend on the number of ranks: any number of ranks can continue from them.
    ///
    /// # Errors
    /// If a parameter is not finite, or a file cannot be written; then no part of the checkpoint is left and all others
    /// are unchanged. All ranks fail together.
    pub fn save(&self, folder: &CheckpointFolder, cursor: Value, plan: Value) -> Result<Option<Checkpoint>> {
        let tensors: Vec<Tensor> = self.params().iter().map(|(_, p)| p.tensor.shallow_clone()).collect();
        let value = tch::no_grad(|| norm_of(&tensors))?.f_double_value(&[])?;
        if !value.is_finite() {
            return Err(Error::NonFinite {
                step: self.step.saturating_sub(1),
                what: "norm of the parameters",
                value,
                ranks: Vec::new(),
            });
        }
        let own_averages = self.ema.averages().map(|(name, t)| (name.to_owned(), t.shallow_clone())).collect();
        let averages = gather_named(own_averages, self.comm.as_ref())?;
        let optimizer = gather_named(self.optimizer.state(), self.comm.as_ref())?;
        let written = (self.comm.rank() == 0).then(|| {
            let state = CheckpointState::new(self.step, self.config.seed, cursor, plan);
            let params: Vec<_> = self.params().iter().map(|(name, p)| (name, &p.tensor)).collect();
            let averages: HashMap<&str, &Tensor> = averages.iter().map(|(name, t)| (name.as_str(), t)).collect();
            // The average of a frozen parameter is the parameter.
            let in_order: Vec<_> =
                params.iter().map(|(n, own)| (*n, averages.get(n).copied().unwrap_or(own))).collect();
            folder.save(state, &params, &in_order, &optimizer)
        });
        let mut failures = [f64::from(u8::from(matches!(written, Some(Err(_)))))];
        self.comm.sum_numbers(&mut failures)?;
        match written.transpose()? {
            None if failures[0] > 0.0 => Err(Error::Comm("rank 0 could not write the checkpoint".to_owned())),
            checkpoint => Ok(checkpoint),
        }
    }

    /// Continues from a checkpoint: sets parameters, averages, optimiser, step and seed to those that were saved.
    ///
    /// # Errors
    /// If any file is missing, damaged, or was made for another network or optimiser. The trainer must then not be
    /// used.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        checkpoint.verify()?;
        let own_share = |all| self.sharding.own_share(self.objective.params(&self.net), all);
        let (origin, state) = checkpoint.optimizer()?;
        self.optimizer.load_state(&origin, &own_share(state))?;
        let (origin, averages) = checkpoint.averages()?;
        self.ema.load(&origin, &own_share(averages))?;
        checkpoint.load_params(self.objective.params(&self.net))?;
        self.step = checkpoint.state().step;
        self.config.seed = checkpoint.state().seed;
        self.agree_on_place()
    }

    /// Continues a run of the released code: sets parameters, averages, optimiser state and the count of optimiser
    /// steps, which the schedule depends on; the seed stays.
    ///
    /// # Errors
    /// If the file is damaged, or was made for another network or optimiser, with a table of all differences. The
    /// trainer must then not be used.
    pub fn restore_released(&mut self, checkpoint: &ReleasedCheckpoint) -> Result<()> {
        self.params().load_from(&checkpoint.weights(ParamKind::Trained)?)?;
        let origin = checkpoint.path().display().to_string();
        let own_share = |all| self.sharding.own_share(self.objective.params(&self.net), all);
        self.ema.load(&origin, &own_share(checkpoint.averages()?))?;
        self.optimizer.load_state(&origin, &own_share(checkpoint.optimizer_state()?))?;
        self.step = checkpoint.optimizer_steps()?;
        self.agree_on_place()
    }

    /// Checks that all ranks are at the same step with the same weights. Restoring includes this check. A run without a
    /// checkpoint calls it directly, since another rank may have found one.
    ///
    /// # Errors
    /// If they are not, or a rank has failed.
    pub fn agree_on_place(&self) -> Result<()> {
        self.comm.agree(&[("the step to go on from", self.step.to_string())])?;
        let params: Vec<Tensor> = self.params().iter().map(|(_, p)| p.tensor.shallow_clone()).collect();
        self.comm.agree_on_tensors("the weights to go on from", &params)
    }

    /// The network's parameters by name.
    pub fn params(&self) -> &ParamSet {
        self.objective.params(&self.net)
    }

    /// The network.
    pub fn net(&self) -> &N {
        &self.net
    }

    /// The network, without the trainer.
    pub fn into_net(self) -> N {
        self.net
    }

    /// The objective.
    pub fn objective(&self) -> &O {
        &self.objective
    }

    /// The averaged parameters.
    pub fn ema(&self) -> &Ema {
        &self.ema
    }

    /// Optimiser steps done.
    pub fn steps_done(&self) -> u64 {
        self.step
    }

    /// The settings; after [`Trainer::restore`] with the checkpoint's seed.
    pub fn config(&self) -> &TrainerConfig {
        &self.config
    }

    /// The groups of parameters that are updated by the same rule.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The processes of this run.
    pub fn comm(&self) -> &dyn Comm {
        self.comm.as_ref()
    }
}

/// A stopwatch, which waits for the device if it is to include the device's time.
struct Stopwatch {
    since: Instant,
    wait_for: Option<Device>,
}

impl Stopwatch {
    fn start<N, O: TrainingObjective<N>>(trainer: &Trainer<N, O>) -> Self {
        let device = || trainer.params().iter().next().map(|(_, p)| p.tensor.device());
        Self { since: Instant::now(), wait_for: trainer.wait_between_parts.then(device).flatten() }
    }

    fn lap(&mut self, sum: &mut Duration) {
        if let Some(device) = self.wait_for {
            elf_core::device::wait(device);
        }
        let now = Instant::now();
        *sum += now - self.since;
        self.since = now;
    }
}

impl<N, O: std::fmt::Debug> std::fmt::Debug for Trainer<N, O> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Trainer")
            .field("step", &self.step)
            .field("config", &self.config)
            .field("objective", &self.objective)
            .finish()
    }
}
