//! One optimiser step out of micro-batches.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::time::{Duration, Instant};

use elf_core::weights::ParamKind;
use elf_core::{Noise, ParamSet, Seeded};
use elf_flow::Loss;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::checkpoint::{Checkpoint, CheckpointFolder, CheckpointState};
use crate::gradients::{allocate_gradients, clip_grad_norm, grad_norm, norm_of};
use crate::optim::{Group, Optimizer, OptimizerConfig};
use crate::sharding::{Sharding, gather_named};
use crate::validation::{Validation, validation_loss_over_ranks};
use crate::{
    Comm, Ema, Error, GradientSum, ReleasedCheckpoint, Result, Schedule, TermMean, TermSums, TrainingBatch,
    TrainingObjective,
};

/// Settings of a [`Trainer`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainerConfig {
    /// How parameters are moved.
    pub optimizer: OptimizerConfig,
    /// How far, by step.
    pub schedule: Schedule,
    /// Limit of the global gradient norm; `None` for no limit.
    pub clip_norm: Option<f64>,
    /// Decay of the averaged parameters.
    pub ema_decay: f64,
    /// Micro-batches in one optimiser step.
    pub accumulation: NonZeroU32,
    /// Where all draws of the run come from.
    pub seed: u64,
}

/// What one micro-batch gave; tensors are scalars on the device, not yet read.
#[derive(Debug)]
pub struct MicroReport {
    /// The micro-batch's mean loss over all ranks.
    pub loss: Tensor,
    /// This rank's part of it.
    pub own_loss: Tensor,
    /// Name, sum and count of each part of the loss, of this rank's rows.
    pub terms: Vec<(&'static str, Tensor, f64)>,
}

/// Where the time of a step went, as the host saw it. On a GPU that is the time it took to queue the work, unless the trainer
/// was told to wait between the parts; see [`Trainer::wait_between_parts`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepTimes {
    /// Until the micro-batches were there: reading, encoding.
    pub batches: Duration,
    /// Losses and gradients.
    pub gradients: Duration,
    /// Clipping, the optimiser, the averages.
    pub update: Duration,
}

/// What one optimiser step gave. Nothing has been read from the device yet: [`StepReport::read`] waits for it, once.
#[derive(Debug)]
pub struct StepReport {
    /// The step, counted from 0.
    pub step: u64,
    /// The learning rate that was used.
    pub lr: f64,
    /// Gradient norm before clipping, over all ranks; a scalar on the device.
    pub grad_norm: Tensor,
    /// The micro-batches in order.
    pub micro: Vec<MicroReport>,
    /// Rows in this rank's micro-batches.
    pub rows: u64,
    /// Positions in them, padding included: the unit of throughput.
    pub positions: u64,
    /// Where the time went.
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
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Rows in this rank's micro-batches.
    pub rows: u64,
    /// Positions in them, padding included.
    pub positions: u64,
    /// Where the time went.
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
        }
        let numbers = Tensor::f_cat(&scalars, 0)?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?;
        let mut numbers = Vec::<f64>::try_from(&numbers)?.into_iter();
        let mut next = || numbers.next().unwrap_or(f64::NAN);

        let grad_norm = next();
        let (mut loss, mut terms) = (0.0, TermSums::default());
        for m in &self.micro {
            loss += next() / self.micro.len() as f64;
            for (name, _, count) in &m.terms {
                terms.add(name, next(), *count);
            }
        }
        let Self { step, lr, rows, positions, times, .. } = *self;
        Ok(StepMetrics { step, loss, terms: terms.means(), grad_norm, lr, rows, positions, times })
    }
}

