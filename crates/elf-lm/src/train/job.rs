//! One run from its first step, or the checkpoint that it goes on from, to its end.

use std::cell::RefCell;
use std::num::NonZeroU32;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::error::{Context, fail};
use elf_core::Precision;
use elf_data::{Cursor, Share};
use elf_encoder::WordMoments;
use elf_flow::{LatentBatch, TrainedFlow};
use elf_hub::What;
use elf_model::Elf;
use elf_train::optim::{AdamWConfig, MuonConfig, OptimizerConfig};
use elf_train::{
    Checkpoint, Comm, Decay, KeepPolicy, Outcome, Run, RunControl, Schedule, Trainer, TrainerConfig, TrainingObjective,
    TrainingObserver,
};
use serde_json::Value;
use tch::Device;

use super::held_out::HeldOut;
use super::log::{LogStart, SharedEvents, TrainingLog};
use super::model_kind::KindBatches;
use super::{ElfKind, ModelKind, TrainingInputs, begin_as};
use crate::config::{BaselinePlan, OTHER_ENCODER, OTHER_STATS, OptimizerName, RunConfig, RunPlan, ScheduleName};
use crate::fingerprint::{Difference, Fingerprint};
use crate::json_files::write;
use crate::model::run_folder::{RunFolder, plan_of};
use crate::model::{ModelRef, Resumable, model_card};
use crate::tensorboard::EventFile;
use crate::{Host, Result};

/// One run to be carried out.
pub struct Job<'a, 'h> {
    /// What is to be done.
    pub plan: &'a RunPlan,
    /// With what.
    pub inputs: &'a TrainingInputs,
    /// Where to.
    pub folder: &'a RunFolder,
    /// What its network begins as, if not as it is given.
    pub initial: Option<&'a ModelRef>,
    /// Who shares in the work.
    pub comm: &'a Rc<dyn Comm>,
    /// When to stop and save.
    pub deadline: Option<Instant>,
    /// Who hears how it goes.
    pub host: &'a Host<'h>,
}

impl Job<'_, '_> {
    fn is_led_by_this(&self) -> bool {
        self.comm.rank() == 0
    }

    /// A note to the user, from the first rank alone.
    fn say(&self, line: String) {
        if self.is_led_by_this() {
            self.host.note(line);
        }
    }
}

/// How a run came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// All steps are done.
    Finished,
    /// Held-out rows were no longer learned better.
    NoLongerBetter,
    /// The batches ended before the steps did.
    OutOfData,
    /// The deadline was over.
    OutOfTime,
    /// It was asked to stop.
    Interrupted,
}

impl Ended {
    /// Whether there is nothing left to train.
    pub fn is_complete(self) -> bool {
        matches!(self, Self::Finished | Self::NoLongerBetter)
    }

    fn of(outcome: Outcome, out_of_time: bool) -> Self {
        match outcome {
            Outcome::Finished => Self::Finished,
            Outcome::NoLongerBetter => Self::NoLongerBetter,
            Outcome::OutOfData => Self::OutOfData,
            Outcome::Stopped if out_of_time => Self::OutOfTime,
            Outcome::Stopped => Self::Interrupted,
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::NoLongerBetter => {
                "stopped: held-out rows were no longer learned better; the best checkpoint was kept"
            }
            Self::OutOfData => "stopped at the end of the data",
            Self::OutOfTime => "stopped after the minutes it was given",
            Self::Interrupted => "interrupted; run the same command again to go on",
        }
    }
}

/// Rows of the training data that a word guide is made of at most.
const MEASURED_ROWS: usize = 200_000;
const MEASURED_ROWS_AT_ONCE: usize = 256;

/// When the minutes that a configuration gives are over; never, if a clock does not go as far.
pub fn deadline(config: &RunConfig) -> Option<Instant> {
    Instant::now().checked_add(Duration::try_from_secs_f64(config.length.max_minutes? * 60.0).ok()?)
}

