//! One run from its first step, or the checkpoint that it goes on from, to its end.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use elf_core::Precision;
use elf_data::{Cursor, Share};
use elf_encoder::{LinearReader, WordMoments};
use elf_flow::{LatentBatch, Trained};
use elf_hub::What;
use elf_model::Elf;
use elf_train::optim::{AdamWConfig, MuonConfig, OptimizerConfig};
use elf_train::{
    Checkpoint, Comm, Decay, KeepPolicy, Observer, Outcome, ReleasedCheckpoint, Run, RunControl, Schedule, Trainer,
    TrainerConfig, TrainingObjective,
};
use tch::Device;

use super::held_out::HeldOut;
use super::log::TrainingLog;
use super::subject::SubjectBatches;
use super::{ElfSubject, InitialWeights, Materials, Subject};
use crate::Reporter;
use crate::config::{BaselinePlan, OptimizerName, RunConfig, RunPlan, ScheduleName, VocabHeadStart};
use crate::hub;
use crate::model::run_folder::{FoundModel, RunFolder, no_run, plan_of};

/// One run to be carried out.
pub struct Job<'a> {
    /// What is to be done.
    pub plan: &'a RunPlan,
    /// With what.
    pub materials: &'a Materials,
    /// Where to.
    pub folder: &'a RunFolder,
    /// What its network begins as, if not as it is given.
    pub initial: Option<&'a InitialWeights>,
    /// Who shares in the work.
    pub comm: &'a Rc<dyn Comm>,
    /// Set from outside to stop and save.
    pub stop: Arc<AtomicBool>,
    /// When to stop and save.
    pub deadline: Option<Instant>,
    /// Who hears how it goes.
    pub events: &'a Reporter<'a>,
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

/// Rows of the training data that a reader of latents is made of at most.
const READER_ROWS: usize = 200_000;
const READER_ROWS_AT_ONCE: usize = 256;
/// Standard deviation of the noise, in units of a normalised channel, for which that reader is best.
const READER_NOISE: f64 = 0.5;

/// When the minutes that a configuration gives are over; never, if a clock does not go as far.
pub fn deadline(config: &RunConfig) -> Option<Instant> {
    Instant::now().checked_add(Duration::try_from_secs_f64(config.max_minutes? * 60.0).ok()?)
}

/// Trains `net`, or what its folder's latest checkpoint makes of it, to the end of the plan, and tells the user how it went.
/// `objective` is the loss, in training and on held-out rows.
///
/// # Errors
/// If anything fails; what was saved before stands.
pub fn train<O>(job: Job, objective: O, mut net: Elf) -> Result<Ended>
where
    O: TrainingObjective<Elf, Batch = LatentBatch> + Copy,
{
    net.set_recompute(job.plan.config.gradient_checkpointing);
    let begins = job.initial.is_none() && job.plan.config.resume.is_none();
    if job.plan.config.vocab_head_start == VocabHeadStart::LinearReader
        && begins
        && job.folder.checkpoints().latest()?.is_none()
    {
        let reader = linear_reader(job.plan, job.materials)?;
        net.start_vocab_head(&reader.directions()?, reader.prior())?;
    }
    let subject = ElfSubject::new(job.plan, &job.materials.tokenizer, job.materials.latents()?);
    train_subject(job, &subject, objective, net)
}

/// A reader of the latents of at most [`READER_ROWS`] rows of the training data, evenly chosen, under a little noise.
///
/// # Errors
/// If the rows cannot be read or encoded.
fn linear_reader(plan: &RunPlan, materials: &Materials) -> Result<LinearReader> {
    let (data, latents) = (&materials.train, materials.latents()?);
    let collator = plan.collator(&materials.tokenizer)?;
    let lengths = data.lengths(collator.config())?;
    let rows = data.len().min(READER_ROWS);
    let mut rows: Vec<usize> = (0..rows).map(|i| i * data.len() / rows).collect();
    rows.sort_by_key(|&row| lengths[row]);
    let mut moments = WordMoments::new(plan.model.vocab_size, plan.model.text_encoder_dim)?;
    for rows in rows.chunks(READER_ROWS_AT_ONCE) {
        let batch = collator.collate(&data.examples(rows)?)?.trimmed();
        let encoded = latents.encode(&batch)?;
        moments.add(&encoded.latents, &encoded.ids, &encoded.loss_mask)?;
    }
    Ok(moments.reader(READER_NOISE)?)
}

