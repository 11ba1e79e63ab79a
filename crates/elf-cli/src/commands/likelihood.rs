//! `elf likelihood`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use elf_flow::BoundConfig;
use elf_hub::What;
use elf_lm::eval::likelihood::{GivenTexts, LikelihoodOptions, Likelihoods, likelihood};
use elf_lm::json_files::write_json;
use elf_lm::model::{DescribedModel, ModelRef};
use elf_lm::text::text_file::check_writable;

use super::model_args::ModelArgs;
use super::{MOST_ROWS, at_least_one, at_most, output_file};
use crate::events::Terminal;
use crate::printing::{note, out};
use crate::standard_streams::is_output;
use crate::{hub, rank_environment};

#[derive(Debug, Clone, Args)]
pub struct LikelihoodArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Texts, for a model that writes from nothing.
    #[arg(value_name = "TEXT", conflicts_with = "data")]
    texts: Vec<String>,
    /// Token data in place of texts, as used in training, or its Hugging Face id; with their conditions, if the model
    /// takes some.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Only the first N texts of --data.
    #[arg(long, default_value_t = 256)]
    limit: usize,
    /// The time at which words are read, above 0 and below 1. Texts are told apart best where the model decides on words;
    /// the bound may be smallest earlier.
    #[arg(long, default_value_t = 0.3)]
    read_at: f64,
    /// Steps to that time, of two evaluations with their gradients each.
    #[arg(long, default_value_t = 32)]
    steps: usize,
    /// Draws of each text's noise; more of them make the numbers of single texts more certain.
    #[arg(long, default_value_t = 1)]
    draws: usize,
    /// Self-conditioning guidance scale w given to the network.
    #[arg(long, default_value_t = 1.0)]
    self_cond_cfg_scale: f64,
    /// Seed of the noise.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Texts per batch.
    #[arg(long, default_value_t = 64)]
    batch_size: usize,
    /// The JSON file to write, with the numbers of each text.
    #[arg(long, short, value_parser = output_file())]
    output: Option<PathBuf>,
}

/// Most steps and draws; a mistyped number must not take days.
const MOST_STEPS: usize = 10_000;

pub fn run(mut args: LikelihoodArgs) -> Result<ExitCode> {
    rank_environment::refuse_several("elf likelihood")?;
    args.output.as_deref().map_or(Ok(()), check_writable)?;
    at_least_one(&[
        ("--batch-size", args.batch_size),
        ("--limit", args.limit),
        ("--steps", args.steps),
        ("--draws", args.draws),
    ])?;
    at_most(&[
        ("--batch-size", args.batch_size, MOST_ROWS),
        ("--steps", args.steps, MOST_STEPS),
        ("--draws", args.draws, MOST_STEPS),
    ])?;
    if !(args.read_at > 0.0 && args.read_at < 1.0) {
        bail!("--read-at: {} is not a time above 0 and below 1", args.read_at);
    }
    let texts = match args.data {
        Some(data) => GivenTexts::Shards(data),
        None if args.texts.is_empty() => {
            bail!("there is no text: name some after the model, or token data with --data")
        }
        None => GivenTexts::Plain(args.texts.clone()),
    };
    let device = args.model.device.resolve()?;
    args.model.path = hub::locate(&args.model.path, What::ElfCheckpoint)?;
    let found = ModelRef::open(&args.model.path)?.elf_only("which has no flow to follow")?;
    let mut terminal = Terminal::default();
    let host = &hub::host(&mut terminal);
    let model = DescribedModel::of(found, args.model.source(device), host)?;
    let asked = LikelihoodOptions {
        texts,
        limit: args.limit.max(args.texts.len()),
        bound: BoundConfig { read_at: args.read_at, steps: args.steps },
        draws: args.draws,
        self_cond_cfg_scale: args.self_cond_cfg_scale,
        seed: args.seed,
        batch_size: args.batch_size,
    };
    let found = likelihood(&model, &asked, host)?;
    if let Some(path) = &args.output {
        write_json(path, &found)
            .with_context(|| format!("the likelihoods could not be written to {}", path.display()))?;
        note!("written to {}", path.display());
    }
    if !args.output.as_deref().is_some_and(is_output) {
        print(&found, &args.texts)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(found: &Likelihoods, texts: &[String]) -> Result<()> {
    for (text, likelihood) in texts.iter().zip(&found.each) {
        let error = likelihood.error.map_or(String::new(), |error| format!(" +- {error:.1}"));
        out!("{:7.1}{error} bits, {:3} tokens  {text}", likelihood.bits, likelihood.tokens)?;
    }
    let error = found.error.map_or(String::new(), |error| format!(" +- {error:.3}"));
    out!(
        "{} texts, {} tokens: at most {:.3}{error} bits a token ({:.3} for the latents, {:.3} for the words), given their lengths",
        found.texts,
        found.tokens,
        found.bits_per_token,
        found.bits_of_latents,
        found.bits_of_words
    )
}
