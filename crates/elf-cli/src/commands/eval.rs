//! `elf eval`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, CommandFactory, FromArgMatches, Parser};
use elf_core::Precision;
use elf_core::device::DeviceChoice;
use elf_data::source::TEXT_COLUMN;
use elf_eval::bleu::{self, Bleu};
use elf_eval::evaluation::Evaluator;
use elf_eval::stats::Bootstrap;
use elf_hub::What;
use elf_lm::eval::judge::JudgeSettings;
use elf_lm::eval::{EvaluateOptions, evaluate_for};
use elf_lm::json_files::write_json;
use elf_lm::model::run_folder::RunModel;
use elf_lm::text::text_file::check_writable;

use super::sample::{self, SampleArgs};
use super::{at_least_one, at_most, output_file};
use crate::events::Terminal;
use crate::printing::{note, out};
use crate::standard_streams::is_output;
use crate::{hub, options, rank_environment};

#[derive(Debug, Args)]
pub struct EvalArgs {
    /// JSONL files of texts as `elf sample` writes them: field `text` or `prediction`, with `reference` for conditional
    /// tasks. Several files are treated as several seeds of one system: means over them are reported, with standard
    /// errors.
    #[arg(long, num_args = 1.., conflicts_with = "run")]
    samples: Vec<PathBuf>,
    /// Sample first, from any model that `elf sample` accepts: a run, a checkpoint, a file from elsewhere. Texts
    /// already sampled with the same settings are reused. Options of `elf sample` may follow after `--`.
    #[arg(long)]
    run: Option<PathBuf>,
    /// Number of texts to sample, for unconditional models.
    #[arg(long, short = 'n', requires = "run", conflicts_with = "samples")]
    num: Option<usize>,
    /// Seed to sample with; may be repeated.
    #[arg(long = "seed", value_name = "SEED", requires = "run", conflicts_with = "samples")]
    seeds: Vec<u64>,
    /// Where to keep sampled texts. Default: the folder samples/ beside the run's checkpoints.
    #[arg(long, value_name = "FOLDER", requires = "run", conflicts_with = "samples")]
    samples_folder: Option<PathBuf>,

    /// Reference texts (Parquet, JSONL, plain text), as FILE:COLUMN; the column defaults to `text`. Every line or row
    /// belongs to one sample; a column with lists of texts holds several references. If samples were generated from an
    /// input, or with --paired, they are the references of the samples, in order, for BLEU and ROUGE; otherwise only
    /// their entropy is used, to compare the samples' entropy with.
    #[arg(long, value_name = "FILE:COLUMN")]
    references: Option<PathBuf>,
    /// --references has one line for each text, in order. They replace references that the samples contain.
    #[arg(long, requires = "references")]
    paired: bool,
    /// Training texts (Parquet, JSONL, plain text) to find copies of, as FILE or FILE:COLUMN.
    #[arg(long, num_args = 1.., value_name = "FILE:COLUMN")]
    training: Vec<PathBuf>,
    /// The text column of --training files that name none.
    #[arg(long, default_value = TEXT_COLUMN, requires = "training")]
    training_column: String,
    /// Search for copies in the first texts of --training, up to this many words in total; each word takes some 50
    /// bytes of memory.
    #[arg(long, value_name = "WORDS", default_value_t = Evaluator::default().training_words, requires = "training")]
    training_words: usize,
    /// A run of more words than this shared with a training text counts as long.
    #[arg(long, value_name = "WORDS", default_value_t = Evaluator::default().long_run, requires = "training")]
    long_run: usize,

    /// How BLEU splits words, by sacreBLEU's names: 13a, intl, zh (Chinese), char or none.
    #[arg(long, value_name = "NAME", default_value_t = Bleu::default().tokenizer)]
    bleu_tokenizer: bleu::Tokenizer,
    /// Also compute chrF, which compares characters and needs no words.
    #[arg(long)]
    chrf: bool,
    /// Also compute the translation edit rate, TER: the share of words that must be edited or moved. Lower is better.
    #[arg(long)]
    ter: bool,

    /// The model that judges perplexity and entropy: a folder with a GPT-2 and its tokenizer.json, a run trained with
    /// objective gpt2, or a Hugging Face id such as gpt2-large.
    #[arg(long)]
    judge: Option<PathBuf>,
    /// Longest text that the judge reads, in its tokens.
    #[arg(long, default_value_t = 1024, requires = "judge")]
    judge_max_length: usize,
    /// Bootstrap resamples for 95% confidence intervals over texts; 0 for no intervals.
    #[arg(long, value_name = "N", default_value_t = Bootstrap::default().resamples)]
    bootstrap: usize,
    /// Title of the evaluation. Default: named after the first file.
    #[arg(long)]
    title: Option<String>,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
    /// Run networks in fp32 even where the device supports bf16.
    #[arg(long)]
    f32: bool,
    /// Also write the evaluation to this file as JSON.
    #[arg(long, short, value_parser = output_file())]
    output: Option<PathBuf>,
    /// With --run: options of `elf sample`, such as --steps 32 --sampler sde.
    #[arg(last = true, requires = "run", conflicts_with = "samples")]
    sampling: Vec<String>,
}

