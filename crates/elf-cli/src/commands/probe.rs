//! `elf probe`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use elf_core::{Seeded, key_of};
use elf_data::Dataset;
use elf_flow::{Knowledge, LatentBatch, Probe, Trained};
use elf_hub::What;
use serde::Serialize;
use tch::{Device, Tensor};

use super::model_args::ModelArgs;
use super::output_file;
use crate::events::Terminal;
use crate::{hub, progress, rank_environment};
use elf_lm::Reporter;
use elf_lm::model::loaded_model::{LoadedModel, precision};
use elf_lm::model::run_folder::{FoundModel, write_json};
use elf_lm::text::text_latents::TextLatents;

/// Times to look at unless told otherwise; denser where the released recipe trains and samples most.
const TIMES: [f64; 12] = [0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

#[derive(Debug, Clone, Args)]
pub struct ProbeArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Token data with true texts, as used in training, or its Hugging Face id; preferably the held-out split.
    #[arg(long)]
    data: PathBuf,
    /// Probe only the first N texts.
    #[arg(long, default_value_t = 256)]
    limit: usize,
    /// Comma-separated times in [0, 1] to probe at [default: 12 of them].
    #[arg(long, value_delimiter = ',')]
    times: Vec<f64>,
    /// Self-conditioning guidance scale w given to the network.
    #[arg(long, default_value_t = 1.0)]
    self_cond_cfg_scale: f64,
    /// Seed of the noise.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Texts per batch.
    #[arg(long, default_value_t = 64)]
    batch_size: usize,
    /// The JSON file to write.
    #[arg(long, short, value_parser = output_file())]
    output: Option<PathBuf>,
}

/// What was found, for programs.
#[derive(Debug, Serialize)]
struct Findings {
    /// Texts looked at.
    texts: usize,
    /// Words in them, conditions and padding not counted.
    words: f64,
    /// Share of words that are read rightly from the clean latents themselves.
    accuracy_of_clean_latents: f64,
    /// At each time, ascending.
    times: Vec<AtTime>,
}

/// What is known at one time.
#[derive(Debug, Serialize)]
struct AtTime {
    t: f64,
    #[serde(flatten)]
    known: Shares,
    /// The same without the condition; none for unconditional models.
    #[serde(skip_serializing_if = "Option::is_none")]
    without_condition: Option<Shares>,
}

/// [`Knowledge`] for readers.
#[derive(Debug, Clone, Copy, Serialize)]
struct Shares {
    /// Mean squared error of the clean estimate, a channel.
    error: f64,
    /// Share of words that are read rightly from it.
    accuracy: f64,
}

impl From<Knowledge> for Shares {
    fn from(known: Knowledge) -> Self {
        Self { error: known.error(), accuracy: known.accuracy() }
    }
}

