//! `elf encoder cut`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use elf_lm::Silent;
use elf_lm::encoder::{CutSettings, cut};
use elf_lm::text::text_column::TextColumn;

use super::encoder_args::{StoredAs, this_command};
use crate::hub;
use crate::printing::out;

#[derive(Debug, Args)]
pub struct CutArgs {
    /// An encoder of the BERT family: a folder or a Hugging Face id.
    source: PathBuf,
    /// Keep this many layers, counted from the embeddings; the output of the last of them becomes the latents. All by
    /// default.
    #[arg(long)]
    layers: Option<usize>,
    /// Texts whose word pieces are counted, FILE:COLUMN; the vocabulary is cut by the counts. Without it the vocabulary
    /// stays.
    #[arg(long, value_name = "FILE:COLUMN", num_args = 1..)]
    count_over: Vec<TextColumn>,
    /// Keep the pieces that were counted this many times; special tokens and single characters are kept in any case.
    #[arg(long, default_value_t = 2)]
    min_count: u64,
    /// The folder to write to, which must not exist yet.
    #[arg(long)]
    output: PathBuf,
    /// Number format of model.safetensors.
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: StoredAs,
    /// What the model card should say about the source and its licence.
    #[arg(long)]
    note: Option<String>,
}

pub fn run(args: CutArgs) -> Result<ExitCode> {
    let CutArgs { source, layers, count_over, min_count, output, dtype, note } = args;
    let (kind, command) = (dtype.kind(), this_command());
    let settings = CutSettings { source, layers, count_over, min_count, output, kind, note, command };
    let kept = cut(&settings, &hub::host(&mut Silent))?;
    out!(
        "{}, {} words of {}, {} parameters; written to {}",
        kept.describe,
        kept.words.0,
        kept.words.1,
        kept.parameters,
        settings.output.display()
    )?;
    Ok(ExitCode::SUCCESS)
}