/// Trains `net`, or what its folder's latest checkpoint makes of it, to the end of the plan, and tells the user how it went.
/// `objective` is the loss, in training and on held-out rows.
///
/// # Errors
/// If anything fails; what was saved before stands.
pub fn train_flow<O>(job: Job, objective: O, mut net: Elf) -> Result<Ended>
where
    O: TrainingObjective<Elf, Batch = LatentBatch> + Copy,
{
    net.set_recompute(job.plan.config.compute.gradient_checkpointing);
    let kind = ElfKind::new(job.plan, &job.inputs.tokenizer, job.inputs.latents()?);
    if job.plan.config.output.resume.is_none() && job.folder.checkpoints().latest()?.is_none() {
        start_word_guide(job.plan, job.inputs, &kind, &net)?;
    }
    train_kind(job, &kind, objective, net)
}

/// Makes the word guide of `net`, if it is to have one, from latents of the training data.
///
/// # Errors
/// If rows cannot be read or encoded.
fn start_word_guide<O>(plan: &RunPlan, inputs: &TrainingInputs, kind: &ElfKind<'_, O>, net: &Elf) -> Result<()>
where
    O: TrainingObjective<Elf, Batch = LatentBatch>,
{
    match plan.model.word_guide_dims {
        0 => Ok(()),
        dims => {
            let classes = word_moments(plan, inputs, kind)?.classes(dims)?;
            Ok(net.start_word_guide(&classes, plan.objective.path.noise_scale)?)
        }
    }
}

/// The moments of the latents of at most [`MEASURED_ROWS`] rows of the training data, evenly chosen. The rows are encoded as in
/// training, so that the cache of `kind` has them at the first step.
///
/// # Errors
/// If the rows cannot be read or encoded.
fn word_moments<O>(plan: &RunPlan, inputs: &TrainingInputs, kind: &ElfKind<'_, O>) -> Result<WordMoments>
where
    O: TrainingObjective<Elf, Batch = LatentBatch>,
{
    let data = &inputs.train;
    let collator = plan.collator(&inputs.tokenizer)?;
    let lengths = data.lengths(collator.config())?;
    let rows = data.len().min(MEASURED_ROWS);
    let mut rows: Vec<usize> = (0..rows).map(|i| i * data.len() / rows).collect();
    rows.sort_by_key(|&row| lengths[row]);
    let mut moments = WordMoments::new(plan.model.vocab_size, plan.model.text_encoder_dim)?;
    let of_one_shape = rows.chunk_by(|&one, &other| !plan.has_rows_of_equal_length() || lengths[one] == lengths[other]);
    for rows in of_one_shape.flat_map(|rows| rows.chunks(MEASURED_ROWS_AT_ONCE)) {
        let encoded = kind.batch(collator.collate(&data.examples(rows)?)?)?;
        moments.add(&encoded.latents, &encoded.ids, &encoded.loss_mask)?;
    }
    Ok(moments)
}

/// [`train_flow`], for any kind of model.
///
/// # Errors
/// As [`train_flow`].
pub fn train_kind<S>(job: Job, kind: &S, objective: S::Objective, net: S::Net) -> Result<Ended>
where
    S: ModelKind<Objective: Copy>,
{
    let Job { plan, inputs, folder, comm, deadline, host, .. } = job;
    let (mut trainer, cursor) = begun_trainer(&job, objective, net)?;
    // One writer: the first rank of one process group.
    let begun = job.is_led_by_this().then(|| -> Result<_> {
        let held = folder.begin(plan, &inputs.tokenizer)?;
        if let Some(distillation) = &plan.distillation {
            write(&folder.root().join("README.md"), model_card::distilled(plan, distillation))?;
        }
        Ok((held, folder.metrics_from(trainer.steps_done())?))
    });
    let (_held, metrics) = begun.transpose()?.unzip();
    let events = event_file(&job, trainer.steps_done())?;
    let (world, steps_done) = (comm.world() as usize, trainer.steps_done());
    let share = Share { rank: comm.rank() as usize, world, micro_batch: plan.batch_rows / world };
    let mut source = KindBatches::start(plan, inputs, kind, share, cursor)?;
    let (total_steps, log_freq) = (plan.length.total, plan.config.output.log_freq);
    let log = LogStart { metrics, events: events.clone(), steps_done, total_steps, log_freq, deadline };
    let mut observer = TrainingLog::new(host, Rc::clone(comm), log);
    let held_out = HeldOut {
        plan,
        objective: &objective,
        tokenizer: &inputs.tokenizer,
        kind,
        rows: inputs.held_out.as_ref(),
        judge: inputs.judge.as_ref(),
        folder,
        host,
        events,
    };
    let mut evaluator = |net: &S::Net, comm: &dyn Comm, step: u64| held_out.judge(net, comm, step).map_err(Into::into);
    let run = Run {
        source: &mut source,
        control: run_control(plan),
        checkpoints: &folder.checkpoints(),
        plan: serde_json::to_value(plan)?,
        evaluator: Some(&mut evaluator),
        observer: &mut observer,
        stop: host.stop(),
    };
    let outcome = elf_train::run(&mut trainer, run)?;
    // Clocks differ: the run is out of time if any rank says so.
    let mut out_of_time = [f64::from(u8::from(observer.out_of_time))];
    comm.sum_numbers(&mut out_of_time)?;
    let out_of_time = outcome == Outcome::Stopped && out_of_time[0] > 0.0;
    if out_of_time {
        let step = trainer.steps_done();
        let metrics = trainer.with_averages(|net, comm| held_out.judge(net, comm, step))??;
        observer.evaluated(step, &metrics);
    }
    observer.finish()?;
    let ended = Ended::of(outcome, out_of_time);
    let (step, place) = (trainer.steps_done(), folder.root().display());
    job.say(format!("{} after step {step}; everything is in {place}", ended.describe()));
    Ok(ended)
}

/// A new event file in the run's folder, with its configuration, if there is to be one and this rank writes it.
fn event_file(job: &Job, steps_done: u64) -> Result<Option<SharedEvents>> {
    if !(job.is_led_by_this() && job.plan.config.output.tensorboard) {
        return Ok(None);
    }
    let mut events = EventFile::begin(job.folder.root(), steps_done)?;
    events.settings(&serde_json::to_value(&job.plan.config)?)?;
    Ok(Some(Rc::new(RefCell::new(events))))
}

/// The trainer of a job and the place in the data, both where the run goes on from, or at the start.
fn begun_trainer<N, O>(job: &Job, objective: O, net: N) -> Result<(Trainer<N, O>, Cursor)>
where
    O: TrainingObjective<N>,
{
    let Job { plan, inputs, folder, initial, comm, host, .. } = job;
    let config = trainer_config(plan, inputs.device)?;
    let resume = resume_from(plan, folder, host)?;
    // A run that has checkpoints has begun already.
    if let Some(initial) = initial.filter(|_| resume.is_none()) {
        begin_as(initial, objective.params(&net))?;
        job.say(format!("beginning as {}", initial.path().display()));
    }
    let mut trainer = Trainer::new(net, objective, config, Rc::clone(comm))?;
    for group in trainer.groups() {
        job.say(format!("{:8} moves {} parameters ({} numbers)", group.rule, group.params.len(), group.numel));
    }
    let cursor = begin(&mut trainer, resume, plan, inputs.train.len() as u64, |line| job.say(line))?;
    Ok((trainer, cursor))
}

/// The steps in which a warmup-stable-decay schedule falls.
fn fall_steps(plan: &RunPlan) -> Result<u64> {
    let share = plan.config.optimization.lr_decay_share;
    if !(share > 0.0 && share <= 1.0) {
        fail!(
            setting("lr_decay_share"),
            "lr_decay_share is {share}, and must be a share of all steps: above 0, at most 1"
        );
    }
    Ok(((plan.length.total as f64 * share).round() as u64).max(1))
}

/// When a plan's run saves, evaluates and ends.
fn run_control(plan: &RunPlan) -> RunControl {
    RunControl {
        total_steps: plan.length.total,
        save_every: plan.length.save_every,
        evaluate_every: plan.length.eval_every,
        keep: KeepPolicy { last: Some(plan.config.output.keep_checkpoints as u64), every: None, pinned: None },
        patience: plan.config.output.early_stopping.unwrap_or(0),
    }
}

/// Makes the trainer what the run goes on from, if it does, and says where in the data that is.
fn begin<N, O: TrainingObjective<N>>(
    trainer: &mut Trainer<N, O>,
    resume: Option<Resumable>,
    plan: &RunPlan,
    rows: u64,
    say: impl Fn(String),
) -> Result<Cursor> {
    Ok(match resume {
        Some(Resumable::Released(checkpoint)) => {
            trainer.restore_released(&checkpoint)?;
            let step = trainer.steps_done();
            let (path, epoch) = (checkpoint.path().display(), checkpoint.epoch()?);
            say(format!("resuming from {path} (step {step}, epoch {epoch}) of the released code"));
            if checkpoint.is_amid_a_step() {
                say("warning: it was saved between the micro-batches of a step; their gradients are not taken over"
                    .to_owned());
            }
            let rows_a_step = (plan.batch_rows * plan.config.optimization.grad_accum_steps) as u64;
            // The same place in the data; its order is this program's own from here on.
            let per_epoch = (rows / rows_a_step).max(1);
            Cursor { epoch: step / per_epoch, position: step % per_epoch * rows_a_step }
        }
        Some(Resumable::Own(checkpoint)) => {
            trainer.restore(&checkpoint)?;
            say(format!("resuming from {} (step {})", checkpoint.path().display(), trainer.steps_done()));
            serde_json::from_value(checkpoint.state().cursor.clone())
                .context("the checkpoint's place in the data is from another version of this program")?
        }
        None => {
            trainer.agree_on_place()?;
            Cursor::default()
        }
    })
}

/// A plan's settings in the trainer's words.
///
/// # Errors
/// If the plan's optimiser has no such setting.
pub fn trainer_config(plan: &RunPlan, device: Device) -> Result<TrainerConfig> {
    let config = &plan.config;
    Ok(TrainerConfig {
        optimizer: match config.optimization.optimizer {
            OptimizerName::Muon => {
                if config.optimization.weight_decay != 0.0 {
                    fail!(
                        setting("weight_decay"),
                        "weight_decay {} has no effect on Muon: set it to 0, or optimizer to adamw",
                        config.optimization.weight_decay
                    );
                }
                OptimizerConfig::Muon(MuonConfig {
                    precision: if config.optimization.muon_bf16 { Precision::native(device) } else { Precision::F32 },
                    ..MuonConfig::default()
                })
            }
            OptimizerName::Adamw => OptimizerConfig::Adamw(AdamWConfig {
                b1: config.optimization.adam_b1,
                b2: config.optimization.adam_b2,
                weight_decay: config.optimization.weight_decay,
                ..AdamWConfig::default()
            }),
        },
        schedule: Schedule {
            lr: plan.lr,
            warmup_steps: plan.length.warmup,
            decay: match config.optimization.lr_schedule {
                ScheduleName::Constant => Decay::Constant,
                ScheduleName::Cosine => Decay::Cosine,
                ScheduleName::Wsd => Decay::Wsd { fall: fall_steps(plan)? },
            },
            min_lr: config.optimization.min_lr,
            total_steps: plan.length.total,
        },
        clip_norm: Some(1.0),
        ema_decay: config.averages.ema_decay1,
        accumulation: u32::try_from(config.optimization.grad_accum_steps).ok().and_then(NonZeroU32::new).with_context(
            || format!("grad_accum_steps {} is out of its range", config.optimization.grad_accum_steps),
        )?,
        seed: config.seed,
    })
}

/// The checkpoint to go on from: the latest in the output folder or, if there is none yet, the one that is named.
fn resume_from(plan: &RunPlan, folder: &RunFolder, host: &Host) -> Result<Option<Resumable>> {
    let own = folder.checkpoints().latest()?;
    let checkpoint = match (&plan.config.output.resume, own) {
        (None, None) => return Ok(None),
        (None, Some(own)) => own,
        (Some(name), own) => {
            let place = host.locate(name, What::ElfCheckpoint)?;
            match own {
                Some(own) => latest_since(&place, own, plan, folder)?,
                None => match ModelRef::open(&place)?.into_resumable()? {
                    Resumable::Own(checkpoint) => checkpoint,
                    released => return Ok(Some(released)),
                },
            }
        }
    };
    let before = plan_of(&checkpoint)?;
    let (before, now) = (lineage(&before)?, lineage(plan)?);
    if let Some(Difference { name: what, .. }) = before.known_to(&now).first_difference(&now.known_to(&before)) {
        let path = checkpoint.path().display();
        fail!(
            mismatch(&what),
            "{path} was trained with another {what}: bring that back, or choose another output_dir to start anew (with --init-from \
             {path} as that model)"
        );
    }
    Ok(Some(Resumable::Own(checkpoint)))
}

/// The latest checkpoint `own` of a run that is told to go on from `place`: since it began so, or is there itself. Going back would
/// lose what comes after.
fn latest_since(place: &Path, own: Checkpoint, plan: &RunPlan, folder: &RunFolder) -> Result<Checkpoint> {
    let (name, root) = (place.display(), folder.root().display());
    if plan_of(&own)?.config.output.resume == plan.config.output.resume {
        return Ok(own);
    }
    let named = ModelRef::open(place)?;
    let named = named.run().map(|run| &run.checkpoint);
    let same =
        |one: &Path, other: &Path| one.canonicalize().ok().zip(other.canonicalize().ok()).is_some_and(|(a, b)| a == b);
    if named.is_some_and(|named| same(named.path(), own.path())) {
        return Ok(own);
    }
    if named.is_some_and(|named| named.path().parent().is_some_and(|parent| same(parent, folder.checkpoints().root())))
    {
        fail!(
            place(own.path()),
            "{root} has gone on since {name}, up to {}: leave resume out to go on from there, or choose another output_dir",
            own.path().display()
        );
    }
    fail!(
        place(folder.root()),
        "{root} holds a run that did not begin from {name}: leave resume out to go on with it, or choose another output_dir"
    )
}

/// Everything that must be the same in two plans for the one to go on with what the other began. Of runs of older versions less is
/// known: only facts that both have are to be compared.
fn lineage(plan: &RunPlan) -> Result<Fingerprint> {
    let json = |value: serde_json::Result<Value>| value.map(|value| value.to_string());
    let kind = plan.baseline.as_ref().map(BaselinePlan::name);
    let mut facts = Fingerprint::default()
        .with("objective", kind.unwrap_or("elf"))
        .with("size of the model", json(serde_json::to_value((&plan.model, &plan.baseline)))?)
        .with("max_length, max_input_length or pad_token", json(serde_json::to_value(plan.span))?);
    if let Some(inputs) = &plan.inputs {
        facts =
            facts.with("tokenizer", &inputs.tokenizer).with("set of training data (data_path)", &inputs.training_data);
    }
    if let Some(encoder) = plan.encoder() {
        facts =
            facts.with(OTHER_ENCODER, &encoder.blake3).with(OTHER_STATS, json(serde_json::to_value(&encoder.stats))?);
    }
    facts = facts.with("end of conditions (condition_eos)", plan.condition_eos);
    if kind.is_none() {
        let flow = (TrainedFlow::from(&plan.objective), plan.config.network.causal_latents);
        facts = facts.with(
            "flow (denoiser_noise_scale, t_eps, prediction, self_cond_prob, block_size or causal_latents)",
            format!("{flow:?}"),
        );
    }
    let lesson = plan.distillation.as_ref().map(|d| (d.step, d.teacher.blake3.as_str()));
    Ok(facts
        .with("seed", plan.config.seed)
        .with("optimizer", json(serde_json::to_value(plan.config.optimization.optimizer))?)
        .with("teacher, or step that is learned from it", json(serde_json::to_value(lesson))?)
        .with("batch size or grad_accum_steps", plan.batch_rows * plan.config.optimization.grad_accum_steps))
}
