//! `cargo xtask reproduce`: the experiments of the paper, stage by stage, from data to report.
//!
//! A preset is a list of [stages](stage::Stage), each a few calls of `elf` with a folder of its own. A finished stage is done again
//! only if its inputs change; an interrupted one is resumed. In the end the figures of all stages become one report.

mod estimate;
mod mini;
mod paper;
mod preset;
mod progress;
mod results;
mod runner;
mod stage;
mod work_folder;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;

use self::estimate::Speed;
use self::mini::Mini;
use self::mini::settings::{FULL, QUICK, Scale};
use self::paper::Paper;
use self::preset::Preset;
use self::runner::Runner;
use self::stage::{Stage, chosen};
use self::work_folder::WorkFolder;
use crate::gpu::Gpus;
use crate::libtorch::{SetUp, setup};
use crate::machine::{self, Processor};
use crate::workspace::Workspace;

/// Settings of a reproduction.
#[derive(Debug, Args)]
pub struct Options {
    /// The experiments to run.
    #[arg(value_enum, default_value = "mini")]
    preset: Preset,
    /// For `mini`: less of everything, about a quarter of an hour on two cores. Shows that everything runs, not what
    /// ELF can do.
    #[arg(long)]
    quick: bool,
    /// For the paper's presets: evaluate the released checkpoints instead of training.
    #[arg(long)]
    from_released: bool,
    /// Print the stages, their downloads and their estimated cost on this machine, and exit. Measures the machine's speed
    /// first, for a few seconds.
    #[arg(long)]
    dry_run: bool,
    /// Run only this stage, or all stages whose names start with this and a slash, and what they depend on. May be
    /// repeated.
    #[arg(long, value_name = "STAGE")]
    only: Vec<String>,
    /// Run this many stages at once, each with its share of the processor's threads. On a CPU, small networks benefit a
    /// lot: two cores get half as much again done. Each stage's output goes to the file log.txt in its folder.
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::MIN)]
    jobs: NonZeroUsize,
    /// For --dry-run: the speed of another machine, as measured there by `elf bench --json FILE`.
    #[arg(long, value_name = "FILE")]
    bench: Option<PathBuf>,
    /// The folder of the stages' results. Default: runs/reproduce/PRESET.
    #[arg(long, value_name = "FOLDER")]
    work: Option<PathBuf>,
    /// The folder of the report. Default: results/DATE-PRESET.
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

impl Options {
    fn check(&self) -> Result<()> {
        if self.quick && self.preset != Preset::Mini {
            bail!("--quick belongs to the preset mini; the paper's settings have no quick form");
        }
        if self.from_released && self.preset == Preset::Mini {
            bail!("--from-released belongs to the paper's presets; mini trains its own models");
        }
        if self.bench.is_some() && !self.dry_run {
            bail!("--bench is for estimates: use it with --dry-run");
        }
        Ok(())
    }

    fn scale(&self) -> &'static Scale {
        if self.quick { &QUICK } else { &FULL }
    }

    /// `mini`, `mini-quick`, `owt-b`, `owt-b-released` ...
    fn full_name(&self) -> String {
        let suffix = match (self.quick, self.from_released) {
            (true, _) => "-quick",
            (_, true) => "-released",
            _ => "",
        };
        format!("{}{suffix}", self.preset.name())
    }
}

/// Runs the preset and writes its report.
///
/// # Errors
/// At the first stage that fails; the results of finished stages are kept.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    options.check()?;
    let name = options.full_name();
    let work = options.work.clone().unwrap_or_else(|| Path::new("runs/reproduce").join(&name));
    let paper = Paper { preset: options.preset, work: &work, from_released: options.from_released };
    let mini = Mini { work: &work, scale: options.scale() };
    let stages: Vec<Stage> = match options.preset {
        Preset::Mini => mini.stages(),
        _ => paper.stages(),
    };
    let selected = chosen(&stages, &options.only)?;

    let libtorch = setup(workspace, SetUp::Once)?;
    println!("libtorch: {libtorch}");
    let elf = workspace.build(&libtorch, "elf")?;
    let speed = match (&options.bench, options.dry_run) {
        (Some(file), _) => Speed::read(file)?,
        (None, true) => Speed::measure(&elf, workspace, options.preset)?,
        // Only the progress view uses it, and it learns from the stages themselves.
        (None, false) => Speed::assumed(),
    };
    let runner = Runner {
        elf,
        root: workspace.root.clone(),
        work: WorkFolder::new(workspace.root.join(&work)),
        revision: runner::revision(&workspace.root),
        host: host(),
        jobs: options.jobs.get(),
    };
    if options.dry_run {
        println!("{}", estimate::table(&runner, &stages, &selected, &speed)?);
        return Ok(());
    }
    let outcomes = runner.run(&stages, &selected, speed.flops)?;
    if !options.only.is_empty() {
        println!("\nDone. Without --only the rest follows, and the report.");
        return Ok(());
    }
    let output = options
        .output
        .clone()
        .unwrap_or_else(|| workspace.root.join("results").join(format!("{}-{name}", results::today())));
    let results = results::Results { runner: &runner, stages: &stages, outcomes: &outcomes, preset: &name };
    let report = match options.preset {
        Preset::Mini => mini::report::report(&mini, &results, options.quick)?,
        _ => paper::report::report(&paper, &results)?,
    };
    let files = results::write(&report, &results, &output)?;
    println!("\nThe report:");
    for file in files {
        println!("    {}", workspace.short(&file).display());
    }
    Ok(())
}

/// The machine, in one line.
fn host() -> String {
    let processor = Processor::here();
    let memory = machine::memory().map(|(total, _)| format!(", {:.0} GiB", total as f64 / f64::from(1 << 30)));
    let gpus = Gpus::here().map(|gpus| gpus.names()).unwrap_or_default();
    format!(
        "{}, {} threads ({}){}{}",
        processor.model,
        processor.threads,
        processor.features().join(", "),
        memory.unwrap_or_default(),
        if gpus.is_empty() { String::new() } else { format!("; {}", gpus.join(", ")) }
    )
}
