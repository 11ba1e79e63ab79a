//! `elf train`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use elf_core::device::{DeviceChoice, describe};
use elf_core::{ParamBuilder, Precision};
use elf_data::evaluation;
use elf_data::{Cursor, Dataset, Share, Tokenizer};
use elf_flow::LatentBatch;
use elf_flow::tokens::NextToken;
use elf_hub::What;
use elf_model::Elf;
use elf_train::optim::{AdamWConfig, MuonConfig, OptimizerConfig};
use elf_train::{
    Checkpoint, Comm, Decay, EndToEnd, KeepPolicy, Observer, Outcome, OverTokens, ReleasedCheckpoint, Run, RunControl,
    Schedule, Trainer, TrainerConfig, TrainingObjective,
};
use serde_json::Value;
use tch::Device;

use crate::baseline::{self, BaselineSubject};
use crate::config::{
    BaselinePlan, Facts, ObjectiveName, OptimizerName, Overrides, RunConfig, RunPlan, ScheduleName, read_yaml, template,
};
use crate::held_out::{HeldOut, TrainingJudge, sampling_settings};
use crate::initial_weights::InitialWeights;
use crate::memory_plan::MemoryPlan;
use crate::run_folder::{FoundModel, RunFolder, no_run};
use crate::text_latents::{self, TextLatents, encoder_folder};
use crate::training_log::TrainingLog;
use crate::training_subject::{ElfSubject, Subject, SubjectBatches};
use crate::{hub, progress, rank_environment};

#[derive(Debug, Args)]
pub struct TrainArgs {
    /// A YAML file of settings, with the key names of the released code.
    config: Option<PathBuf>,
    /// Change one setting: key=value. May be given several times; later ones win.
    #[arg(short = 'o', long = "option", value_name = "KEY=VALUE")]
    options: Vec<String>,
    /// The run's folder; as -o output_dir=FOLDER.
    #[arg(long)]
    output: Option<PathBuf>,
    /// Stop and save after so many minutes; as -o max_minutes=N.
    #[arg(long)]
    minutes: Option<f64>,
    /// Go on from this run or checkpoint, or from a training checkpoint of the released code; as -o resume=PATH.
    #[arg(long)]
    resume: Option<PathBuf>,
    /// Begin as this model, with a new optimiser: to fine-tune a released checkpoint, or to teach a trained model another task; as
    /// -o init_from=MODEL.
    #[arg(long, value_name = "MODEL")]
    init_from: Option<PathBuf>,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
    /// Say what would be done, and stop.
    #[arg(long)]
    plan: bool,
    /// Print a configuration with every key, what it means and its value: the default, or what CONFIG and -o say; and stop.
    #[arg(long)]
    template: bool,
}

impl TrainArgs {
    fn overrides(&self) -> Result<Overrides> {
        let mut all = self.options.clone();
        let text = |path: &PathBuf| serde_json::to_string(path).context("a path that is not Unicode");
        if let Some(path) = &self.output {
            all.push(format!("output_dir={}", text(path)?));
        }
        if let Some(path) = &self.resume {
            all.push(format!("resume={}", text(path)?));
        }
        if let Some(path) = &self.init_from {
            all.push(format!("init_from={}", text(path)?));
        }
        if let Some(minutes) = self.minutes {
            all.push(format!("max_minutes={minutes}"));
        }
        Ok(Overrides(all))
    }
}

pub fn run(args: TrainArgs) -> Result<ExitCode> {
    let (device, comm) = rank_environment::meet(args.device)?;
    let comm: Rc<dyn Comm> = comm.into();
    train_on(args, device, &comm).inspect_err(|error| comm.stopping_for(&format!("{error:#}")))
}

