//! `elf train`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;

use anyhow::{Context, Result};
use clap::Args;
use elf_core::device::DeviceChoice;
use elf_lm::Events;
use elf_lm::config::{Overrides, RunConfig, read_yaml, template};
use elf_lm::train::{Ended, Ranks, TrainingRun};

use crate::events::Terminal;
use crate::printing::out;
use crate::training_view::TrainingView;
use crate::{hub, progress, rank_environment};

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
    /// Show loss curves, the latest metrics and the newest texts on the whole terminal; without a terminal, lines as usual.
    #[arg(long)]
    watch: bool,
    /// Print what would be done, and exit.
    #[arg(long)]
    plan: bool,
    /// Print a configuration with every key, its meaning and its value (the default, or as set by CONFIG and -o), and
    /// exit.
    #[arg(long, conflicts_with = "plan")]
    template: bool,
}

impl TrainArgs {
    fn overrides(&self) -> Result<Overrides> {
        Ok(Overrides::parse(&self.options)?
            .with("output_dir", self.output.as_ref())?
            .with("resume", self.resume.as_ref())?
            .with("init_from", self.init_from.as_ref())?
            .with("max_minutes", self.minutes)?)
    }
}

pub fn run(args: TrainArgs) -> Result<ExitCode> {
    let (device, comm) = rank_environment::meet(args.device)?;
    let ranks = Ranks { device, comm: comm.into(), processes_here: rank_environment::processes_here() };
    let comm = Rc::clone(&ranks.comm);
    train_on(args, ranks).inspect_err(|error| comm.stopping_for(&format!("{error:#}")))
}

/// What one of the ranks does, which are all started with the same arguments.
fn train_on(args: TrainArgs, ranks: Ranks) -> Result<ExitCode> {
    let first = ranks.comm.rank() == 0;
    let watched = args.watch && first && !args.plan && !args.template && std::io::stderr().is_terminal();
    let mut events: Box<dyn Events> = match watched {
        true => Box::new(TrainingView::begin().context("cannot draw on this terminal; leave --watch out")?),
        false => Box::new(Terminal::default()),
    };
    let host = hub::host(&mut *events);
    let warn = |line| {
        if first {
            host.warning(line);
        }
    };
    let config: RunConfig = read_yaml(args.config.as_deref(), &args.overrides()?, warn)?;
    if args.template {
        if first {
            out!("{}", template(&config)?.trim_end())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let run = TrainingRun::prepare(&config, ranks, &host)?;
    if args.plan {
        return Ok(ExitCode::SUCCESS);
    }
    let ended = run.carry_out(&host.with_stop(progress::stop_on_interrupt()?))?;
    Ok(if ended == Ended::Interrupted { ExitCode::from(130) } else { ExitCode::SUCCESS })
}