impl StepMetrics {
    /// Refuses a loss or a gradient norm that is infinite or no number.
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

/// A network with all that it takes to train it.
pub struct Trainer<N, O> {
    net: N,
    objective: O,
    /// Moves this rank's share of the parameters.
    optimizer: Box<dyn Optimizer>,
    /// Of all ranks together.
    groups: Vec<Group>,
    /// Follows this rank's share of the parameters.
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
    /// A trainer at step 0. Switches on gradients for all parameters, and gives all ranks those of the first one.
    ///
    /// # Errors
    /// If a setting is out of its range, or a rank is gone.
    pub fn new(net: N, objective: O, config: TrainerConfig, comm: Rc<dyn Comm>) -> Result<Self> {
        config.schedule.check()?;
        if let Some(limit) = config.clip_norm
            && !(limit > 0.0 && limit.is_finite())
        {
            return Err(Error::setting(
                "clip_norm",
                format!("{limit} is not a positive number; leave it out for no limit"),
            ));
        }
        let params = objective.params(&net);
        params.set_requires_grad(true);
        allocate_gradients(params)?;
        let leaves: Vec<Tensor> = params.iter().map(|(_, p)| p.tensor.shallow_clone()).collect();
        comm.share_tensors(&leaves, &vec![0; leaves.len()])?;
        comm.agree_on_tensors("the initial weights", &leaves)?;
        params.changed();
        let sharding = Sharding::new(params, |p| config.optimizer.update_cost(&p.tensor.size()), comm.as_ref());
        let groups = config.optimizer.groups(params)?;
        let optimizer = config.optimizer.build_share(sharding.owned())?;
        let ema = Ema::new(sharding.owned(), config.ema_decay)?;
        let gradient_sum = comm.gradient_sum(leaves)?;
        Ok(Self {
            net,
            objective,
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

    /// One optimiser step from the next [`TrainerConfig::accumulation`] micro-batches, which all draw from the run's seed:
    /// a row's draws depend on the seed, the step, the micro-batch's number and the row's place in the global micro-batch
    /// (row times ranks, plus rank, as the data is shared out: so draws do not depend on how many ranks there are, as long as
    /// each has equally many rows). `None`, and nothing changed, if the batches end first.
    ///
    /// The loss is the mean over micro-batches of each one's own mean. Then the global gradient norm is limited, parameters
    /// are moved, and the averages follow.
    ///
    /// # Errors
    /// If the batches, the objective or libtorch fail; the parameters are then as they were, unless libtorch failed in
    /// the very update.
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

    /// [`Trainer::step`] with each micro-batch's draws given.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn step_with_noise(
        &mut self,
        batches: impl IntoIterator<Item = Result<(O::Batch, Box<dyn Noise>)>>,
    ) -> Result<Option<StepReport>> {
        let wanted = self.config.accumulation.get();
        self.params().zero_grad();
        let (mut micro, mut rows, mut positions) = (Vec::new(), 0, 0);
        let mut times = StepTimes::default();
        let mut watch = Watch::start(self);
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

    /// Lets the host wait for the device after each part of a step, so that [`StepTimes`] says where the device's time goes.
    /// Slower: for measurements.
    pub fn wait_between_parts(&mut self, wait: bool) {
        self.wait_between_parts = wait;
    }

    /// Adds the gradients of the `part`-th micro-batch of `parts`, counted from 1. Those of the last one leave for the other
    /// ranks as soon as they are complete; before it nothing is exchanged but how many positions the loss counts.
    fn accumulate(&self, batch: &O::Batch, noise: &mut dyn Noise, part: u32, parts: u32) -> Result<MicroReport> {
        let Loss { sum, count, terms } = self.objective.training_loss(&self.net, batch, noise)?;
        let mut total = [count];
        self.comm.sum_numbers(&mut total)?;
        let mean = sum * (1.0 / total[0].max(1.0));
        if part == parts {
            self.gradient_sum.begin();
        }
        // Without a single row or position there may be nothing to differentiate.
        if mean.requires_grad() {
            (&mean * (1.0 / f64::from(parts))).f_backward()?;
        }
        let terms = terms.into_iter().map(|t| (t.name, t.sum, t.count)).collect();
        let own_loss = mean.f_detach()?;
        Ok(MicroReport { loss: own_loss.copy(), own_loss, terms })
    }

    /// Sums gradients and losses over ranks, limits the gradients, moves the parameters and lets the averages follow.
    fn update(&mut self, lr: f64, micro: &[MicroReport]) -> Result<Tensor> {
        let params = self.objective.params(&self.net);
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

    /// The objective on held-out batches under the averaged parameters; each rank brings some of them, with the place of their
    /// first row among all rows; see [`validation_loss_over_ranks`](crate::validation_loss_over_ranks).
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

    /// Calls `f` while the network holds the averaged parameters, which is what a model is judged and used by, with the ranks
    /// that share in the work. Every rank calls it.
    ///
    /// # Errors
    /// If libtorch fails or a rank is gone; the outer result is about the exchange, the inner one is `f`'s.
    pub fn with_averages<R>(&mut self, f: impl FnOnce(&N, &dyn Comm) -> R) -> Result<R> {
        self.exchange_averages()?;
        let result = f(&self.net, self.comm.as_ref());
        self.exchange_averages()?;
        Ok(result)
    }

    /// Puts the averages of all ranks in the parameters' places, and the parameters in theirs; or back, bit for bit.
    fn exchange_averages(&mut self) -> Result<()> {
        self.ema.swap(self.sharding.owned())?;
        self.sharding.share(self.params(), self.comm.as_ref())
    }

    /// Saves everything that the next step depends on as `step-NNNNNNNN` in `folder`. `cursor` is where the data continues and
    /// `plan` what the run was asked to do; both are given back as they are.
    ///
    /// Every rank calls it; rank 0 writes what all of them keep, and alone gets the checkpoint. The files do not say how many
    /// ranks there were: any number can go on from them.
    ///
    /// # Errors
    /// If a parameter is infinite or no number, or it cannot be written; then nothing of it is left and all other checkpoints
    /// are as they were. All ranks fail together.
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
            let in_order: Vec<_> = params.iter().filter_map(|(n, _)| averages.get(n).map(|t| (*n, *t))).collect();
            folder.save(state, &params, &in_order, &optimizer)
        });
        let mut failures = [f64::from(u8::from(matches!(written, Some(Err(_)))))];
        self.comm.sum_numbers(&mut failures)?;
        match written.transpose()? {
            None if failures[0] > 0.0 => Err(Error::Comm("rank 0 could not write the checkpoint".to_owned())),
            checkpoint => Ok(checkpoint),
        }
    }

    /// Continues from a checkpoint: parameters, averages, optimiser, step and seed are those that were saved.
    ///
    /// # Errors
    /// If any file is missing, damaged, or was made for another network or optimiser. The trainer must then not be used.
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

    /// Continues a run of the released code: parameters, averages and optimiser state are the file's, and so is the optimiser's count
    /// of steps, by which the schedule goes; the seed stays.
    ///
    /// # Errors
    /// If the file is damaged, or was made for another network or optimiser, with a table of all differences. The trainer
    /// must then not be used.
    pub fn restore_released(&mut self, checkpoint: &ReleasedCheckpoint) -> Result<()> {
        self.params().load_from(&checkpoint.weights(ParamKind::Trained)?)?;
        let origin = checkpoint.path().display().to_string();
        let own_share = |all| self.sharding.own_share(self.objective.params(&self.net), all);
        self.ema.load(&origin, &own_share(checkpoint.averages()?))?;
        self.optimizer.load_state(&origin, &own_share(checkpoint.optimizer_state()?))?;
        self.step = checkpoint.optimizer_steps()?;
        self.agree_on_place()
    }

    /// Refuses to go on unless all ranks are at the same step with the same weights. Restoring does so by itself; a run that
    /// begins calls it in its place, for another rank may have found a checkpoint.
    ///
    /// # Errors
    /// If they are not, or a rank is gone.
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

    /// The network, without the rest.
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

    /// Which rule moves which parameter.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The processes of this run.
    pub fn comm(&self) -> &dyn Comm {
        self.comm.as_ref()
    }
}

/// Times laps, perhaps with the device's part of them.
struct Watch {
    since: Instant,
    wait_for: Option<Device>,
}

impl Watch {
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
