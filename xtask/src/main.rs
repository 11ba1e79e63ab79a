//! `cargo xtask`: the project's only script language. It finds or fetches libtorch, examines the machine, and runs the demo, the
//! experiments, the tests, the checks of continuous integration and the benches.
//!
//! It deliberately knows nothing of tensors or models and never links libtorch: it has to build in
//! seconds on a machine that has nothing but Rust, and it runs the program `elf` as a child process.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod checks;
mod compiler;
mod cuda_kernels;
mod demo;
mod doctor;
mod gpu;
mod gpu_check;
#[cfg(test)]
mod house_rules;
mod libtorch;
mod machine;
mod metrics;
mod nccl;
mod python;
mod reproduce;
mod rival;
mod source;
mod steps;
mod training_figures;
mod wheel;
mod workspace;

use crate::libtorch::{SetUp, setup};
use crate::workspace::Workspace;

/// Sets up, checks, tests and demonstrates Embedded Language Flows.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find libtorch or fetch it, so that plain `cargo build`, `cargo test` and `cargo run` work.
    Setup {
        /// Look for libtorch again, even though a usable one is linked already.
        #[arg(long)]
        again: bool,
    },
    /// Examine this machine's tools, libraries and hardware, and print each problem with its remedy.
    Doctor {
        /// Print one JSON object instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Run all tests, documentation tests included.
    Test {
        /// Passed on to `cargo test`, e.g. `-p elf-data` or a test's name.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Build the Python package into target/wheels, and test it in a scratch environment.
    Python(wheel::Options),
    /// From scratch to generated text: build, prepare, train a small model, sample, evaluate.
    Demo(demo::Options),
    /// Run the experiments: train, sample, evaluate and report. Safe to interrupt and run again.
    Reproduce(reproduce::Options),
    /// Measure training and sampling against the same equations in PyTorch (`tests/rival/`), in turns, on this machine.
    Rival(rival::Options),
    /// Build the library for training on several GPUs, which needs the headers of NCCL and CUDA.
    Nccl(nccl::Options),
    /// Pack a folder that checks and measures everything on a machine with a GPU and a Python torch, in minutes: `sh run.sh`.
    GpuCheck(gpu_check::Options),
    /// Compile the kernels for GPUs ahead of time, with an nvcc that is fetched first, and print the registers of each; none may be
    /// spilled. No GPU is needed, and no program needs the result.
    CudaKernels(cuda_kernels::Options),
    /// Print figures of the source: lines, public items and dependencies of each package, the longest files and functions.
    Metrics(metrics::Options),
    /// Run the checks of continuous integration except the tests: format, lints, documentation, benches.
    Ci,
    /// Fuzz the readers of checkpoints, indices and Arrow files with thousands of random changes to real files. The tests
    /// do the same with a few hundred.
    Fuzz {
        /// Number of changed files of each kind.
        #[arg(long, default_value_t = 10_000)]
        cases: u32,
    },
    /// Run the benches of one crate, or of all.
    Bench {
        /// The crate, e.g. `elf-data`. Default: all crates.
        package: Option<String>,
        /// Passed on to the benches, e.g. a bench's name.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    steps::outlive_children_on_interrupt()?;
    match task {
        Task::Setup { again } => {
            let how = if again { SetUp::Again } else { SetUp::Once };
            let libtorch = setup(&workspace, how)?;
            println!("libtorch: {libtorch}");
            println!("`cargo build --release`, `cargo test --release` and `cargo run --release --bin elf` now work.");
        }
        Task::Doctor { json } => return doctor::run(&workspace, json),
        Task::Test { arguments } => checks::test(&workspace, &arguments)?,
        Task::Python(options) => wheel::run(&workspace, &options)?,
        Task::Demo(options) => demo::run(&workspace, &options)?,
        Task::Reproduce(options) => reproduce::run(&workspace, &options)?,
        Task::Rival(options) => rival::run(&workspace, &options)?,
        Task::Nccl(options) => nccl::run(&workspace, &options)?,
        Task::GpuCheck(options) => gpu_check::run(&workspace, &options)?,
        Task::CudaKernels(options) => cuda_kernels::run(&workspace, &options)?,
        Task::Metrics(options) => metrics::run(&workspace, &options)?,
        Task::Ci => checks::ci(&workspace)?,
        Task::Fuzz { cases } => checks::fuzz(&workspace, cases)?,
        Task::Bench { package, arguments } => {
            checks::bench(&workspace, package.as_deref(), &arguments)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn test_passes_flags_of_cargo_through() {
        let typed = ["xtask", "test", "-p", "elf-data", "--", "--nocapture"];
        let Task::Test { arguments } = Arguments::parse_from(typed).task else {
            panic!("`test` is parsed as another task");
        };
        assert_eq!(arguments, ["-p", "elf-data", "--", "--nocapture"]);
    }
}
