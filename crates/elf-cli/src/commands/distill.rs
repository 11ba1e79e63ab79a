//! `elf distill`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use elf_core::device::DeviceChoice;
use elf_lm::config::{DistillConfig, Overrides, read_yaml};
use elf_lm::train::{Distillation, Ended, Rounds, WantedRounds};

use crate::events::Terminal;
use crate::{hub, progress, rank_environment};

#[derive(Debug, Args)]
pub struct DistillArgs {
    /// A YAML file of settings, with the key names of the released code. Keys it omits about data, encoder and network
    /// are taken from the teacher's run, if that was trained by this program.
    config: Option<PathBuf>,
    /// Override one setting: key=value. May be repeated; later values win.
    #[arg(short = 'o', long = "option", value_name = "KEY=VALUE")]
    options: Vec<String>,
    /// The teacher: a run's folder, a checkpoint, a parameter file from elsewhere, or a Hugging Face id; same as -o
    /// teacher_path=NAME.
    #[arg(long)]
    teacher: Option<String>,
    /// The folder of all rounds; same as -o output_dir=FOLDER.
    #[arg(long)]
    output: Option<PathBuf>,
    /// Run only this round of the curriculum, 1 to 5: students of 16, 8, 4, 2 and 1 steps.
    #[arg(long, conflicts_with = "single")]
    round: Option<usize>,
    /// Run a single round with the configuration's pd_teacher_steps and pd_step_size, in output_dir itself.
    #[arg(long)]
    single: bool,
    /// Stop and save after this many minutes; same as -o max_minutes=N.
    #[arg(long)]
    minutes: Option<f64>,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
    /// Print what would be done, and exit.
    #[arg(long)]
    plan: bool,
}

impl DistillArgs {
    fn overrides(&self) -> Result<Overrides> {
        Ok(Overrides::parse(&self.options)?
            .with("teacher_path", self.teacher.as_ref())?
            .with("output_dir", self.output.as_ref())?
            .with("max_minutes", self.minutes)?)
    }

    /// The rounds that the flags name. A key of a single round's step on the command line means that one round.
    fn rounds(&self) -> WantedRounds {
        let is_step =
            |option: &String| Rounds::STEP_KEYS.iter().any(|key| option.trim_start().starts_with(&format!("{key}=")));
        WantedRounds { round: self.round, single: self.single, own_step: self.options.iter().any(is_step) }
    }
}

pub fn run(args: DistillArgs) -> Result<ExitCode> {
    let mut terminal = Terminal::default();
    let host = hub::host(&mut terminal);
    let config: DistillConfig = read_yaml(args.config.as_deref(), &args.overrides()?, |line| host.warning(line))?;
    rank_environment::refuse_several("elf distill")?;
    let device = args.device.resolve()?;
    let distillation = Distillation::prepare(config, args.rounds(), device, rank_environment::processes_here(), &host)?;
    if args.plan {
        return Ok(ExitCode::SUCCESS);
    }
    let ended = distillation.carry_out(&host.with_stop(progress::stop_on_interrupt()?))?;
    Ok(if ended == Ended::Interrupted { ExitCode::from(130) } else { ExitCode::SUCCESS })
}
