//! `elf pull`.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use elf_hub::{Reference, What};

use crate::hub;
use crate::printing::out;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    /// A text encoder: its configuration, weights and tokenizer.
    Encoder,
    /// A GPT-2 to judge text with: its configuration, weights and tokenizer.
    Judge,
    /// A tokenizer.json.
    Tokenizer,
    /// A data set.
    Dataset,
    /// A trained model.
    Checkpoint,
}

#[derive(Debug, Args)]
pub struct PullArgs {
    /// What to fetch: org/name, org/name@revision, org/name:file, org/name@revision:file.
    #[arg(required = true)]
    references: Vec<String>,
    /// What it is, which determines the files to fetch. Not needed if a file is named.
    #[arg(long, value_enum)]
    kind: Option<Kind>,
}

pub fn run(args: PullArgs) -> Result<ExitCode> {
    let what = match args.kind {
        Some(Kind::Encoder) => What::Encoder,
        Some(Kind::Judge) => What::Gpt2,
        Some(Kind::Tokenizer) => What::Tokenizer,
        Some(Kind::Dataset) => What::Dataset,
        Some(Kind::Checkpoint) => What::ElfCheckpoint,
        None => What::File,
    };
    let fetcher = hub::fetcher()?;
    // All names first: a slip of the pen in the last must not be found after an hour.
    let references = args.references.iter().map(|text| Reference::parse(text)).collect::<Result<Vec<_>, _>>()?;
    if let Some(whole) = references.iter().find(|r| what == What::File && r.file().is_none()) {
        bail!(
            "{whole}: say what it is for with --kind (encoder, judge, tokenizer, dataset, checkpoint), or which file with {whole}:FILE"
        );
    }
    for reference in &references {
        out!("{}", fetcher.fetch(reference, what)?.display())?;
    }
    Ok(ExitCode::SUCCESS)
}
