//! `elf sample`.

mod baseline;
mod writing;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use elf_core::{Network, key_of};
use elf_data::source::{PlainText, Source};
use elf_data::{Dataset, Tokenizer};
use elf_hub::What;
use elf_train::Comm;
use serde_json::json;
use tch::Device;

use self::baseline::Baseline;
use self::writing::{Made, Writing};
use super::model_args::ModelArgs;
use super::sampling_args::{SamplingArgs, notes};
use super::{MOST_ROWS, at_least_one, at_most, output_file};
use crate::events::Terminal;
use crate::{hub, rank_environment};
use elf_lm::Reporter;
use elf_lm::config::{RunPlan, SamplingSetting};
use elf_lm::model::loaded_model::{DescribedModel, LoadedModel, precision};
use elf_lm::model::run_folder::FoundModel;
use elf_lm::text::text_file::check_writable;
use elf_lm::text::text_generation::{MOST_TEXTS, TAKES_NO_INPUT, TextGenerator, TextRequest};

#[derive(Debug, Clone, Args)]
pub struct SampleArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Number of texts to generate, for unconditional models.
    #[arg(long, short = 'n', default_value_t = 8)]
    num: usize,
    /// A text to generate from, for conditional models; may be repeated.
    #[arg(long)]
    text: Vec<String>,
    /// Texts to generate from: a Parquet, JSONL or plain text file, or the Hugging Face id of a data set.
    #[arg(long, conflicts_with = "text")]
    input: Option<PathBuf>,
    /// Token data to generate from, as used in training, or its Hugging Face id: the ids of conditions are used as they
    /// are, and targets are written out as references for `elf eval`.
    #[arg(long, conflicts_with_all = ["text", "input"])]
    data: Option<PathBuf>,
    /// The column of --input to generate from.
    #[arg(long, default_value = "text", requires = "input")]
    input_column: String,
    /// The column of --input that holds reference texts; they are written out for `elf eval`.
    #[arg(long, requires = "input")]
    reference_column: Option<String>,
    /// Use only the first N texts of --input or --data.
    #[arg(long)]
    limit: Option<usize>,

    #[command(flatten)]
    pub sampling: SamplingArgs,

    /// For an autoregressive model: beam search with this beam width; 1 is greedy, the default of conditional models.
    #[arg(long)]
    beam: Option<usize>,
    /// For an autoregressive model: rank beam hypotheses by log-probability divided by length to this power (1).
    #[arg(long)]
    length_penalty: Option<f64>,

    /// Random seed; the i-th text of a seed is the same whatever else is generated with it.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Show the first text as it forms: at several times of the flow or, if it is written block by block, at several
    /// fractions of the row.
    #[arg(long)]
    trace: bool,
    /// Texts generated at once (batch size).
    #[arg(long, default_value_t = 8)]
    batch_size: usize,
    /// Do not pad the last batch to full size. Faster for few texts, but rounding may then change a token of a text.
    #[arg(long)]
    ragged: bool,
    /// The JSONL file to write; several settings are written to one file each, named after the setting. Until all texts
    /// are generated, the finished ones are kept in FILE.partial, from which the same command resumes after an
    /// interruption (unless several processes share the work).
    #[arg(long, short, value_parser = output_file())]
    output: Option<PathBuf>,

    /// Print no text.
    #[arg(skip)]
    silent: bool,
}

/// Most steps of one text; a mistyped number must not exhaust memory.
const MOST_STEPS: usize = 100_000;

/// Widest beam.
const MOST_BEAM: usize = 1000;

/// Times at which a trace shows the text.
const TRACE: [f64; 8] = [0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0];

impl SampleArgs {
    /// What clap cannot check, and needs no model.
    fn check(&self) -> Result<()> {
        at_least_one(&[("--batch-size", self.batch_size)])?;
        at_most(&[
            ("--batch-size", self.batch_size, MOST_ROWS),
            ("--num", self.num, MOST_TEXTS),
            ("--steps", self.sampling.steps.unwrap_or(1), MOST_STEPS),
            ("--beam", self.beam.unwrap_or(1), MOST_BEAM),
        ])
    }
}

