//! `elf sample`.

mod baseline;
mod writing;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use elf_core::key_of;
use elf_data::source::{PlainText, Source};
use elf_data::{Dataset, Tokenizer};
use elf_hub::What;
use elf_lm::Silent;
use elf_lm::config::RunPlan;
use elf_lm::model::loaded::{Guide, Method};
use elf_lm::model::{DescribedModel, ModelRef};
use elf_lm::text::conditions::TAKES_NO_INPUT;
use elf_lm::text::generated::{MOST_TEXTS, TextRequest};
use elf_lm::text::text_file::check_writable;
use elf_lm::text::text_loop::{BatchOptions, TextLoop};
use elf_train::Comm;
use serde_json::json;
use tch::Device;

use self::writing::{Made, Writing};
use super::model_args::ModelArgs;
use super::sampling_args::SamplingArgs;
use super::{MOST_ROWS, at_least_one, at_most, output_file};
use crate::events::Terminal;
use crate::{hub, rank_environment};

#[derive(Debug, Clone, Args)]
pub struct SampleArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Number of texts to generate, for unconditional models.
    #[arg(long, short = 'n', default_value_t = 8, conflicts_with_all = ["text", "input", "data"])]
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
    #[arg(long, default_value = "text", requires = "input", conflicts_with_all = ["text", "data"])]
    input_column: String,
    /// The column of --input that holds reference texts; they are written out for `elf eval`.
    #[arg(long, requires = "input", conflicts_with_all = ["text", "data"])]
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

impl SampleArgs {
    /// The file for the texts of one of several settings, if they go to files.
    fn output_of(&self, method: &Method, settings: usize) -> Result<Option<PathBuf>> {
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
}

pub fn run(args: SampleArgs) -> Result<ExitCode> {
    let (device, comm) = rank_environment::meet(args.model.device)?;
    sample(args, device, comm.as_ref()).inspect_err(|error| comm.stopping_for(&format!("{error:#}")))
}

fn sample(args: SampleArgs, device: Device, comm: &dyn Comm) -> Result<ExitCode> {
    if let Some(path) = args.output.as_ref().filter(|_| comm.rank() == 0) {
        check_writable(path)?;
    }
    Order::read(args, device)?.carry_out(comm)
}

/// What is to be written, by which model and how: everything but the networks' parameters, which take time to load.
#[derive(Debug)]
pub struct Order {
    args: SampleArgs,
    requests: Vec<TextRequest>,
    model: DescribedModel,
    guide: Option<DescribedModel>,
    methods: Vec<Method>,
}

impl Order {
    /// Reads settings and requests.
    ///
    /// # Errors
    /// If there is no such model, or it cannot do what is asked for.
    pub fn read(mut args: SampleArgs, device: Device) -> Result<Self> {
        args.check()?;
        args.model.path = hub::locate(&args.model.path, What::ElfCheckpoint)?;
        let mut terminal = Terminal::default();
        let host = &hub::host(&mut terminal);
        let found = ModelRef::open(&args.model.path)?;
        let source = args.model.source(device);
        if let Some((plan, baseline)) = found.plan().and_then(|plan| Some((plan, plan.baseline.as_ref()?))) {
            let methods = vec![Method::Baseline {
                decoding: args.decoding(baseline, plan)?,
                mbr: args.sampling.mbr.unwrap_or(1),
            }];
            let model = DescribedModel::of(found, source, host)?;
            let requests = requests(&args, &model.plan, &model.tokenizer)?;
            return Ok(Self { args, requests, model, guide: None, methods });
        }
        args.check_for_elf()?;
        let model = DescribedModel::of(found, source, host)?;
        model.check_encoder_is_used()?;
        let requests = requests(&args, &model.plan, &model.tokenizer)?;
        let settings = args.sampling.settings(&model, host)?;
        let guide = model.guide(&settings, host)?;
        let methods = settings.into_iter().map(Method::Flow).collect();
        Ok(Self { args, requests, model, guide, methods })
    }

    /// Tells texts that are written by this order from those by any other, by what goes into them and not by where it lies. What
    /// the flags say beyond the model, settings and requests is left to the caller.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn identity(&self) -> Result<String> {
        let mut silent = Silent;
        let host = &hub::host(&mut silent);
        let identity = json!({
            "requests": self.requests,
            "model": self.model.identity(host)?,
            "guide": self.guide.as_ref().map(|guide| guide.identity(host)).transpose()?,
            "methods": self.methods.iter().map(Method::name).collect::<Vec<_>>(),
        });
        Ok(blake3::hash(&serde_json::to_vec(&identity)?).to_hex().to_string())
    }

    /// How many settings it writes under, with a file for each if there are several.
    pub fn settings(&self) -> usize {
        self.methods.len()
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
    pub fn carry_out(self, comm: &dyn Comm) -> Result<ExitCode> {
        let Self { args, requests, model, guide, methods } = self;
        let mut terminal = Terminal::default();
        let host = &hub::host(&mut terminal);
        let rows = if args.ragged { args.batch_size.min(requests.len()) } else { args.batch_size };
        model.check_memory(rows)?;
        let model = model.load(host)?;
        let guide = guide.map(DescribedModel::load_guide).transpose()?;
        let DescribedModel { plan, tokenizer, .. } = &model.described;
        let mut writing = Writing::new(&args, &model.described, &requests, comm)?;
        writing.made_by([Some(model.net.params()), guide.as_ref().map(Guide::params)].into_iter().flatten())?;
        let one_shape = !args.ragged;
        let trace: &[f64] = if args.trace { &TRACE } else { &[] };
        for method in &methods {
            let output = args.output_of(method, methods.len())?;
            let pad_to = one_shape.then_some(args.batch_size);
            let writer = model.writer(method, guide.as_ref(), args.seed, pad_to, host.samplers())?;
            let texts = TextLoop { writer: &*writer, plan, tokenizer, comm };
            let options = BatchOptions { rows: args.batch_size, one_shape, candidates: method.candidates()?, trace };
            let made = writing
                .write(&method.name(), output, &mut |kept, watch| texts.generate(&requests, options, kept, watch))?;
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
        return Ok(TextRequest::of_rows(args.seed, &dataset, args.limit.unwrap_or(usize::MAX), tokenizer)?);
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
