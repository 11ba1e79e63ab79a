//! `elf correct`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use elf_core::key_of;
use elf_hub::What;
use elf_lm::Model;
use elf_lm::json_files::write;
use elf_lm::model::{Correction, CorrectionOptions, DescribedModel, ModelRef, WordInContext};
use elf_lm::text::text_file::check_writable;
use serde::Serialize;

use super::given_texts::GivenTexts;
use super::model_args::ModelArgs;
use super::sampling_args::SamplingArgs;
use super::{at_least_one, at_most, output_file};
use crate::events::Terminal;
use crate::printing::{note, out};
use crate::standard_streams::is_output;
use crate::{hub, rank_environment};

/// Texts, the model that corrects them, and where to.
#[derive(Debug, Clone, Args)]
pub struct CorrectArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Texts to correct.
    #[arg(value_name = "TEXT", conflicts_with = "input")]
    texts: Vec<String>,
    /// Texts to correct, one from each row: a Parquet, JSONL or plain text file, or the Hugging Face id of a data set.
    #[arg(long)]
    input: Option<PathBuf>,
    /// The column of --input with the texts.
    #[arg(long, default_value = "text", requires = "input")]
    input_column: String,
    /// Use only the first N texts of --input.
    #[arg(long, requires = "input")]
    limit: Option<usize>,
    /// Only show what the model thinks of each word, given all others: its probability, and what it would rather read. Nothing is
    /// written anew.
    #[arg(long)]
    words: bool,
    /// Write those words anew than which others are likelier by a factor of at least e to this power, if the words that stay become likelier
    /// by a third of it in all.
    #[arg(long, value_name = "NATS", default_value_t = CorrectionOptions::default().doubt)]
    doubt: f64,
    /// Most rounds of rewriting, each of which starts from the text of the round before.
    #[arg(long, default_value_t = CorrectionOptions::default().rounds)]
    rounds: usize,
    /// Texts to choose from in each round, for each choice of words that are written anew.
    #[arg(long, default_value_t = CorrectionOptions::default().candidates)]
    candidates: usize,

    #[command(flatten)]
    sampling: SamplingArgs,

    /// Random seed; the i-th text of a seed is the same whatever else is corrected with it.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The JSONL file to write: each text, corrected, with its changes; with --words, each text with its words.
    #[arg(long, short, value_parser = output_file())]
    output: Option<PathBuf>,
}

/// Most rounds and candidates; a mistyped number must not take days.
const MOST: usize = 1024;

/// What a model says of a text.
#[derive(Serialize)]
#[serde(untagged)]
enum Answer<'t> {
    Corrected(Correction),
    Judged { text: &'t str, words: Vec<WordInContext> },
}

pub fn run(mut args: CorrectArgs) -> Result<ExitCode> {
    rank_environment::refuse_several("elf correct")?;
    args.output.as_deref().map_or(Ok(()), check_writable)?;
    at_least_one(&[("--rounds", args.rounds), ("--candidates", args.candidates)])?;
    at_most(&[("--rounds", args.rounds, MOST), ("--candidates", args.candidates, MOST)])?;
    if !(0.0..=f64::INFINITY).contains(&args.doubt) {
        bail!("--doubt: {} is not a number of nats, from 0 on", args.doubt);
    }
    let texts = args.given_texts()?;
    let device = args.model.device.resolve()?;
    args.model.path = hub::locate(&args.model.path, What::ElfCheckpoint)?;
    let found = ModelRef::open(&args.model.path)?.elf_only("which does not correct texts")?;
    let mut terminal = Terminal::default();
    let host = &hub::host(&mut terminal);
    let model = DescribedModel::of(found, args.model.source(device), host)?;
    let settings = args.sampling.settings(&model, host)?;
    let [sampling] = settings.as_slice() else {
        bail!("there are {} sampling settings, and a text is corrected with one: name it with options", settings.len());
    };
    let model = model.open(host)?;
    let (mut lines, printed) = (String::new(), !args.output.as_deref().is_some_and(is_output));
    for (i, text) in texts.iter().enumerate() {
        let options = CorrectionOptions {
            doubt: args.doubt,
            rounds: args.rounds,
            candidates: args.candidates,
            seed: key_of(&[args.seed, i as u64]),
        };
        let answer = args.answer(&model, text, sampling, &options).with_context(|| format!("text {}", i + 1))?;
        if args.output.is_some() {
            lines.push_str(&serde_json::to_string(&answer)?);
            lines.push('\n');
        }
        if printed {
            print(i, &answer)?;
        }
    }
    if let Some(path) = &args.output {
        write(path, lines).with_context(|| format!("the texts could not be written to {}", path.display()))?;
        note!("written to {}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

impl CorrectArgs {
    fn given_texts(&self) -> Result<Vec<String>> {
        let Self { texts, input, input_column: column, limit, .. } = self;
        GivenTexts { texts, input: input.as_deref(), column, limit: *limit }
            .read("there is no text to correct: give one after the model, or a file with --input")
    }

    fn answer<'t>(
        &self,
        model: &Model,
        text: &'t str,
        sampling: &elf_lm::Sampling,
        options: &CorrectionOptions,
    ) -> Result<Answer<'t>> {
        Ok(match self.words {
            true => Answer::Judged { text, words: model.words_in_context(text, options.seed)? },
            false => Answer::Corrected(model.correct(text, sampling, options)?),
        })
    }
}

fn print(number: usize, answer: &Answer) -> Result<()> {
    match answer {
        Answer::Corrected(correction) => {
            out!("[{number}] {}", correction.marked())?;
            if !correction.changes.is_empty() {
                out!("    log-likelihood {:.1} -> {:.1}", correction.log_prob, correction.corrected_log_prob)?;
            }
        }
        Answer::Judged { text, words } => {
            out!("[{number}] {text}")?;
            for word in words {
                let rather = match word.doubt() > 0.0 {
                    true => format!("{} ({:.1}%)", word.likeliest, 100.0 * word.likeliest_log_prob.exp()),
                    false => String::new(),
                };
                let line = format!("    {:5.1}%  {:20} {rather}", 100.0 * word.log_prob.exp(), word.word);
                out!("{}", line.trim_end())?;
            }
        }
    }
    Ok(())
}