pub fn run(args: SampleArgs) -> Result<ExitCode> {
    let (device, comm) = rank_environment::meet(args.model.device)?;
    sample(args, device, comm.as_ref()).inspect_err(|error| comm.stopping_for(&format!("{error:#}")))
}

fn sample(args: SampleArgs, device: Device, comm: &dyn Comm) -> Result<ExitCode> {
    if let Some(path) = args.output.as_ref().filter(|_| comm.rank() == 0) {
        check_writable(path)?;
    }
    Order::read(args, device)?.carry_out(device, comm)
}

/// What is to be written, by which model and how: everything but the networks' numbers, which take time to load.
#[derive(Debug)]
pub struct Order {
    args: SampleArgs,
    requests: Vec<TextRequest>,
    writer: OrderedWriter,
}

#[derive(Debug)]
enum OrderedWriter {
    Flow(Box<Flow>),
    Baseline(Box<Baseline>),
}

#[derive(Debug)]
struct Flow {
    model: DescribedModel,
    guide: Option<DescribedModel>,
    settings: Vec<SamplingSetting>,
}

impl Order {
    /// Reads settings and requests.
    ///
    /// # Errors
    /// If there is no such model, or it cannot do what is asked for.
    pub fn read(mut args: SampleArgs, device: Device) -> Result<Self> {
        args.check()?;
        args.model.path = hub::locate(&args.model.path, What::ElfCheckpoint)?;
        let found = match FoundModel::find(&args.model.path)? {
            Some(found) if found.plan.baseline.is_some() => {
                let tokenizer = found.run.tokenizer()?;
                let baseline = Baseline::new(found, &args)?;
                let requests = requests(&args, baseline.plan(), &tokenizer)?;
                return Ok(Self { args, requests, writer: OrderedWriter::Baseline(Box::new(baseline)) });
            }
            found => found,
        };
        args.check_for_elf()?;
        let mut terminal = Terminal::default();
        let events = &Reporter::new(&mut terminal);
        // The settings that come with a run lie in its folder, whichever of its checkpoints is named.
        let folder = found.as_ref().map_or(args.model.path.clone(), |found| found.run.root().to_owned());
        let model = DescribedModel::of(found, &args.model.source(), device, events)?;
        let requests = requests(&args, &model.plan, &model.tokenizer)?;
        let settings = args.sampling.settings(&folder, &model.plan)?;
        notes(&model.plan, &settings).for_each(|note| eprintln!("{note}"));
        let guide = model.guide(&settings, &args.model.source(), device, events)?;
        Ok(Self { args, requests, writer: OrderedWriter::Flow(Box::new(Flow { model, guide, settings })) })
    }

    /// Tells texts that are written by this order from those by any other, by what goes into them and not by where it lies. What
    /// the flags say beyond the model, settings and requests is left to the caller.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn identity(&self) -> Result<String> {
        let writer = match &self.writer {
            OrderedWriter::Flow(flow) => {
                // Of a guide its contents count.
                let named = |setting: &SamplingSetting| SamplingSetting {
                    guide: setting.guide.as_ref().map(|_| PathBuf::new()),
                    ..setting.clone()
                };
                json!({
                    "model": flow.model.identity()?,
                    "guide": flow.guide.as_ref().map(DescribedModel::identity).transpose()?,
                    "settings": flow.settings.iter().map(named).collect::<Vec<_>>(),
                })
            }
            OrderedWriter::Baseline(baseline) => baseline.identity()?,
        };
        let whole = serde_json::to_vec(&json!({ "requests": self.requests, "writer": writer }))?;
        Ok(blake3::hash(&whole).to_hex().to_string())
    }

    /// How many settings it writes under, with a file for each if there are several.
    pub fn settings(&self) -> usize {
        match &self.writer {
            OrderedWriter::Flow(flow) => flow.settings.len(),
            OrderedWriter::Baseline(_) => 1,
        }
    }

    /// The same, written to a file, with no text printed.
    pub fn write_silently(mut self, file: &Path) -> Self {
        (self.args.output, self.args.silent) = (Some(file.to_owned()), true);
        self
    }

    /// Writes the texts.
    ///
    /// # Errors
    /// If a network cannot be loaded, or the texts cannot be written.
    pub fn carry_out(self, device: Device, comm: &dyn Comm) -> Result<ExitCode> {
        let Self { args, requests, writer } = self;
        match writer {
            OrderedWriter::Flow(flow) => flow.write(&args, &requests, device, comm),
            OrderedWriter::Baseline(baseline) => baseline.write(&args, &requests, device, comm),
        }
    }
}