pub fn run(mut args: ProbeArgs) -> Result<ExitCode> {
    rank_environment::refuse_several("elf probe")?;
    let mut times = if args.times.is_empty() { TIMES.to_vec() } else { args.times.clone() };
    if let Some(t) = times.iter().find(|t| !(0.0..=1.0).contains(*t)) {
        bail!("--times: {t} is not a time in [0, 1]");
    }
    times.sort_by(f64::total_cmp);
    ensure!(args.batch_size > 0 && args.limit > 0, "--batch-size and --limit must be at least 1");
    let device = args.model.device.resolve()?;
    args.model.path = hub::locate(&args.model.path, What::ElfCheckpoint)?;
    let run = FoundModel::find(&args.model.path)?
        .map(|found| found.elf_only("which has no flow to look into"))
        .transpose()?;
    let precision = precision(args.model.f32, device);
    let model =
        LoadedModel::load(run, &args.model.source(), device, precision, &Reporter::new(&mut Terminal::default()))?;
    ensure!(
        !model.plan.model.learned_latents,
        "{} learned its latents itself: only models of an encoder's latents can be looked into",
        args.model.path.display()
    );
    ensure!(
        model.plan.objective.block_size.is_none(),
        "{} writes block after block (block_size): only models that write all tokens together can be looked into",
        args.model.path.display()
    );
    let latents = model.text_latents(device, precision)?;
    let findings = probe(&args, &times, &model, &latents, device)?;
    print(&findings);
    if let Some(path) = &args.output {
        write(path, &findings)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, findings: &Findings) -> Result<()> {
    write_json(path, findings).with_context(|| format!("the findings could not be written to {}", path.display()))?;
    eprintln!("written to {}", path.display());
    Ok(())
}

fn probe(
    args: &ProbeArgs,
    times: &[f64],
    model: &LoadedModel,
    latents: &TextLatents,
    device: Device,
) -> Result<Findings> {
    let mut dataset = Dataset::open(&[hub::locate(&args.data, What::Dataset)?])?;
    dataset.check_tokenizer(&model.tokenizer).with_context(|| args.data.display().to_string())?;
    let conditional = model.plan.span.max_input_length.is_some();
    ensure!(
        !conditional || dataset.is_conditional(),
        "{} has no conditions, and the model generates from conditions",
        args.data.display()
    );
    let collator = model.plan.collator(&model.tokenizer)?;
    let eos = i64::from(model.tokenizer.eos_id()?);
    let probe = Probe::new(&model.net, Trained::from(&model.plan.objective), args.self_cond_cfg_scale);
    let texts: Vec<usize> = (0..dataset.len().min(args.limit)).collect();

    let mut clean = Knowledge::default();
    let mut known = vec![(Knowledge::default(), Knowledge::default()); times.len()];
    let bar = progress::bar(texts.len() as u64, "texts");
    for rows in texts.chunks(args.batch_size) {
        let batch = latents.encode(&collator.collate(&dataset.examples(rows)?)?)?;
        let counted = words_of(&batch, eos)?;
        // The same noise at all times: differences between them are the network's.
        let noise = || Seeded::new(rows.iter().map(|&row| key_of(&[args.seed, row as u64])).collect(), device);
        clean += probe.of_clean_latents(&batch, &counted)?;
        for (&t, (with, without)) in times.iter().zip(&mut known) {
            *with += probe.at(&batch, &counted, t, true, &mut noise())?;
            if conditional {
                *without += probe.at(&batch, &counted, t, false, &mut noise())?;
            }
        }
        bar.inc(rows.len() as u64);
    }
    bar.finish_and_clear();
    ensure!(clean.positions > 0.0, "{} has no words to look at", args.data.display());
    let at_time = |(&t, (with, without)): (&f64, &(Knowledge, Knowledge))| AtTime {
        t,
        known: (*with).into(),
        without_condition: conditional.then(|| (*without).into()),
    };
    Ok(Findings {
        texts: texts.len(),
        words: clean.positions,
        accuracy_of_clean_latents: clean.accuracy(),
        times: times.iter().zip(&known).map(at_time).collect(),
    })
}

/// 1 at the words of a batch `[B, S]`: where the loss counts, without the end of the text and what fills it up.
fn words_of(batch: &LatentBatch, eos: i64) -> Result<Tensor> {
    Ok(batch.loss_mask.f_mul(&batch.ids.f_ne(eos)?.f_to_kind(batch.loss_mask.kind())?)?)
}

fn print(findings: &Findings) {
    let Findings { texts, words, accuracy_of_clean_latents, times } = findings;
    println!(
        "{words} words of {texts} texts; {:.1}% are read from their clean latents\n",
        100.0 * accuracy_of_clean_latents
    );
    let conditional = times.iter().any(|at| at.without_condition.is_some());
    println!("   t   error  words read{}", if conditional { "   without condition: error  words read" } else { "" });
    let cells = |shares: Shares| format!("{:.3}      {:5.1}%", shares.error, 100.0 * shares.accuracy);
    for AtTime { t, known, without_condition } in times {
        let without = without_condition.map_or(String::new(), |shares| format!("{:27}{}", "", cells(shares)));
        println!("{t:.2}   {}{without}", cells(*known));
    }
    println!(
        "\nerror: mean squared error of the clean estimate, a channel; about 1 for an estimate that is always the mean"
    );
}
