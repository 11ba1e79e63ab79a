//! `elf encoder stats`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use elf_core::Precision;
use elf_core::device::DeviceChoice;
use elf_data::{CollateConfig, Collator, Dataset, PadToken};
use elf_encoder::{
    EncoderMask, EncoderSource, LatentMoments, LatentSample, LatentStats, PerChannel, TextEncoder, WordDiscriminant,
    open_encoder,
};
use elf_hub::What;
use tch::{Device, Tensor};

use super::{at_least_one, at_most};
use crate::{hub, progress};
use elf_lm::config::{Overrides, RunConfig, read_yaml, with_numbers};
use elf_lm::json_files::write;
use elf_lm::text::text_latents::{describe, stats_file, write_stats};

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
    /// Measure the output of this layer, as a run does with encoder_layer; written to a file of its own.
    #[arg(long)]
    layer: Option<usize>,
    /// Use a single mean and standard deviation for all channels, as in the released recipes, instead of one per
    /// channel.
    #[arg(long)]
    overall: bool,
    /// Also set latent_mean and latent_std, the same for all channels, in this run configuration; the rest of the file
    /// is left as it is. They then take precedence over latent_stats.json.
    #[arg(long, value_name = "CONFIG.yml")]
    write_into: Option<PathBuf>,
    /// The noise at t = 0 (denoiser_noise_scale) under which words are to be told.
    #[arg(long, default_value_t = 2.0)]
    noise_scale: f64,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
}

/// Longest row to measure on.
const LONGEST: usize = 1 << 16;

/// The keys of a configuration behind which the numbers go, if they are not in it yet.
const BESIDE: [&str; 2] = ["encoder_checkpoint", "encoder_model_name"];

/// A configuration's text with the numbers in it.
fn with_stats(path: &Path, mean: f64, std: f64) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    with_numbers(&text, &[("latent_mean", mean), ("latent_std", std)], &BESIDE)
        .with_context(|| format!("{} cannot be changed", path.display()))
}

/// Of so many rows one is held out to be told.
const HELD_OUT_EVERY: usize = 8;
/// Most tokens that word means are taken from, and most that are to be told.
const FITTED_TOKENS: i64 = 60_000;
const TOLD_TOKENS: i64 = 3_000;
/// Times at which the share of recognised words is printed.
const TIMES: [f64; 6] = [0.2, 0.3, 0.4, 0.5, 0.7, 1.0];
/// Below this share at t = 0.5 a warning is due: the paper's times hardly reach the times above.
const ENOUGH_AT_HALF: f64 = 2.0 / 3.0;
/// Where nine tenths of what clean latents tell should be told, as with the encoders with which texts came out well.
const DECIDED_AT: f64 = 0.45;
/// The paper's noise in decode rows, by the noise at t = 0.
const DECODER_TO_DENOISER: f64 = 2.5;

/// What was measured on the rows.
struct Measured {
    moments: LatentMoments,
    fitted: LatentSample,
    held_out: LatentSample,
}

pub fn run(args: &StatsArgs) -> Result<ExitCode> {
    at_least_one(&[("--rows", args.rows), ("--max-length", args.max_length)])?;
    at_most(&[("--max-length", args.max_length, LONGEST)])?;
    if !(args.noise_scale.is_finite() && args.noise_scale > 0.0) {
        bail!("--noise-scale {} is not a positive number", args.noise_scale);
    }
    let device = args.device.resolve()?;
    if let Some(path) = &args.write_into {
        // What cannot be written into should be known before an hour of measuring.
        let _: RunConfig = read_yaml(Some(path), &Overrides::default(), |_| {})?;
        with_stats(path, 0.0, 1.0)?;
    }
    let folder = hub::locate(&args.encoder, What::Encoder)?;
    let source = EncoderSource { layer: args.layer, ..EncoderSource::folder(folder) };
    let encoder = open_encoder(&source, device, Precision::F32)
        .with_context(|| format!("the encoder {} cannot be used", args.encoder.display()))?;
    let dataset = Dataset::open(&hub::locate_all(&args.data, What::Dataset)?)?;
    if dataset.is_empty() {
        bail!("the shards hold no rows to measure on");
    }
    let measured = measure(&*encoder, &dataset, args, device)?;
    let overall = measured.moments.overall()?;
    println!("over {} positions: {}", measured.moments.positions(), describe(&overall));
    let stats = if args.overall { overall.clone() } else { measured.moments.per_channel()? };
    if let Err(e) = describe_words(&measured, &stats, args.noise_scale) {
        // A corpus of a few rows has means and deviations, but no word that occurs often enough.
        eprintln!("note: which words can be told is not measured: {e}");
    }
    ship(args, &overall, &stats)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the numbers to where training reads them.
fn ship(args: &StatsArgs, overall: &LatentStats, stats: &LatentStats) -> Result<()> {
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
        return Ok(());
    }
    write_stats(&args.encoder, args.layer, stats)?;
    println!("written to {}", args.encoder.join(stats_file(args.layer)).display());
    Ok(())
}

