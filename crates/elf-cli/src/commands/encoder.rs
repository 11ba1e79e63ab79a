//! `elf encoder`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use elf_core::device::DeviceChoice;
use elf_core::{ParamBuilder, Precision};
use elf_data::{CollateConfig, Collator, Dataset, PadToken, Tokenizer};
use elf_encoder::{EncoderMask, LatentMoments, PerChannel, T5Config, T5Encoder, TextEncoder};
use elf_hub::What;
use tch::{Device, Tensor};

use super::encoder_train::TrainArgs;
use super::{at_least_one, at_most};
use crate::{hub, progress};
use elf_lm::config::{Overrides, RunConfig, read_yaml, with_numbers};
use elf_lm::model::run_folder::write;
use elf_lm::text::text_latents::{STATS_FILE, describe, write_stats};

#[derive(Debug, Subcommand)]
pub enum EncoderCommand {
    /// Create a T5 encoder with random weights: the paper's simplest encoder, and a start without any download.
    Init(InitArgs),
    /// Pre-train a T5 encoder on your own texts: spans are masked out, and a decoder, later discarded, learns to
    /// generate them.
    Train(Box<TrainArgs>),
    /// Keep only the token embedding table of a T5 encoder: latents without context, for comparison.
    Table(TableArgs),
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

#[derive(Debug, Args)]
pub struct StatsArgs {
    /// The encoder's folder, to which latent_stats.json is written; or a Hugging Face id, for which the numbers are
    /// only printed.
    encoder: PathBuf,
    /// Token shards to measure on: files, folders, or Hugging Face ids of data sets.
    #[arg(long, required = true, num_args = 1..)]
    data: Vec<PathBuf>,
    /// Number of rows to measure on.
    #[arg(long, default_value_t = 2048)]
    rows: usize,
    /// Truncate rows to this many tokens.
    #[arg(long, default_value_t = 512)]
    max_length: usize,
    /// Use a single mean and standard deviation for all channels, as in the released recipes, instead of one per
    /// channel.
    #[arg(long)]
    overall: bool,
    /// Also set latent_mean and latent_std, the same for all channels, in this run configuration; the rest of the file
    /// is left as it is. They then take precedence over latent_stats.json.
    #[arg(long, value_name = "CONFIG.yml")]
    write_into: Option<PathBuf>,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
}

/// Longest row to measure on.
const LONGEST: usize = 1 << 16;

/// Behind which key of a configuration the numbers go, if they are not in it yet.
const BESIDE: [&str; 2] = ["encoder_checkpoint", "encoder_model_name"];

/// A configuration's text with the numbers in it.
fn with_stats(path: &Path, mean: f64, std: f64) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    with_numbers(&text, &[("latent_mean", mean), ("latent_std", std)], &BESIDE)
        .with_context(|| format!("{} cannot be changed", path.display()))
}

pub fn run(command: EncoderCommand) -> Result<ExitCode> {
    match command {
        EncoderCommand::Init(args) => run_init(args),
        EncoderCommand::Train(args) => super::encoder_train::run(*args),
        EncoderCommand::Table(args) => run_table(&args),
        EncoderCommand::Stats(args) => run_stats(args),
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

fn run_stats(args: StatsArgs) -> Result<ExitCode> {
    at_least_one(&[("--rows", args.rows), ("--max-length", args.max_length)])?;
    at_most(&[("--max-length", args.max_length, LONGEST)])?;
    let device = args.device.resolve()?;
    if let Some(path) = &args.write_into {
        // What cannot be written into should be known before an hour of measuring.
        let _: RunConfig = read_yaml(Some(path), &Overrides::default(), |_| {})?;
        with_stats(path, 0.0, 1.0)?;
    }
    let encoder = T5Encoder::load(&hub::locate(&args.encoder, What::Encoder)?, device, Precision::F32)
        .with_context(|| format!("the encoder {} cannot be used", args.encoder.display()))?;
    let dataset = Dataset::open(&hub::locate_all(&args.data, What::Dataset)?)?;
    if dataset.is_empty() {
        bail!("the shards hold no rows to measure on");
    }
    let config = CollateConfig { max_length: args.max_length, max_input_length: None, pad_token: PadToken::Pad };
    let collator = Collator::with_fill_id(config, 0)?;
    let mut moments = LatentMoments::new(usize::try_from(encoder.dim()).context("the encoder's width")?);
    let rows = args.rows.clamp(1, dataset.len());
    let bar = progress::bar(rows as u64, "rows");
    // Evenly over the corpus, which need not be shuffled.
    let chosen: Vec<usize> = (0..rows).map(|i| i * dataset.len() / rows).collect();
    for chunk in chosen.chunks(32) {
        let batch = collator.collate(&dataset.examples(chunk)?)?;
        let shape = [batch.rows as i64, batch.seq_len as i64];
        let ids = Tensor::f_from_slice(&batch.input_ids)?.f_view(shape)?;
        let valid = Tensor::f_from_slice(&batch.is_valid())?.f_view(shape)?.f_to_device(device)?;
        // Rows are far shorter than they may be in most corpora: nothing is computed behind the longest.
        let longest =
            batch.valid_len.iter().copied().max().map_or(shape[1], |longest| longest as i64).clamp(1, shape[1]);
        let (ids, valid) = (ids.f_narrow(1, 0, longest)?, valid.f_narrow(1, 0, longest)?);
        moments.add(&encoder.encode(&ids, EncoderMask::Columns(&valid))?, &valid)?;
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    let overall = moments.overall()?;
    println!("over {} positions: {}", moments.positions(), describe(&overall));
    if let Some(path) = &args.write_into {
        let (PerChannel::All(mean), PerChannel::All(std)) = (overall.mean(), overall.std()) else {
            bail!("the overall numbers are of single channels");
        };
        let text = with_stats(path, *mean, *std)?;
        write(path, text)?;
        println!("latent_mean and latent_std are set in {}", path.display());
    }
    if !args.encoder.is_dir() {
        // The hub's cache is shared with other programs: nothing of ours belongs into a model there.
        if args.write_into.is_none() {
            println!(
                "{} comes from the hub: set latent_mean and latent_std to these numbers in the configuration, or let --write-into do it",
                args.encoder.display()
            );
        }
        return Ok(ExitCode::SUCCESS);
    }
    write_stats(&args.encoder, &if args.overall { overall } else { moments.per_channel()? })?;
    println!("written to {}", args.encoder.join(STATS_FILE).display());
    Ok(ExitCode::SUCCESS)
}