impl Flow {
    fn write(self, args: &SampleArgs, requests: &[TextRequest], device: Device, comm: &dyn Comm) -> Result<ExitCode> {
        let precision = precision(args.model.f32, device);
        let (model, guide) = self.model.load_with_guide(self.guide, &args.model.source(), device, precision)?;
        let generator = TextGenerator {
            net: &model.net,
            plan: &model.plan,
            guide: guide.as_ref().map(LoadedModel::as_guide),
            tokenizer: &model.tokenizer,
            latents: model.latents.as_ref(),
            grid_seed: args.seed,
            batch_rows: args.batch_size,
            comm,
            one_shape: !args.ragged,
        };
        let networks = [Some(model.net.params()), guide.as_ref().map(|guide| guide.net.params())];
        let mut writing = Writing::new(args, &model.plan, requests, device, comm)?;
        writing.made_by(networks.into_iter().flatten())?;
        for setting in &self.settings {
            let output = args.output.as_ref().map(|path| match self.settings.len() {
                1 => path.clone(),
                _ => named(path, &setting.name()),
            });
            let made =
                writing.write(&setting.name(), serde_json::to_string(setting)?, output, &mut |kept, progress| {
                    let trace: &[f64] = if args.trace { &TRACE } else { &[] };
                    generator.generate_keeping(setting, requests, trace, kept, progress)
                })?;
            if made == Made::Interrupted {
                return Ok(ExitCode::from(130));
            }
        }
        writing.finish()
    }
}

fn requests(args: &SampleArgs, plan: &RunPlan, tokenizer: &Tokenizer) -> Result<Vec<TextRequest>> {
    if args.limit.is_some() && args.input.is_none() && args.data.is_none() {
        bail!("--limit is about --input and --data: without them, --num says how many texts are generated");
    }
    if let Some(path) = &args.data {
        let mut dataset = Dataset::open(&[hub::locate(path, What::Dataset)?])?;
        dataset.check_tokenizer(tokenizer).with_context(|| path.display().to_string())?;
        return TextRequest::of_rows(args.seed, &dataset, args.limit.unwrap_or(usize::MAX), tokenizer);
    }
    let with_seeds = |texts: Vec<(String, Option<String>)>| {
        let request = |(i, (condition, reference))| TextRequest {
            seed: key_of(&[args.seed, i as u64]),
            condition: Some(condition),
            condition_ids: None,
            reference,
        };
        texts.into_iter().enumerate().map(request).collect::<Vec<_>>()
    };
    let requests = match (&args.input, plan.span.max_input_length) {
        (Some(_), None) => bail!(TAKES_NO_INPUT),
        (Some(path), Some(_)) => {
            let mut columns = vec![args.input_column.as_str()];
            columns.extend(args.reference_column.as_deref());
            let source = Source::open(&[hub::locate(path, What::Dataset)?], &columns, PlainText::EveryLine)
                .context("--input (its columns are named by --input-column and --reference-column)")?;
            let rows = source.rows().take(args.limit.unwrap_or(usize::MAX));
            let texts = rows.map(|row| {
                let mut row = row?.into_iter();
                Ok((row.next().unwrap_or_default(), row.next()))
            });
            with_seeds(texts.collect::<Result<_>>()?)
        }
        (None, _) if !args.text.is_empty() => with_seeds(args.text.iter().map(|t| (t.clone(), None)).collect()),
        (None, Some(_)) => {
            bail!(
                "this model generates from an input text: give one with --text, a file with --input, or token data with --data"
            )
        }
        (None, None) => TextRequest::unconditional(args.seed, args.num),
    };
    if requests.is_empty() {
        bail!("there is nothing to generate: --num, --limit or --input asks for no text");
    }
    Ok(requests)
}

/// `samples.jsonl` and a setting's name to `samples-NAME.jsonl`.
fn named(path: &Path, name: &str) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().map_or("jsonl".into(), |e| e.to_string_lossy());
    path.with_file_name(format!("{stem}-{name}.{extension}"))
}
