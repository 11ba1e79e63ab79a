//! `cargo xtask reproduce`: the experiments of the paper, stage by stage, from data to report.
//!
//! A preset is a list of [stages](stage::Stage), each a few calls of `elf` with a folder of its own. What is done is not done
//! again unless its inputs change; what was interrupted goes on. In the end the figures of all stages become one report.

mod estimate;
mod mini;
mod mini_report;
mod mini_samplers;
mod mini_settings;
mod paper;
mod paper_report;
mod results;
mod runner;
mod stage;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use self::estimate::Speed;
use self::mini::Mini;
use self::mini_settings::{FULL, QUICK, Scale};
use self::paper::Paper;
use self::runner::Runner;
use self::stage::{Stage, WorkFolder, chosen};
use crate::gpu::Gpus;
use crate::libtorch::{SetUp, setup};
use crate::machine::{self, Processor};
use crate::workspace::Workspace;

/// Which experiments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// The three embedded tasks, ELF against its baselines, and the ablations. No network.
    Mini,
    /// ELF-B on OpenWebText.
    OwtB,
    /// ELF-M on OpenWebText.
    OwtM,
    /// ELF-L on OpenWebText.
    OwtL,
    /// ELF-B on WMT14, German to English.
    DeEn,
    /// ELF-B on XSum.
    Xsum,
    /// Progressive distillation of ELF-B on OpenWebText.
    Pd,
}

impl Preset {
    /// As it is called on the command line.
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// What can be chosen about a reproduction.
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
    /// Print what would be done, what it downloads and what it would cost on this machine, and exit. Measures the
    /// machine's speed first, for a few seconds.
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
    /// Where the stages keep their results. Default: runs/reproduce/PRESET.
    #[arg(long, value_name = "FOLDER")]
    work: Option<PathBuf>,
    /// Where to write the report. Default: results/DATE-PRESET.
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
/// At the first stage that fails; what was done before is kept.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    options.check()?;
    let name = options.full_name();
    let work = options.work.clone().unwrap_or_else(|| Path::new("runs/reproduce").join(&name));
    let Some(work_text) = work.to_str().filter(|path| !path.contains(char::is_whitespace)) else {
        bail!("{} has a space in it, which calls of elf cannot carry here: choose another --work", work.display());
    };
    let paper = Paper { preset: options.preset, work: work_text, from_released: options.from_released };
    let mini = Mini { work: work_text, scale: options.scale() };
    let stages: Vec<Stage> = match options.preset {
        Preset::Mini => mini.stages(),
        _ => paper.stages(),
    };
    let selected = chosen(&stages, &options.only)?;

    let libtorch = setup(workspace, SetUp::Once)?;
    println!("libtorch: {libtorch}");
    let elf = workspace.build(&libtorch, "elf-cli", "elf")?;
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
        Preset::Mini => mini_report::report(&mini, &results, options.quick)?,
        _ => paper_report::report(&paper, &results)?,
    };
    let files = results::write(&report, &results, &output)?;
    println!("\nThe report:");
    for file in files {
        println!("    {}", workspace.short(&file).display());
    }
    Ok(())
}

/// The machine, in a line.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Work folders are named so.
    #[test]
    fn presets_have_the_names_of_the_command_line() {
        let names: Vec<String> = Preset::value_variants().iter().map(|preset| preset.name()).collect();
        assert_eq!(names, ["mini", "owt-b", "owt-m", "owt-l", "de-en", "xsum", "pd"]);
    }
}
