//! `elf encoder`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use elf_core::{ParamBuilder, Precision};
use elf_data::Tokenizer;
use elf_encoder::{T5Config, T5Encoder};
use elf_hub::What;
use tch::Device;

use super::encoder_cut::CutArgs;
use super::encoder_stats::StatsArgs;
use super::encoder_train::TrainArgs;
use crate::hub;
use elf_lm::text::text_latents::STATS_FILE;

#[derive(Debug, Subcommand)]
pub enum EncoderCommand {
    /// Create a T5 encoder with random weights: the paper's simplest encoder, and a start without any download.
    Init(InitArgs),
    /// Pre-train a T5 encoder on your own texts: spans are masked out, and a decoder, later discarded, learns to
    /// generate them.
    Train(Box<TrainArgs>),
    /// Keep only the token embedding table of a T5 encoder: latents without context, for comparison.
    Table(TableArgs),
    /// Cut layers and vocabulary of an encoder of the BERT family down to what a corpus needs.
    Cut(CutArgs),
    /// Measure the mean and standard deviation of an encoder's latents on a corpus; training normalises by them.
    Stats(StatsArgs),
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FeedForwardName {
    Relu,
    GatedGelu,
}

impl FeedForwardName {
    /// As Hugging Face's files name it.
    fn name(self) -> &'static str {
        match self {
            FeedForwardName::Relu => "relu",
            FeedForwardName::GatedGelu => "gated-gelu",
        }
    }
}

/// The sizes of an encoder.
#[derive(Debug, Args)]
pub struct EncoderSizes {
    /// Channels of a latent (C).
    #[arg(long, default_value_t = 128)]
    d_model: i64,
    /// Channels per attention head.
    #[arg(long, default_value_t = 32)]
    d_kv: i64,
    /// Inner width of the feed-forward layers.
    #[arg(long, default_value_t = 256)]
    d_ff: i64,
    /// Number of blocks.
    #[arg(long, default_value_t = 2)]
    num_layers: i64,
    /// Number of attention heads.
    #[arg(long, default_value_t = 4)]
    num_heads: i64,
    /// The kind of feed-forward layer.
    #[arg(long, value_enum, default_value = "relu")]
    feed_forward: FeedForwardName,
}

impl std::fmt::Display for EncoderSizes {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { d_model, d_kv, d_ff, num_layers, num_heads, feed_forward } = self;
        write!(
            f,
            "{num_layers} blocks of width {d_model}, {num_heads} heads of {d_kv}, feed-forward {d_ff} ({})",
            feed_forward.name()
        )
    }
}

impl EncoderSizes {
    /// An encoder of these sizes for a tokenizer's ids.
    ///
    /// # Errors
    /// If a size is impossible.
    pub fn config(&self, tokenizer: &Tokenizer) -> Result<T5Config> {
        let feed_forward = self.feed_forward.name();
        // Through the file's own form, so that what is left out has the file format's defaults.
        Ok(T5Config::from_json(&serde_json::to_string(&serde_json::json!({
            "vocab_size": tokenizer.vocab_size(), "d_model": self.d_model, "d_kv": self.d_kv, "d_ff": self.d_ff,
            "num_layers": self.num_layers, "num_heads": self.num_heads, "feed_forward_proj": feed_forward,
        }))?)?)
    }
}

#[derive(Debug, Args)]
pub struct InitArgs {
    /// The tokenizer whose ids the encoder reads: a tokenizer.json, the folder containing one, or a Hugging Face id.
    #[arg(long)]
    tokenizer: PathBuf,
    #[command(flatten)]
    sizes: EncoderSizes,
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

#[derive(Debug, Args)]
pub struct TableArgs {
    /// The encoder's folder, or a Hugging Face id.
    #[arg(long)]
    from: PathBuf,
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
        EncoderCommand::Table(args) => run_table(&args),
        EncoderCommand::Cut(args) => super::encoder_cut::run(&args),
        EncoderCommand::Stats(args) => super::encoder_stats::run(&args),
    }
}

/// The files of an encoder.
const FILES: [&str; 3] = ["config.json", "model.safetensors", "tokenizer.json"];

/// What says something of the encoder that lay in a folder before.
const ABOUT: [&str; 2] = [STATS_FILE, "README.md"];

/// Writes an encoder's folder, whole or not at all. One that holds the same encoder stays as it is, with what was measured on it, or gets the files
/// of it that it lacks; one with anything else is written into only if `overwrite` says so.
fn ship(encoder: &T5Encoder, tokenizer: &Tokenizer, output: &Path, overwrite: bool) -> Result<()> {
    let cannot = || format!("cannot write {}", output.display());
    let aside = elf_files::begin_folder(output).with_context(cannot)?;
    encoder.save(aside.path())?;
    tokenizer.save(aside.path().join("tokenizer.json"))?;
    let taken = output.is_file() || fs::read_dir(output).is_ok_and(|mut inside| inside.next().is_some());
    if !taken {
        return elf_files::finish_folder(aside, output).with_context(cannot);
    }
    let there = FILES.map(|name| fs::read(output.join(name)).ok());
    let mut wanted = Vec::new();
    for name in FILES {
        wanted.push(fs::read(aside.path().join(name)).with_context(cannot)?);
    }
    let same = there.iter().zip(&wanted).filter(|(there, wanted)| there.as_ref() == Some(wanted)).count();
    if same == FILES.len() {
        return Ok(());
    }
    let half = same > 0 && same == there.iter().flatten().count();
    if !half && !overwrite {
        bail!(
            "{} is there already and is not this encoder: choose another --output, or write over it with --overwrite",
            output.display()
        );
    }
    for name in ABOUT {
        match fs::remove_file(output.join(name)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).with_context(cannot),
            _ => {}
        }
    }
    FILES.iter().try_for_each(|name| fs::rename(aside.path().join(name), output.join(name))).with_context(cannot)
}

fn run_init(args: InitArgs) -> Result<ExitCode> {
    let tokenizer = Tokenizer::load(hub::locate(&args.tokenizer, What::Tokenizer)?)?;
    let config = args.sizes.config(&tokenizer)?;
    let encoder = T5Encoder::new(&config, ParamBuilder::seeded(args.seed, Device::Cpu), Precision::F32)?;
    ship(&encoder, &tokenizer, &args.output, args.overwrite)?;
    println!("a T5 encoder with {} random parameters; written to {}", encoder.params().numel(), args.output.display());
    Ok(ExitCode::SUCCESS)
}

fn run_table(args: &TableArgs) -> Result<ExitCode> {
    let folder = hub::locate(&args.from, What::Encoder)?;
    let tokenizer = Tokenizer::load(hub::locate(&args.from, What::Tokenizer)?)?;
    let encoder = T5Encoder::load(&folder, Device::Cpu, Precision::F32)?;
    let table = encoder.token_table()?;
    ship(&table, &tokenizer, &args.output, args.overwrite)?;
    println!("a table of {} numbers; written to {}", table.params().numel(), args.output.display());
    Ok(ExitCode::SUCCESS)
}