/// What one of the ranks does, which are all started with the same arguments.
fn train_on(args: TrainArgs, device: Device, comm: &Rc<dyn Comm>) -> Result<ExitCode> {
    // The first rank speaks for all.
    let say = |line: String| {
        if comm.rank() == 0 {
            eprintln!("{line}");
        }
    };
    let config: RunConfig =
        read_yaml(args.config.as_deref(), &args.overrides()?, |line| say(format!("warning: {line}")))?;
    if args.template {
        if comm.rank() == 0 {
            print!("{}", template(&config)?);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let materials = Materials::load(&config, device)?;
    let plan = materials.plan(&config, device, comm.world() as usize)?;
    agree(&plan, &materials, comm.as_ref())?;
    let Some(output) = &config.output_dir else { bail!("output_dir is not set: where should the run be written?") };
    let folder = RunFolder::new(output);
    say(describe_plan(&plan, &materials, device, comm.world()));
    let initial = InitialWeights::find(&plan, &materials.tokenizer)?;
    if let Some(initial) = &initial {
        say(format!("start:   {}", initial.path().display()));
    }
    materials.memory(&plan, device, comm.world()).check(&plan, device)?;
    if config.online_eval {
        // A file that is missing should be known now and not after the first epoch.
        sampling_settings(&plan)?;
        let judge = match &materials.judge {
            Some(judge) => format!("perplexity is judged by {}", judge.name()),
            None if config.max_input_length.is_some() => "texts are held against references".to_owned(),
            None => {
                "eval_ppl_model is not set, so no perplexity is measured (gpt2-large in the released code)".to_owned()
            }
        };
        say(format!("note:    evaluations write texts to {}/samples; {judge}", folder.root().display()));
    }
    if args.plan {
        return Ok(ExitCode::SUCCESS);
    }
    let stop = progress::stop_on_interrupt()?;
    let deadline = deadline(&config);
    let builder = ParamBuilder::seeded(plan.config.seed, device);
    let (plan, materials, folder, initial) = (&plan, &materials, &folder, initial.as_ref());
    let ended = match &plan.baseline {
        None => {
            let net = Elf::new(plan.model.clone(), plan.precision, plan.config.seed, device)?;
            match plan.model.learned_latents {
                true => {
                    let objective = EndToEnd(plan.objective);
                    train(Job { plan, materials, folder, initial, objective, comm, stop, deadline }, net)?
                }
                false => train(
                    Job { plan, materials, folder, initial, objective: plan.objective, comm, stop, deadline },
                    net,
                )?,
            }
        }
        Some(BaselinePlan::Gpt2(sizes)) => {
            let net = baseline::gpt2(sizes, plan, plan.precision, builder)?;
            let objective = OverTokens(NextToken { bos: i64::from(materials.tokenizer.eos_id()?) });
            let subject = BaselineSubject::<_, NextToken>::new(plan, &materials.tokenizer)?;
            train_subject(Job { plan, materials, folder, initial, objective, comm, stop, deadline }, &subject, net)?
        }
        Some(BaselinePlan::Mdlm { network, objective }) => {
            let net = baseline::masked(network, plan, plan.precision, builder)?;
            let objective = OverTokens(*objective);
            let subject = BaselineSubject::new(plan, &materials.tokenizer)?;
            train_subject(Job { plan, materials, folder, initial, objective, comm, stop, deadline }, &subject, net)?
        }
    };
    Ok(match ended {
        Ended::Interrupted => ExitCode::from(130),
        Ended::Finished | Ended::OutOfData | Ended::OutOfTime => ExitCode::SUCCESS,
    })
}

/// When the minutes that a configuration gives are over.
pub fn deadline(config: &RunConfig) -> Option<Instant> {
    config.max_minutes.map(|m| Instant::now() + Duration::from_secs_f64(m * 60.0))
}

/// What training needs beside settings.
pub struct Materials {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The rows to train on.
    pub train: Arc<Dataset>,
    /// The encoder; none for baselines.
    latents: Option<TextLatents>,
    device: Device,
    held_out: Option<Dataset>,
    judge: Option<TrainingJudge>,
}

impl Materials {
    /// Opens all that a configuration names.
    ///
    /// # Errors
    /// Names the key whose value cannot be used.
    pub fn load(config: &RunConfig, device: Device) -> Result<Self> {
        let Some(data_path) = &config.data_path else {
            bail!("data_path is not set: which token shards should be trained on?")
        };
        let tokenizer_path = match &config.tokenizer_name {
            Some(name) => hub::locate(name, What::Tokenizer).context("tokenizer_name")?,
            None => encoder_folder(config)?,
        };
        let tokenizer = Tokenizer::load(&tokenizer_path)
            .with_context(|| format!("the tokenizer {} (tokenizer_name) cannot be used", tokenizer_path.display()))?;
        let open = |path: &String, key: &str| -> Result<Dataset> {
            let place = hub::locate(path, What::Dataset).with_context(|| key.to_owned())?;
            let mut dataset = Dataset::open(&[place]).with_context(|| format!("{key} {path}"))?;
            dataset.check_tokenizer(&tokenizer).with_context(|| format!("{key} {path}"))?;
            if config.max_input_length.is_some() && !dataset.is_conditional() {
                bail!(
                    "{key} {path} has no conditions, but max_input_length is set: prepare it with --condition-column, or set max_input_length to null"
                );
            }
            Ok(dataset)
        };
        let train = Arc::new(open(data_path, "data_path")?);
        let held_out = match &config.eval_data_path {
            Some(path) if evaluation::is_pairs(path.as_ref()) && config.max_input_length.is_some() => {
                let pairs = evaluation::read_pairs(path.as_ref())?;
                Some(Dataset::from_pairs(pairs, &tokenizer, train.eos_options(&tokenizer)?)?)
            }
            Some(path) => Some(open(path, "eval_data_path")?),
            None => None,
        };
        let latents = match config.objective {
            ObjectiveName::Elf => Some(encoder(config, &tokenizer, device)?),
            ObjectiveName::Gpt2 | ObjectiveName::Mdlm => None,
        };
        let judge = TrainingJudge::find(config, device)?;
        Ok(Self { tokenizer, train, latents, device, held_out, judge })
    }

    /// The encoder that latents come from.
    ///
    /// # Errors
    /// If they were loaded for a baseline.
    pub fn latents(&self) -> Result<&TextLatents> {
        self.latents.as_ref().context("a baseline has no text encoder: set objective to elf")
    }

    /// What the plan will take on each of so many ranks.
    pub fn memory(&self, plan: &RunPlan, device: Device, ranks: u64) -> MemoryPlan {
        let of_one =
            RunPlan { batch_rows: plan.batch_rows / usize::try_from(ranks).unwrap_or(1).max(1), ..plan.clone() };
        MemoryPlan::new(&of_one, self.latents.as_ref().map_or(0, TextLatents::parameters), device)
    }

    /// What follows from a configuration and these materials.
    ///
    /// # Errors
    /// Names the setting that is impossible.
    pub fn plan(&self, config: &RunConfig, device: Device, ranks: usize) -> Result<RunPlan> {
        let facts = Facts {
            latent_dim: self.latents.as_ref().map_or(1, TextLatents::dim),
            vocab_size: self.tokenizer.vocab_size() as i64,
            rows: self.train.len() as u64,
            condition_eos: self.train.is_conditional() && self.train.eos_options(&self.tokenizer)?.condition,
            ranks,
        };
        if let Some(wanted) =
            config.condition_eos.filter(|&wanted| self.train.is_conditional() && wanted != facts.condition_eos)
        {
            bail!(
                "condition_eos is {wanted}, but the conditions of the training data {} in EOS: leave the key out, or prepare the data {}",
                if wanted { "do not end" } else { "end" },
                if wanted { "with --eos-condition" } else { "without --eos-condition" }
            );
        }
        RunPlan::new(config, facts, device)
    }
}

/// The encoder that a configuration names, for ids of this tokenizer.
fn encoder(config: &RunConfig, tokenizer: &Tokenizer, device: Device) -> Result<TextLatents> {
    let precision = if config.use_bf16 { Precision::native(device) } else { Precision::F32 };
    let latents = TextLatents::load(config, device, precision)?;
    if latents.vocab_size() < tokenizer.vocab_size() as i64 {
        bail!(
            "the encoder knows {} token ids, but the tokenizer has {}: they do not belong together",
            latents.vocab_size(),
            tokenizer.vocab_size()
        );
    }
    Ok(latents)
}

/// Refuses to start unless all ranks run the same program on the same configuration and the same data.
fn agree(plan: &RunPlan, materials: &Materials, comm: &dyn Comm) -> Result<()> {
    let Value::Object(plan) = serde_json::to_value(plan)? else { bail!("a plan is no object") };
    let Some(Value::Object(config)) = plan.get("config") else { bail!("a plan has no configuration") };
    let mut facts = vec![("the program", program_fingerprint()?)];
    facts.extend(config.iter().map(|(key, value)| (key.as_str(), value.to_string())));
    facts.extend(plan.iter().filter(|(key, _)| *key != "config").map(|(key, value)| (key.as_str(), value.to_string())));
    facts.push(("the tokenizer", materials.tokenizer.fingerprint().to_owned()));
    facts.push(("the training data", data_fingerprint(&materials.train)?));
    let held_out = materials.held_out.as_ref().map(data_fingerprint).transpose()?;
    facts.push(("the held-out data", held_out.unwrap_or_else(|| "none".into())));
    Ok(comm.agree(&facts)?)
}

/// The version of this program, to the byte.
fn program_fingerprint() -> Result<String> {
    let path = std::env::current_exe().context("this program cannot be found again")?;
    let mut hasher = blake3::Hasher::new();
    let read = std::fs::File::open(&path).and_then(|file| hasher.update_reader(file).map(|_| ()));
    read.with_context(|| format!("{} cannot be read", path.display()))?;
    Ok(format!("{} ({})", env!("CARGO_PKG_VERSION"), &hasher.finalize().to_hex()[..12]))
}

/// Number and content of the rows, the latter from the first, the last, and some between.
fn data_fingerprint(data: &Dataset) -> Result<String> {
    const LOOKED_AT: usize = 64;
    let (rows, mut hasher) = (data.len(), blake3::Hasher::new());
    for i in 0..LOOKED_AT.min(rows) {
        let example = data.example(i * rows.saturating_sub(1) / LOOKED_AT.min(rows).saturating_sub(1).max(1))?;
        for ids in example.condition_ids.iter().chain([&example.input_ids]) {
            hasher.update(&(ids.len() as u64).to_le_bytes());
            ids.iter().for_each(|id| _ = hasher.update(&id.to_le_bytes()));
        }
    }
    Ok(format!("{rows} rows ({})", &hasher.finalize().to_hex()[..12]))
}

/// What will be trained on what, in lines for a user.
pub fn describe_plan(plan: &RunPlan, materials: &Materials, device: Device, ranks: u64) -> String {
    let (model, length) = (&plan.model, &plan.length);
    let rows = plan.batch_rows * plan.config.grad_accum_steps;
    let kind = match &plan.baseline {
        None => format!("latents of {} channels", model.text_encoder_dim),
        Some(baseline) => format!("{} of {} parameters", baseline.describe(), baseline.parameter_count()),
    };
    let latents = match &materials.latents {
        Some(_) if model.learned_latents => "learned with the network".to_owned(),
        Some(latents) => text_latents::describe(latents.stats()),
        None => "none".to_owned(),
    };
    format!(
        "model:   {} blocks of width {}, {} heads, {kind}, {} words\n\
         data:    {} rows to train on, {} held out; {} positions a row\n\
         latents: {latents}\n\
         length:  {} optimiser steps of {rows} rows ({:.2} epochs), {} of them warm-up; learning rate {}{}\n\
         memory:  about {}\n\
         device:  {}, rank 0 of {}; blocks in {}",
        model.depth,
        model.hidden_size,
        model.num_heads,
        model.vocab_size,
        materials.train.len(),
        materials.held_out.as_ref().map_or(0, Dataset::len),
        plan.span.max_length,
        length.total,
        length.total as f64 / length.steps_per_epoch,
        length.warmup,
        plan.lr,
        plan.config.max_minutes.map_or(String::new(), |m| format!("; at most {m} minutes")),
        materials.memory(plan, device, ranks),
        describe(device),
        ranks,
        plan.precision.blocks,
    )
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

/// Trains `net`, or what its folder's latest checkpoint makes of it, to the end of the plan, and tells the user how it went.
///
/// # Errors
/// If anything fails; what was saved before stands.
pub fn train<O: TrainingObjective<Elf, Batch = LatentBatch> + Copy>(job: Job<O>, mut net: Elf) -> Result<Ended> {
    net.set_recompute(job.plan.config.gradient_checkpointing);
    let subject = ElfSubject::new(job.plan, &job.materials.tokenizer, job.materials.latents()?);
    train_subject(job, &subject, net)
}

/// [`train`], for any kind of model.
fn train_subject<S>(job: Job<S::Objective>, subject: &S, net: S::Net) -> Result<Ended>
where
    S: Subject<Objective: Copy>,
{
    let Job { plan, materials, folder, initial, objective, comm, stop, deadline } = job;
    let first = comm.rank() == 0;
    let config = trainer_config(plan, materials.device)?;
    let resume = resume_from(plan, folder)?;
    // A run that has checkpoints has begun already.
    if let Some(initial) = initial.filter(|_| resume.is_none()) {
        initial.load_into(objective.params(&net))?;
        if first {
            eprintln!("beginning as {}", initial.path().display());
        }
    }
    let mut trainer = Trainer::new(net, objective, config, Box::new(Rc::clone(comm)))?;
    for group in trainer.groups().iter().filter(|_| first) {
        eprintln!("{:8} moves {} parameters ({} numbers)", group.rule, group.params.len(), group.numel);
    }

    let cursor = match resume {
        Some(Resume::Released(checkpoint)) => {
            trainer.restore_released(&checkpoint)?;
            let step = trainer.steps_done();
            if first {
                eprintln!(
                    "resuming from {} (step {step}, epoch {}) of the released code",
                    checkpoint.path().display(),
                    checkpoint.epoch()?
                );
            }
            if first && checkpoint.is_amid_a_step() {
                eprintln!(
                    "warning: it was saved between the micro-batches of a step; their gradients are not taken over"
                );
            }
            let rows = (plan.batch_rows * plan.config.grad_accum_steps) as u64;
            // The same place in the data; its order is this program's own from here on.
            let per_epoch = (materials.train.len() as u64 / rows).max(1);
            Cursor { epoch: step / per_epoch, position: step % per_epoch * rows }
        }
        Some(Resume::Own(checkpoint)) => {
            trainer.restore(&checkpoint)?;
            if first {
                eprintln!("resuming from {} (step {})", checkpoint.path().display(), trainer.steps_done());
            }
            serde_json::from_value(checkpoint.state().cursor.clone())
                .context("the checkpoint's place in the data is from another version of this program")?
        }
        None => {
            trainer.agree_on_place()?;
            Cursor::default()
        }
    };
    // One writer: the first rank.
    let metrics = first.then(|| {
        folder.begin(plan, &materials.tokenizer)?;
        folder.metrics_from(trainer.steps_done())
    });
    let share = Share {
        rank: comm.rank() as usize,
        world: comm.world() as usize,
        micro_batch: plan.batch_rows / comm.world() as usize,
    };
    let mut source = SubjectBatches::start(plan, materials, subject, share, cursor)?;
    let mut observer = TrainingLog::new(
        plan,
        metrics.transpose()?,
        Rc::clone(comm),
        trainer.steps_done(),
        deadline,
        Arc::clone(&stop),
    );
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
    let (ended, what) = match outcome {
        Outcome::Finished => (Ended::Finished, "finished"),
        Outcome::NoLongerBetter => {
            (Ended::Finished, "stopped: held-out rows were no longer learned better; the best checkpoint was kept")
        }
        Outcome::OutOfData => (Ended::OutOfData, "stopped at the end of the data"),
        Outcome::Stopped if out_of_time => (Ended::OutOfTime, "stopped after the minutes it was given"),
        Outcome::Stopped => (Ended::Interrupted, "interrupted; run the same command again to go on"),
    };
    if first {
        eprintln!("{what} after step {}; everything is in {}", trainer.steps_done(), folder.root().display());
    }
    Ok(ended)
}

/// One run to be carried out.
pub struct Job<'a, O> {
    /// What is to be done.
    pub plan: &'a RunPlan,
    /// With what.
    pub materials: &'a Materials,
    /// Where to.
    pub folder: &'a RunFolder,
    /// What its network begins as, if not as it is given.
    pub initial: Option<&'a InitialWeights>,
    /// The loss, in training and on held-out rows.
    pub objective: O,
    /// Who shares in the work.
    pub comm: &'a Rc<dyn Comm>,
    /// Set from outside to stop and save.
    pub stop: Arc<AtomicBool>,
    /// When to stop and save.
    pub deadline: Option<Instant>,
}

/// How a run came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// All steps are done.
    Finished,
    /// The batches ended before the steps did.
    OutOfData,
    /// The deadline was over.
    OutOfTime,
    /// It was asked to stop.
    Interrupted,
}

/// What to go on from.
enum Resume {
    /// A checkpoint of this program.
    Own(Checkpoint),
    /// A training checkpoint of the released code.
    Released(ReleasedCheckpoint),
}

/// The checkpoint to go on from: the one named, or the latest in the output folder.
fn resume_from(plan: &RunPlan, folder: &RunFolder) -> Result<Option<Resume>> {
    let checkpoint = match &plan.config.resume {
        None => folder.checkpoints().latest()?,
        Some(path) => {
            let place = hub::locate(path, What::ElfCheckpoint)?;
            if place.exists() && !FoundModel::is_at(&place) {
                return Ok(Some(Resume::Released(ReleasedCheckpoint::open(&place).with_context(|| no_run(&place))?)));
            }
            Some(FoundModel::at(&place)?.checkpoint)
        }
    };
    let Some(checkpoint) = checkpoint else { return Ok(None) };
    let before: RunPlan = serde_json::from_value(checkpoint.state().plan.clone()).with_context(|| {
        format!("the plan in {} is from another version of this program", checkpoint.path().display())
    })?;
    let stays = [
        (
            "objective",
            before.baseline.as_ref().map(BaselinePlan::name) == plan.baseline.as_ref().map(BaselinePlan::name),
        ),
        ("the model's sizes", before.model == plan.model && before.baseline == plan.baseline),
        ("max_length, max_input_length or pad_token", before.span == plan.span),
        ("the encoder's vocabulary or data", before.condition_eos == plan.condition_eos),
        ("seed", before.config.seed == plan.config.seed),
        ("optimizer", before.config.optimizer == plan.config.optimizer),
        ("the teacher, or the step that is learned from it", same_lessons(&before, plan)),
        (
            "batch size or grad_accum_steps",
            before.batch_rows * before.config.grad_accum_steps == plan.batch_rows * plan.config.grad_accum_steps,
        ),
    ];
    if let Some((what, _)) = stays.iter().find(|(_, same)| !same) {
        bail!(
            "{} was trained with another setting of {what}: set it back, or choose another output_dir to start anew",
            checkpoint.path().display()
        );
    }
    Ok(Some(Resume::Own(checkpoint)))
}

/// Whether both learn the same from the same teacher, or both from none.
fn same_lessons(one: &RunPlan, other: &RunPlan) -> bool {
    let lessons = |plan: &RunPlan| plan.distillation.as_ref().map(|d| (d.step, d.teacher.blake3.clone()));
    lessons(one) == lessons(other)
}
