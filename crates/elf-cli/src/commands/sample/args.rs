//! The arguments of `elf sample`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use elf_lm::GenerateOptions;
use elf_lm::model::loaded::Method;
use elf_lm::text::generated::MOST_TEXTS;

use crate::commands::model_args::ModelArgs;
use crate::commands::sampling_args::SamplingArgs;
use crate::commands::{MOST_ROWS, at_least_one, at_most, output_file};

/// What `elf sample` generates, by which model, and where to.
#[derive(Debug, Clone, Args)]
pub struct SampleArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Number of texts to generate, for unconditional models.
    #[arg(long, short = 'n', default_value_t = 8, conflicts_with_all = ["text", "input", "data"])]
    pub num: usize,
    /// A text to generate from, for conditional models; may be repeated.
    #[arg(long)]
    pub text: Vec<String>,
    /// Texts to generate from: a Parquet, JSONL or plain text file, or the Hugging Face id of a data set.
    #[arg(long, conflicts_with = "text")]
    pub input: Option<PathBuf>,
    /// Token data to generate from, as used in training, or its Hugging Face id: the ids of conditions are used as they
    /// are, and targets are written out as references for `elf eval`.
    #[arg(long, conflicts_with_all = ["text", "input"])]
    pub data: Option<PathBuf>,
    /// The column of --input to generate from.
    #[arg(long, default_value = "text", requires = "input", conflicts_with_all = ["text", "data"])]
    pub input_column: String,
    /// The column of --input that holds reference texts; they are written out for `elf eval`.
    #[arg(long, requires = "input", conflicts_with_all = ["text", "data"])]
    pub reference_column: Option<String>,
    /// Use only the first N texts of --input or --data.
    #[arg(long)]
    pub limit: Option<usize>,

    #[command(flatten)]
    pub sampling: SamplingArgs,

    /// For an autoregressive model: beam search with this beam width; 1 is greedy, the default of conditional models.
    #[arg(long)]
    pub beam: Option<usize>,
    /// For an autoregressive model: rank beam hypotheses by log-probability divided by length to this power (1).
    #[arg(long)]
    pub length_penalty: Option<f64>,

    /// Random seed; the i-th text of a seed is the same whatever else is generated with it.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Show the first text as it forms: at several times of the flow or, if it is written block by block, at several
    /// fractions of the row.
    #[arg(long)]
    pub trace: bool,
    /// Texts generated at once (batch size).
    #[arg(long, default_value_t = 8)]
    pub batch_size: usize,
    /// Do not pad the last batch to full size. Faster for few texts, but rounding may then change a token of a text.
    #[arg(long)]
    pub ragged: bool,
    /// The JSONL file to write; several settings are written to one file each, named after the setting. Until all texts
    /// are generated, the finished ones are kept in FILE.partial, from which the same command resumes after an
    /// interruption (unless several processes share the work).
    #[arg(long, short, value_parser = output_file())]
    pub output: Option<PathBuf>,
}

/// Most steps of one text; a mistyped number must not exhaust memory.
const MOST_STEPS: usize = 100_000;

/// Widest beam.
const MOST_BEAM: usize = 1000;

/// Times at which a trace shows the text.
const TRACE: [f64; 8] = [0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0];

impl SampleArgs {
    /// What clap cannot check, and needs no model.
    pub fn check(&self) -> Result<()> {
        at_least_one(&[("--batch-size", self.batch_size)])?;
        at_most(&[
            ("--batch-size", self.batch_size, MOST_ROWS),
            ("--num", self.num, MOST_TEXTS),
            ("--steps", self.sampling.steps.unwrap_or(1), MOST_STEPS),
            ("--beam", self.beam.unwrap_or(1), MOST_BEAM),
        ])
    }

    /// The file for the texts of one of several settings, if they go to files.
    pub fn output_of(&self, method: &Method, settings: usize) -> Result<Option<PathBuf>> {
        let Some(path) = &self.output else { return Ok(None) };
        if settings == 1 {
            return Ok(Some(path.clone()));
        }
        let file = named(path, &method.name());
        if [&self.input, &self.data].into_iter().flatten().any(|input| elf_files::is_same(input, &file)) {
            bail!(
                "the texts of this setting would be written over what they are made from, {}: name another --output",
                file.display()
            );
        }
        Ok(Some(file))
    }

    /// Batches, seed and trace.
    pub fn options(&self) -> GenerateOptions {
        GenerateOptions {
            batch_size: self.batch_size,
            one_shape: !self.ragged,
            grid_seed: self.seed,
            trace: if self.trace { TRACE.to_vec() } else { Vec::new() },
            ..GenerateOptions::default()
        }
    }
}

/// `samples.jsonl` and a setting's name to `samples-NAME.jsonl`.
fn named(path: &Path, name: &str) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().map_or("jsonl".into(), |e| e.to_string_lossy());
    path.with_file_name(format!("{stem}-{name}.{extension}"))
}
