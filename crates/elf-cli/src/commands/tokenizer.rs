//! `elf tokenizer`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use elf_data::source::{PlainText, Source, TEXT_COLUMN};
use elf_data::{UnigramConfig, train_unigram};
use elf_hub::What;

use crate::printing::out;
use crate::{hub, progress};
use elf_lm::text::text_column::TextColumn;

#[derive(Debug, Subcommand)]
pub enum TokenizerCommand {
    /// Train a Unigram tokenizer with T5's normaliser and special tokens.
    Train(TrainTokenizerArgs),
}

#[derive(Debug, Args)]
pub struct TrainTokenizerArgs {
    /// Parquet, JSONL or plain text files, or folders of them; or Hugging Face ids of data sets.
    #[arg(long, required_unless_present = "text", num_args = 1..)]
    input: Vec<PathBuf>,
    /// The text column.
    #[arg(long, default_value = TEXT_COLUMN, requires = "input")]
    column: String,
    /// One column of one file; repeat to combine several into one corpus.
    #[arg(long, value_name = "FILE:COLUMN")]
    text: Vec<TextColumn>,
    /// Vocabulary size.
    #[arg(long, default_value_t = UnigramConfig::default().vocab_size)]
    vocab_size: usize,
    /// Use only every n-th text, for very large corpora.
    #[arg(long, default_value_t = 1)]
    every_nth: usize,
    /// The folder (or file) to write tokenizer.json to.
    #[arg(long)]
    output: PathBuf,
}

pub fn run(command: TokenizerCommand) -> Result<ExitCode> {
    let TokenizerCommand::Train(args) = command;
    let mut silent = elf_lm::Silent;
    let host = hub::host(&mut silent);
    let mut sources: Vec<Source> = args.text.iter().map(|text| text.open(&host)).collect::<elf_lm::Result<_>>()?;
    if !args.input.is_empty() {
        let files = hub::locate_all(&args.input, What::Dataset)?;
        sources.push(Source::open(&files, &[&args.column], PlainText::Lines)?);
    }
    if let Some(empty) = sources.iter().find(|source| source.texts().next().is_none()) {
        let files: Vec<_> = empty.files().iter().map(|file| file.display().to_string()).collect();
        bail!("{} holds no text to train on", files.join(", "));
    }
    let config = UnigramConfig { vocab_size: args.vocab_size, every_nth: args.every_nth, ..UnigramConfig::default() };
    let spinner = progress::spinner();
    spinner.set_message("reading");
    let texts = sources.iter().flat_map(Source::texts);
    let trained = train_unigram(&config, texts, &mut |texts| spinner.set_message(format!("{texts} texts read")))?;
    spinner.finish_and_clear();
    trained.tokenizer.save(&args.output)?;
    out!(
        "{} entries from {} texts ({} different words); written to {}",
        trained.tokenizer.vocab_size(),
        trained.texts_used,
        trained.words,
        args.output.display()
    )?;
    Ok(ExitCode::SUCCESS)
}
