//! `elf encoder`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use elf_lm::Silent;
use elf_lm::encoder::{Destination, init};

use super::encoder_args::SizeArgs;
use super::encoder_cut::CutArgs;
use super::encoder_stats::StatsArgs;
use super::encoder_train::TrainArgs;
use crate::hub;
use crate::printing::out;

#[derive(Debug, Subcommand)]
pub enum EncoderCommand {
    /// Create a T5 encoder with random weights: the paper's simplest encoder, and a start without any download.
    Init(InitArgs),
    /// Pre-train a T5 encoder on your own texts: spans are masked out, and a decoder, later discarded, learns to
    /// generate them.
    Train(Box<TrainArgs>),
    /// Cut layers and vocabulary of an encoder of the BERT family down to what a corpus needs.
    Cut(CutArgs),
    /// Measure the mean and standard deviation of an encoder's latents on a corpus; training normalises by them.
    Stats(StatsArgs),
}

#[derive(Debug, Args)]
pub struct InitArgs {
    /// The tokenizer whose ids the encoder reads: a tokenizer.json, the folder containing one, or a Hugging Face id.
    #[arg(long)]
    tokenizer: PathBuf,
    #[command(flatten)]
    sizes: SizeArgs,
    /// Seed of the weights.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The folder to write config.json, model.safetensors and tokenizer.json to.
    #[arg(long)]
    output: PathBuf,
    /// Overwrite another encoder in --output, including statistics measured on it.
    #[arg(long)]
    overwrite: bool,
}

pub fn run(command: EncoderCommand) -> Result<ExitCode> {
    match command {
        EncoderCommand::Init(args) => run_init(args),
        EncoderCommand::Train(args) => super::encoder_train::run(*args),
        EncoderCommand::Cut(args) => super::encoder_cut::run(args),
        EncoderCommand::Stats(args) => super::encoder_stats::run(&args),
    }
}

fn run_init(args: InitArgs) -> Result<ExitCode> {
    let InitArgs { tokenizer, sizes, seed, output: folder, overwrite } = args;
    let to = Destination { folder, overwrite };
    let parameters = init(&sizes.sizes(), &tokenizer, seed, &to, &hub::host(&mut Silent))?;
    out!("a T5 encoder with {parameters} random parameters; written to {}", to.folder.display())?;
    Ok(ExitCode::SUCCESS)
}