/// Encodes rows, evenly over the corpus, which need not be shuffled.
fn measure(encoder: &dyn TextEncoder, dataset: &Dataset, args: &StatsArgs, device: Device) -> Result<Measured> {
    let config = CollateConfig { max_length: args.max_length, max_input_length: None, pad_token: PadToken::Pad };
    let collator = Collator::with_fill_id(config, 0)?;
    let dim = usize::try_from(encoder.dim()).context("the encoder's width")?;
    let (mut fitted, mut held_out) = (LatentSample::default(), LatentSample::default());
    let mut moments = LatentMoments::new(dim);
    let rows = args.rows.clamp(1, dataset.len());
    let bar = progress::bar(rows as u64, "rows");
    let chosen: Vec<usize> = (0..rows).map(|i| i * dataset.len() / rows).collect();
    for (i, chunk) in chosen.chunks(32).enumerate() {
        let batch = collator.collate(&dataset.examples(chunk)?)?;
        let shape = [batch.rows as i64, batch.seq_len as i64];
        let ids = Tensor::f_from_slice(&batch.input_ids)?.f_view(shape)?;
        let valid = Tensor::f_from_slice(&batch.is_valid())?.f_view(shape)?.f_to_device(device)?;
        // Rows are far shorter than they may be in most corpora: nothing is computed behind the longest.
        let longest =
            batch.valid_len.iter().copied().max().map_or(shape[1], |longest| longest as i64).clamp(1, shape[1]);
        let (ids, valid) = (ids.f_narrow(1, 0, longest)?, valid.f_narrow(1, 0, longest)?);
        let latents = encoder.encode(&ids, EncoderMask::Columns(&valid))?;
        moments.add(&latents, &valid)?;
        let (sample, most) = match i % HELD_OUT_EVERY {
            0 => (&mut held_out, TOLD_TOKENS),
            _ => (&mut fitted, FITTED_TOKENS),
        };
        if sample.tokens() < most {
            sample.add(&latents, &ids, &valid)?;
        }
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    Ok(Measured { moments, fitted, held_out })
}

/// Prints in how many dimensions latents vary, and which words noisy ones give away.
fn describe_words(measured: &Measured, stats: &LatentStats, noise_scale: f64) -> Result<()> {
    let (fitted, held_out) = (measured.fitted.normalised(stats)?, measured.held_out.normalised(stats)?);
    println!("effective dimensions: {:.0}", fitted.effective_dimensions()?);
    let words = WordDiscriminant::fit(&fitted)?;
    let told = TIMES.map(|t| words.told(&held_out, noise_scale * (1.0 - t) / t, 0));
    let told = told.into_iter().collect::<Result<Vec<_>, _>>()?;
    let row = |cells: Vec<String>| println!("  {}", cells.iter().map(|cell| format!("{cell:>6}")).collect::<String>());
    println!("words told from a noisy latent alone, noise scale {noise_scale} (linear discriminant analysis):");
    row(std::iter::once("t".to_owned()).chain(TIMES.map(|t| t.to_string())).collect());
    row(std::iter::once("told".to_owned()).chain(told.iter().map(|t| format!("{:.0}%", 100.0 * t.share))).collect());
    println!(
        "  over {} tokens; {:.1}% more are of words that the sample does not hold",
        held_out.tokens(),
        100.0 * told[0].unseen
    );
    let at_half = TIMES.iter().zip(&told).find(|(t, _)| **t == 0.5).map_or(1.0, |(_, told)| told.share);
    let clean = told.last().map_or(0.0, |told| told.share);
    let ratio = words.noise_ratio_of(&held_out, 0.9 * clean, 0)?;
    let proposed = ratio * DECIDED_AT / (1.0 - DECIDED_AT);
    if at_half < ENOUGH_AT_HALF {
        println!(
            "warning: {:.0}% of the words are undecided at t = 0.5, above which the usual times hardly reach",
            100.0 * (1.0 - at_half)
        );
    }
    if proposed > 0.0 {
        let shift = RunConfig::default().flow.denoiser_p_mean + (noise_scale / proposed).ln();
        println!(
            "proposal: denoiser_noise_scale {proposed:.2} and decoder_noise_scale {:.2}, or, at noise scale {noise_scale}, \
             denoiser_p_mean {shift:.2}",
            DECODER_TO_DENOISER * proposed
        );
    }
    Ok(())
}