/// What `elf sample` takes.
#[derive(Debug, Parser)]
#[command(name = "elf eval --run MODEL --", no_binary_name = true)]
struct Sampling {
    #[command(flatten)]
    args: SampleArgs,
}

/// Most bootstrap resamples; a mistyped number must not take hours.
const MOST_RESAMPLES: usize = 1_000_000;

pub fn run(args: EvalArgs) -> Result<ExitCode> {
    at_least_one(&[("--num", args.num.unwrap_or(1)), ("--judge-max-length", args.judge_max_length)])?;
    at_most(&[("--bootstrap", args.bootstrap, MOST_RESAMPLES)])?;
    args.output.as_deref().map_or(Ok(()), check_writable)?;
    let mut terminal = Terminal::default();
    let host = &hub::host(&mut terminal);
    let mut asked = EvaluateOptions {
        samples: args.samples.clone(),
        references: args.references.clone(),
        paired: args.paired,
        training: args.training.clone(),
        training_column: args.training_column.clone(),
        training_words: args.training_words,
        long_run: args.long_run,
        judge: judge(&args)?,
        bootstrap: args.bootstrap,
        title: args.title.clone(),
        bleu: Bleu { tokenizer: args.bleu_tokenizer, ..Bleu::lowercase_effective() },
        chrf: args.chrf,
        ter: args.ter,
    };
    if let Some(model) = &args.run {
        rank_environment::refuse_several("elf eval --run")?;
        asked.check_texts(host)?;
        asked.samples = sampled(&args, model)?;
    } else if args.samples.is_empty() {
        bail!("there is nothing to judge: name texts with --samples, or a model with --run");
    }
    let found = evaluate_for(&asked, host)?;
    if let Some(path) = &args.output {
        write_json(path, &found)
            .with_context(|| format!("the evaluation could not be written to {}", path.display()))?;
    }
    if !args.output.as_deref().is_some_and(is_output) {
        out!("{}", found.to_markdown())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn judge(args: &EvalArgs) -> Result<Option<JudgeSettings>> {
    let Some(name) = &args.judge else { return Ok(None) };
    let device = args.device.resolve()?;
    Ok(Some(JudgeSettings {
        name: name.display().to_string(),
        folder: hub::locate(name, What::Gpt2)?,
        max_length: args.judge_max_length,
        batch_size: None,
        device,
        precision: if args.f32 { Precision::F32 } else { Precision::native(device) },
    }))
}

/// Samples what is not there yet, one file per seed.
fn sampled(args: &EvalArgs, model: &Path) -> Result<Vec<PathBuf>> {
    let model = hub::locate(model, What::ElfCheckpoint)?;
    // Of a run the latest checkpoint is meant, the same for all seeds even if training goes on meanwhile.
    let (checkpoint, own_folder) = match RunModel::is_at(&model) {
        true => {
            let found = RunModel::at(&model)?;
            (found.checkpoint.path().to_owned(), Some(found.run.samples()))
        }
        false => (model.clone(), None),
    };
    let Some(folder) = args.samples_folder.clone().or(own_folder) else {
        bail!("{} is no run with a folder of its own: say with --samples-folder where texts are kept", model.display());
    };
    let (device, comm) = rank_environment::meet(args.device)?;
    let mut terminal = Terminal::default();
    let host = &hub::host(&mut terminal);
    let mut flags = args.sampling.clone();
    flags.extend(args.num.map(|n| format!("--num={n}")));
    flags.extend(args.f32.then(|| "--f32".to_owned()));
    let seeds = if args.seeds.is_empty() { vec![0] } else { args.seeds.clone() };
    let mut files = Vec::new();
    for seed in seeds {
        let mut line: Vec<OsString> = vec![checkpoint.clone().into()];
        line.extend(
            flags
                .iter()
                .cloned()
                .chain([format!("--seed={seed}"), format!("--device={}", args.device)])
                .map(Into::into),
        );
        let (_, job) = sample::job(parsed(line)?, device, host)?;
        if job.methods.len() > 1 {
            bail!("the settings ask for several files of texts: evaluate one setting at a time");
        }
        // What files hold counts and not their names: another model or other inputs may come to lie at the same place.
        let key = blake3::hash(format!("{}\n{flags:?}", job.identity(host)?).as_bytes()).to_hex();
        let file = folder.join(format!("eval-{}-seed-{seed}.jsonl", &key[..12]));
        if file.is_file() {
            note!("taken as it is: {}", file.display());
        } else {
            std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
            sample::write_silently(job, &file, comm.as_ref())?;
        }
        files.push(file);
    }
    Ok(files)
}

/// What `elf sample` would make of a line.
fn parsed(line: Vec<OsString>) -> Result<SampleArgs> {
    let matches = options::in_common(Sampling::command()).try_get_matches_from(line);
    let sampling = matches.and_then(|matches| Sampling::from_arg_matches(&matches)).map_err(|error| {
        // clap's own words, without the usage of a command that nobody typed.
        let text = error.to_string();
        anyhow::anyhow!("{}", text.lines().next().unwrap_or("--").trim_start_matches("error: ").to_owned())
            .context("a setting after `--` is not one of `elf sample`")
    })?;
    Ok(sampling.args)
}
