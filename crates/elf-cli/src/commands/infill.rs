//! `elf infill`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use elf_core::key_of;
use elf_data::Tokenizer;
use elf_lm::TextRequest;
use elf_lm::config::RunPlan;
use elf_lm::text::conditions::Conditions;
use elf_lm::text::template::Template;
use regex::Regex;

use crate::commands::given_texts::GivenTexts;
use crate::commands::model_args::ModelArgs;
use crate::commands::output_file;
use crate::commands::sample::{self, SampleArgs};
use crate::commands::sampling_args::SamplingArgs;

/// Texts with gaps, the model that fills them, and where to.
#[derive(Debug, Clone, Args)]
pub struct InfillArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Texts with gaps: [...] is a gap of any number of tokens, [5] one of five; write \[ for a bracket. With --replace, --keep or
    /// --hide: texts without gaps.
    #[arg(value_name = "TEXT", conflicts_with = "input")]
    pub texts: Vec<String>,
    /// Texts with gaps, one from each row: a Parquet, JSONL or plain text file, or the Hugging Face id of a data set.
    #[arg(long)]
    pub input: Option<PathBuf>,
    /// The column of --input with the texts.
    #[arg(long, default_value = "text", requires = "input")]
    pub input_column: String,
    /// Use only the first N texts of --input.
    #[arg(long, requires = "input")]
    pub limit: Option<usize>,
    /// Make a gap of each occurrence of this word, in any case.
    #[arg(long, value_name = "WORD", conflicts_with_all = ["keep", "hide"])]
    pub replace: Option<String>,
    /// Keep what matches this regular expression, and make gaps of the rest.
    #[arg(long, value_name = "REGEX", conflicts_with = "hide")]
    pub keep: Option<String>,
    /// Hide this share of the words of each text, in spans of three words on average, for `elf eval` to compare with what is filled in. Gaps
    /// have the number of tokens of what they hide; texts of a single word, or that the model cannot have, are left out.
    #[arg(long, value_name = "SHARE")]
    pub hide: Option<f64>,

    #[command(flatten)]
    pub sampling: SamplingArgs,

    /// Random seed; the i-th text of a seed is the same whatever else is generated with it.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Show the first text as it forms, at several times of the flow.
    #[arg(long)]
    pub trace: bool,
    /// Texts generated at once (batch size).
    #[arg(long, default_value_t = 8)]
    pub batch_size: usize,
    /// Do not pad the last batch to full size. Faster for few texts, but rounding may then change a token of a text.
    #[arg(long)]
    pub ragged: bool,
    /// The JSONL file to write, as of `elf sample`; `filled` has what was written into each gap.
    #[arg(long, short, value_parser = output_file())]
    pub output: Option<PathBuf>,
}

/// How gaps are made of texts.
enum Gaps {
    Marked,
    Replacing(String),
    Keeping(Regex),
    Hiding(f64),
}

pub fn run(args: InfillArgs) -> Result<ExitCode> {
    let gaps = args.gaps()?;
    let (texts, seed) = (args.given_texts()?, args.seed);
    sample::run_for(args.into_sample(), &|_, plan, tokenizer, host| {
        let requests = texts.iter().enumerate().map(|(i, text)| {
            let seed = key_of(&[seed, i as u64]);
            let request = || gaps.request(seed, text, plan, tokenizer);
            request().with_context(|| format!("text {}", i + 1))
        });
        let requests = requests.filter_map(Result::transpose).collect::<Result<Vec<_>>>()?;
        let left_out = texts.len() - requests.len();
        if requests.is_empty() {
            bail!("there is no text to fill in: all texts {NOT_HIDDEN}");
        }
        if left_out > 0 {
            host.warning(format!("{left_out} of {} texts are left out: they {NOT_HIDDEN}", texts.len()));
        }
        Ok(requests)
    })
}

/// Why `--hide` leaves texts out.
const NOT_HIDDEN: &str =
    "have a single word, more tokens than the model's texts, or words that are not in its vocabulary";

impl Gaps {
    /// The request for a text; none for one that is left out.
    fn request(&self, seed: u64, text: &str, plan: &RunPlan, tokenizer: &Tokenizer) -> Result<Option<TextRequest>> {
        let of = |template| -> Result<_> {
            let request = TextRequest { seed, template: Some(template), ..TextRequest::default() };
            // Whether the model can, and the text fits.
            Conditions::of(plan, tokenizer, &[&request])?;
            Ok(Some(request))
        };
        Ok(match self {
            Self::Marked => of(text.parse()?)?,
            Self::Replacing(word) => of(Template::replacing(text, word)?)?,
            Self::Keeping(pattern) => of(Template::keeping(text, pattern)?)?,
            Self::Hiding(_) if !is_known(text, plan, tokenizer)? => None,
            Self::Hiding(share) => Template::hiding(text, *share, seed, tokenizer)?.map(|(template, hidden)| {
                let reference = Some(text.to_owned());
                TextRequest { seed, template: Some(template), reference, hidden, ..TextRequest::default() }
            }),
        })
    }
}

/// The regular expression of `--keep`.
fn regular_expression(pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|error| {
        // The reason stands in the last of several lines.
        let (shown, pattern) = (error.to_string(), pattern.escape_default());
        let reason = shown.lines().last().unwrap_or_default().trim_start_matches("error: ");
        anyhow!("--keep: `{pattern}` is no regular expression ({reason})")
    })
}

/// Whether a model's texts can be this one.
fn is_known(text: &str, plan: &RunPlan, tokenizer: &Tokenizer) -> Result<bool> {
    let ids = tokenizer.encode(text)?;
    Ok(ids.len() < plan.span.max_length && !tokenizer.unk_id().is_some_and(|unk| ids.contains(&unk)))
}

impl InfillArgs {
    fn gaps(&self) -> Result<Gaps> {
        Ok(match (&self.replace, &self.keep, self.hide) {
            (Some(word), ..) if word.trim().is_empty() => bail!("--replace names no word"),
            (Some(word), ..) => Gaps::Replacing(word.clone()),
            (_, Some(pattern), _) => Gaps::Keeping(regular_expression(pattern)?),
            (.., Some(share)) if !(share > 0.0 && share < 1.0) => {
                bail!("--hide {share} is no share of the words: choose one above 0 and below 1")
            }
            (.., Some(share)) => Gaps::Hiding(share),
            _ => Gaps::Marked,
        })
    }

    fn given_texts(&self) -> Result<Vec<String>> {
        let Self { texts, input, input_column: column, limit, .. } = self;
        GivenTexts { texts, input: input.as_deref(), column, limit: *limit }.read(
            "there is no text to fill in: give one after the model, such as \"a [...] of the [2] family\", or a file with --input",
        )
    }

    /// The same as arguments of `elf sample`, the texts aside.
    fn into_sample(self) -> SampleArgs {
        SampleArgs {
            model: self.model,
            num: 1,
            text: Vec::new(),
            input: self.input,
            data: None,
            input_column: self.input_column,
            reference_column: None,
            limit: None,
            sampling: self.sampling,
            beam: None,
            length_penalty: None,
            seed: self.seed,
            trace: self.trace,
            batch_size: self.batch_size,
            ragged: self.ragged,
            output: self.output,
        }
    }
}
