//! `elf eval`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use elf_core::device::DeviceChoice;
use elf_data::source::{PlainText, Source, TEXT_COLUMN};
use elf_eval::jsonl;
use elf_hub::What;
use serde_json::Value;

use super::sample::precision;
use crate::hub;
use crate::judge::{Judge, JudgeSettings, Judged, report};
use crate::run_folder::write_json;

#[derive(Debug, Args)]
pub struct EvalArgs {
    /// A JSONL file of texts as `elf sample` writes them: field `text` or `prediction`, with `reference` for conditional tasks.
    #[arg(long)]
    samples: PathBuf,
    /// A folder with a GPT-2 and its tokenizer.json, or a Hugging Face id such as gpt2-large, which judges perplexity and entropy.
    #[arg(long)]
    judge: Option<PathBuf>,
    /// Longest text that the judge reads, in its tokens.
    #[arg(long, default_value_t = 1024)]
    judge_max_length: usize,
    /// Training texts (Parquet, JSONL, plain text) to find copies of.
    #[arg(long, num_args = 1..)]
    training: Vec<PathBuf>,
    /// The text column of --training.
    #[arg(long, default_value = TEXT_COLUMN)]
    training_column: String,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
    /// Run the judge in fp32 also where the device has bf16.
    #[arg(long)]
    f32: bool,
    /// Write the report as JSON, too.
    #[arg(long, short)]
    output: Option<PathBuf>,
}

/// Whether any line of a JSONL file has a reference: then all must, and a line without one is an error that names it.
fn names_references(path: &Path) -> Result<bool> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let has = |line: &str| serde_json::from_str::<Value>(line).is_ok_and(|v| v.get("reference").is_some());
    Ok(text.lines().any(has))
}

pub fn run(args: EvalArgs) -> Result<ExitCode> {
    let device = args.device.resolve()?;
    let texts = jsonl::read_texts(&args.samples)?;
    let references = match names_references(&args.samples)? {
        true => Some(jsonl::read_pairs(&args.samples)?.into_iter().map(|p| p.reference).collect::<Vec<_>>()),
        false => None,
    };
    let training = match args.training.is_empty() {
        true => None,
        false => {
            let source = Source::open(
                &hub::locate_all(&args.training, What::Dataset)?,
                &[&args.training_column],
                PlainText::Lines,
            )?;
            Some(source.texts().collect::<Result<Vec<_>, _>>()?)
        }
    };
    let judge_folder = args.judge.as_ref().map(|name| hub::locate(name, What::Gpt2)).transpose()?;
    if let Some(folder) = judge_folder.as_ref().filter(|f| !f.is_dir()) {
        bail!(
            "the judge {} is no folder: name one with config.json, model.safetensors and tokenizer.json",
            folder.display()
        );
    }
    let judge_name = args.judge.as_ref().map_or(String::new(), |name| name.display().to_string());
    let judge = judge_folder.as_deref().map(|folder| {
        Judge::load(&JudgeSettings {
            name: &judge_name,
            folder,
            max_length: args.judge_max_length,
            batch_size: None,
            device,
            precision: precision(args.f32, device),
        })
    });
    let judged = Judged { texts: &texts, references: references.as_deref(), training: training.as_deref() };
    let report = report(&args.samples.display().to_string(), &judged, judge.transpose()?.as_ref())?;
    println!("{}", report.to_markdown());
    if let Some(path) = &args.output {
        write_json(path, &report).with_context(|| format!("the report could not be written to {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
