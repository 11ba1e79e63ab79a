//! `elf export`: what somebody else needs of a run, in one small folder.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};
use elf_lm::model::export::{ExportOptions, Exported, export};
use tch::Kind;

use crate::events::Terminal;
use crate::hub;
use crate::printing::note;

/// The kind of the numbers in the file.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ExportedAs {
    /// Matrices as 8-bit integers with a scale for each row, other parameters in bf16: half the size of bf16.
    Int8,
    Bf16,
    F32,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// A run's folder (its latest checkpoint is used) or a checkpoint's.
    run: PathBuf,
    /// The folder to write model.safetensors, config.yml, tokenizer.json and README.md to, which `elf sample` accepts
    /// as a model; it must not exist yet.
    output: PathBuf,
    /// Where to look for the encoder, relative to the exported folder or to the working directory of `elf`. Default: as
    /// in the run.
    #[arg(long, value_name = "NAME")]
    encoder: Option<String>,
    /// Export the raw trained parameters instead of their running averages (EMA).
    #[arg(long)]
    raw: bool,
    /// Number format of model.safetensors.
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: ExportedAs,
    /// The model's name on the model card.
    #[arg(long)]
    title: Option<String>,
    /// What the model card should say about the texts and their licence.
    #[arg(long)]
    data_note: Option<String>,
    /// An evaluation written by `elf eval --output`, for the model card; may be repeated.
    #[arg(long, value_name = "FILE")]
    evaluation: Vec<PathBuf>,
    /// A file of sampling settings to ship with the model, which `elf sample` then uses by default. Without one, a
    /// distilled model gets the number of steps it was distilled for.
    #[arg(long, value_name = "FILE")]
    sampling_config: Option<PathBuf>,
    /// A weaker version of the model for autoguidance, a run's folder: it is exported to the folder `guide`, for
    /// sampling settings with `guide: guide`.
    #[arg(long, value_name = "RUN", requires = "sampling_config")]
    guide: Option<PathBuf>,
}

pub fn run(args: ExportArgs) -> Result<ExitCode> {
    let asked = ExportOptions {
        run: args.run,
        output: args.output,
        encoder: args.encoder,
        averaged: !args.raw,
        stored_as: match args.dtype {
            ExportedAs::Int8 => Kind::Int8,
            ExportedAs::Bf16 => Kind::BFloat16,
            ExportedAs::F32 => Kind::Float,
        },
        title: args.title,
        data_note: args.data_note,
        evaluations: args.evaluation,
        sampling: args.sampling_config,
        guide: args.guide,
    };
    let mut terminal = Terminal::default();
    let Exported { tensors, from } = export(&asked, &hub::host(&mut terminal))?;
    note!("{tensors} tensors of {} written to {}", from.display(), asked.output.display());
    Ok(ExitCode::SUCCESS)
}
