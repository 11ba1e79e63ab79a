//! `elf convert`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use elf_lm::train::conversion::{Converted, Converting, convert};

use crate::events::Terminal;
use crate::hub;
use crate::printing::note;

#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// A PyTorch checkpoint, a safetensors file, an index of shards, a folder (its latest checkpoint is used), a run of
    /// this program, or a Hugging Face id.
    input: PathBuf,
    /// The file to write: safetensors if it ends in .safetensors, otherwise a PyTorch checkpoint that the released code
    /// loads. For a run that trained a GPT-2, a folder in Hugging Face format, tokenizer included, unless it ends in
    /// .safetensors.
    output: PathBuf,
    /// Convert the raw trained parameters instead of their running averages (EMA).
    #[arg(long, conflicts_with = "all")]
    raw: bool,
    /// Convert everything in a training checkpoint: both sets of parameters, optimiser, schedule, counts. This is the
    /// default when converting a run of this program to a PyTorch checkpoint, unless --raw is given.
    #[arg(long)]
    all: bool,
}

pub fn run(args: ConvertArgs) -> Result<ExitCode> {
    let ConvertArgs { input, output, raw, all } = args;
    let asked = Converting { input, output, raw, all };
    let mut terminal = Terminal::default();
    let Converted { tensors, from } = convert(&asked, &hub::host(&mut terminal))?;
    note!("{tensors} tensors of {} written to {}", from.display(), asked.output.display());
    Ok(ExitCode::SUCCESS)
}