/// [`train`], for any kind of model.
///
/// # Errors
/// As there.
pub fn train_subject<S>(job: Job, subject: &S, objective: S::Objective, net: S::Net) -> Result<Ended>
where
    S: Subject<Objective: Copy>,
{
    let Job { plan, materials, folder, initial, comm, stop, deadline, events } = job;
    let first = comm.rank() == 0;
    let say = |line: String| {
        if first {
            events.note(line);
        }
    };
    let config = trainer_config(plan, materials.device)?;
    let resume = resume_from(plan, folder)?;
    // A run that has checkpoints has begun already.
    if let Some(initial) = initial.filter(|_| resume.is_none()) {
        initial.load_into(objective.params(&net))?;
        say(format!("beginning as {}", initial.path().display()));
    }
    let mut trainer = Trainer::new(net, objective, config, Rc::clone(comm))?;
    for group in trainer.groups() {
        say(format!("{:8} moves {} parameters ({} numbers)", group.rule, group.params.len(), group.numel));
    }
    let cursor = begin(&mut trainer, resume, plan, materials.train.len() as u64, say)?;
    // One writer: the first rank of one process group.
    let begun = first.then(|| -> Result<_> {
        Ok((folder.begin(plan, &materials.tokenizer)?, folder.metrics_from(trainer.steps_done())?))
    });
    let (_held, metrics) = begun.transpose()?.unzip();
    let share = Share {
        rank: comm.rank() as usize,
        world: comm.world() as usize,
        micro_batch: plan.batch_rows / comm.world() as usize,
    };
    let mut source = SubjectBatches::start(plan, materials, subject, share, cursor)?;
    let mut observer =
        TrainingLog::new(plan, events, metrics, Rc::clone(comm), trainer.steps_done(), deadline, Arc::clone(&stop));
    let held_out = HeldOut {
        plan,
        objective: &objective,
        tokenizer: &materials.tokenizer,
        subject,
        rows: materials.held_out.as_ref(),
        judge: materials.judge.as_ref(),
        folder,
    };
    let mut evaluator = |net: &S::Net, comm: &dyn Comm, step: u64| held_out.judge(net, comm, step).map_err(Into::into);
    let control = RunControl {
        total_steps: plan.length.total,
        save_every: plan.length.save_every,
        evaluate_every: plan.length.eval_every,
        keep: KeepPolicy { last: Some(plan.config.keep_checkpoints as u64), every: None, pinned: None },
        patience: plan.config.early_stopping.unwrap_or(0),
    };
    let run = Run {
        source: &mut source,
        control,
        checkpoints: &folder.checkpoints(),
        plan: serde_json::to_value(plan)?,
        evaluator: Some(&mut evaluator),
        observer: &mut observer,
        stop: &stop,
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
    let ended = match outcome {
        Outcome::Finished => Ended::Finished,
        Outcome::NoLongerBetter => Ended::NoLongerBetter,
        Outcome::OutOfData => Ended::OutOfData,
        Outcome::Stopped if out_of_time => Ended::OutOfTime,
        Outcome::Stopped => Ended::Interrupted,
    };
    say(format!(
        "{} after step {}; everything is in {}",
        ended.describe(),
        trainer.steps_done(),
        folder.root().display()
    ));
    Ok(ended)
}

/// Makes the trainer what the run goes on from, if it does, and says where in the data that is.
fn begin<N, O: TrainingObjective<N>>(
    trainer: &mut Trainer<N, O>,
    resume: Option<Resume>,
    plan: &RunPlan,
    rows: u64,
    say: impl Fn(String),
) -> Result<Cursor> {
    Ok(match resume {
        Some(Resume::Released(checkpoint)) => {
            trainer.restore_released(&checkpoint)?;
            let step = trainer.steps_done();
            let (path, epoch) = (checkpoint.path().display(), checkpoint.epoch()?);
            say(format!("resuming from {path} (step {step}, epoch {epoch}) of the released code"));
            if checkpoint.is_amid_a_step() {
                say("warning: it was saved between the micro-batches of a step; their gradients are not taken over"
                    .to_owned());
            }
            let rows_a_step = (plan.batch_rows * plan.config.grad_accum_steps) as u64;
            // The same place in the data; its order is this program's own from here on.
            let per_epoch = (rows / rows_a_step).max(1);
            Cursor { epoch: step / per_epoch, position: step % per_epoch * rows_a_step }
        }
        Some(Resume::Own(checkpoint)) => {
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
        optimizer: match config.optimizer {
            OptimizerName::Muon => {
                if config.weight_decay != 0.0 {
                    bail!(
                        "weight_decay {} has no effect on Muon: set it to 0, or optimizer to adamw",
                        config.weight_decay
                    );
                }
                OptimizerConfig::Muon(MuonConfig {
                    precision: if config.muon_bf16 { Precision::native(device) } else { Precision::F32 },
                    ..MuonConfig::default()
                })
            }
            OptimizerName::Adamw => OptimizerConfig::Adamw(AdamWConfig {
                b1: config.adam_b1,
                b2: config.adam_b2,
                weight_decay: config.weight_decay,
                ..AdamWConfig::default()
            }),
        },
        schedule: Schedule {
            lr: plan.lr,
            warmup_steps: plan.length.warmup,
            decay: match config.lr_schedule {
                ScheduleName::Constant => Decay::Constant,
                ScheduleName::Cosine => Decay::Cosine,
            },
            min_lr: config.min_lr,
            total_steps: plan.length.total,
        },
        clip_norm: Some(1.0),
        ema_decay: config.ema_decay1,
        accumulation: u32::try_from(config.grad_accum_steps)?.try_into().context("grad_accum_steps")?,
        seed: config.seed,
    })
}

/// What to go on from.
enum Resume {
    /// A checkpoint of this program.
    Own(Checkpoint),
    /// A training checkpoint of the released code.
    Released(ReleasedCheckpoint),
}

/// The checkpoint to go on from: the latest in the output folder or, if there is none yet, the one that is named.
fn resume_from(plan: &RunPlan, folder: &RunFolder) -> Result<Option<Resume>> {
    let own = folder.checkpoints().latest()?;
    let checkpoint = match (&plan.config.resume, own) {
        (None, None) => return Ok(None),
        (None, Some(own)) => own,
        (Some(name), own) => {
            let place = hub::locate(name, What::ElfCheckpoint)?;
            match own {
                Some(own) => latest_since(&place, own, plan, folder)?,
                None => match FoundModel::find(&place)? {
                    Some(found) => found.checkpoint,
                    None => {
                        let released = ReleasedCheckpoint::open(&place).with_context(|| no_run(&place))?;
                        return Ok(Some(Resume::Released(released)));
                    }
                },
            }
        }
    };
    let before = plan_of(&checkpoint)?;
    if let Some(what) = what_differs(&before, plan) {
        let path = checkpoint.path().display();
        bail!(
            "{path} was trained with another {what}: bring that back, or choose another output_dir to start anew (with --init-from \
             {path} as that model)"
        );
    }
    Ok(Some(Resume::Own(checkpoint)))
}

/// The latest checkpoint `own` of a run that is told to go on from `place`: since it began so, or is there itself. Going back would
/// lose what comes after.
fn latest_since(place: &Path, own: Checkpoint, plan: &RunPlan, folder: &RunFolder) -> Result<Checkpoint> {
    let (name, root) = (place.display(), folder.root().display());
    if plan_of(&own)?.config.resume == plan.config.resume {
        return Ok(own);
    }
    let named = FoundModel::find(place)?.map(|found| found.checkpoint);
    let same =
        |one: &Path, other: &Path| one.canonicalize().ok().zip(other.canonicalize().ok()).is_some_and(|(a, b)| a == b);
    if named.as_ref().is_some_and(|named| same(named.path(), own.path())) {
        return Ok(own);
    }
    if named.is_some_and(|named| named.path().parent().is_some_and(|parent| same(parent, folder.checkpoints().root())))
    {
        bail!(
            "{root} has gone on since {name}, up to {}: leave resume out to go on from there, or choose another output_dir",
            own.path().display()
        );
    }
    bail!(
        "{root} holds a run that did not begin from {name}: leave resume out to go on with it, or choose another output_dir"
    )
}

/// What must be the same in both plans, so that the one goes on with what the other began, and is not.
fn what_differs(before: &RunPlan, plan: &RunPlan) -> Option<&'static str> {
    let kind = |plan: &RunPlan| plan.baseline.as_ref().map(BaselinePlan::name);
    let flow = |plan: &RunPlan| (Trained::from(&plan.objective), plan.config.causal_latents);
    // Of runs of older versions less is known.
    let inputs = before.inputs.as_ref().zip(plan.inputs.as_ref());
    let encoder = before.other_encoder(plan);
    let stays = [
        ("objective", kind(before) == kind(plan)),
        ("size of the model", before.model == plan.model && before.baseline == plan.baseline),
        ("max_length, max_input_length or pad_token", before.span == plan.span),
        ("tokenizer", inputs.is_none_or(|(one, other)| one.tokenizer == other.tokenizer)),
        (
            "set of training data (data_path)",
            inputs.is_none_or(|(one, other)| one.training_data == other.training_data),
        ),
        (encoder.unwrap_or_default(), encoder.is_none()),
        ("end of conditions (condition_eos)", before.condition_eos == plan.condition_eos),
        (
            "flow (denoiser_noise_scale, t_eps, prediction, self_cond_prob, block_size or causal_latents)",
            kind(plan).is_some() || flow(before) == flow(plan),
        ),
        ("seed", before.config.seed == plan.config.seed),
        ("optimizer", before.config.optimizer == plan.config.optimizer),
        ("teacher, or step that is learned from it", same_lessons(before, plan)),
        (
            "batch size or grad_accum_steps",
            before.batch_rows * before.config.grad_accum_steps == plan.batch_rows * plan.config.grad_accum_steps,
        ),
    ];
    stays.iter().find(|(_, same)| !same).map(|(what, _)| *what)
}

/// Whether both learn the same from the same teacher, or both from none.
fn same_lessons(one: &RunPlan, other: &RunPlan) -> bool {
    let lessons = |plan: &RunPlan| plan.distillation.as_ref().map(|d| (d.step, d.teacher.blake3.clone()));
    lessons(one) == lessons(other)
}
