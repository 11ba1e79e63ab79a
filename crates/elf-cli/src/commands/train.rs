//! `elf train`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use clap::Args;
use elf_core::ParamBuilder;
use elf_core::device::DeviceChoice;
use elf_flow::tokens::NextToken;
use elf_model::Elf;
use elf_train::{Comm, EndToEnd, OverTokens};
use tch::Device;

use crate::events::Terminal;
use crate::{progress, rank_environment};
use elf_lm::Reporter;
use elf_lm::config::{BaselinePlan, Overrides, RunConfig, read_yaml, template};
use elf_lm::gpt2::{self as baseline, BaselineSubject};
use elf_lm::model::run_folder::RunFolder;
use elf_lm::train::{Ended, InitialWeights, Job, Materials, agree, check_evaluations, deadline, train, train_subject};

#[derive(Debug, Args)]
pub struct TrainArgs {
    /// A YAML file of settings, with the key names of the released code.
    config: Option<PathBuf>,
    /// Override one setting: key=value. May be repeated; later values win.
    #[arg(short = 'o', long = "option", value_name = "KEY=VALUE")]
    options: Vec<String>,
    /// The run's folder; same as -o output_dir=FOLDER.
    #[arg(long)]
    output: Option<PathBuf>,
    /// Stop and save after this many minutes; same as -o max_minutes=N.
    #[arg(long)]
    minutes: Option<f64>,
    /// Resume from this run or checkpoint, or from a training checkpoint of the released code; same as -o resume=PATH.
    #[arg(long)]
    resume: Option<PathBuf>,
    /// Initialise from this model, with a fresh optimiser: to fine-tune a released checkpoint, or to teach a trained
    /// model another task; same as -o init_from=MODEL.
    #[arg(long, value_name = "MODEL")]
    init_from: Option<PathBuf>,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
    /// Print what would be done, and exit.
    #[arg(long)]
    plan: bool,
    /// Print a configuration with every key, its meaning and its value (the default, or as set by CONFIG and -o), and
    /// exit.
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
    say(materials.describe(&plan, device, comm.world()));
    let initial = InitialWeights::find(&plan, &materials.tokenizer)?;
    if let Some(initial) = &initial {
        say(format!("start:   {}", initial.path().display()));
    }
    materials.memory(&plan, device, comm.world()).check(&plan, device, rank_environment::processes_here())?;
    // What evaluations cannot do should be known now and not after the first epoch.
    check_evaluations(&plan, &materials)?;
    if config.online_eval {
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
    let (plan, materials) = (&plan, &materials);
    let mut terminal = Terminal::default();
    let events = &Reporter::new(&mut terminal);
    let job = Job { plan, materials, folder: &folder, initial: initial.as_ref(), comm, stop, deadline, events };
    let ended = match &plan.baseline {
        None => {
            let net = Elf::new(plan.model.clone(), plan.precision, plan.config.seed, device)?;
            match plan.model.learned_latents {
                true => train(job, EndToEnd(plan.objective), net)?,
                false => train(job, plan.objective, net)?,
            }
        }
        Some(BaselinePlan::Gpt2(sizes)) => {
            let net = baseline::gpt2(sizes, plan, plan.precision, builder)?;
            let objective = OverTokens(NextToken { bos: i64::from(materials.tokenizer.eos_id()?) });
            let subject = BaselineSubject::<_, NextToken>::new(plan, &materials.tokenizer)?;
            train_subject(job, &subject, objective, net)?
        }
        Some(BaselinePlan::Mdlm { network, objective }) => {
            let net = baseline::masked(network, plan, plan.precision, builder)?;
            let subject = BaselineSubject::new(plan, &materials.tokenizer)?;
            train_subject(job, &subject, OverTokens(*objective), net)?
        }
    };
    Ok(match ended {
        Ended::Interrupted => ExitCode::from(130),
        _ => ExitCode::SUCCESS,
    })
}
