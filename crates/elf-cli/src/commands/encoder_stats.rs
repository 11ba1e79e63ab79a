//! `elf encoder stats`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use elf_core::device::DeviceChoice;
use elf_encoder::LatentStats;
use elf_lm::encoder::{LatentMeasurement, MeasureSettings, check_configuration, measure, write_into_configuration};
use elf_lm::text::text_latents::{describe, stats_file, write_stats};

use super::{at_least_one, at_most};
use crate::events::Terminal;
use crate::hub;
use crate::printing::{ReaderGone, note, out};

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

pub fn run(args: &StatsArgs) -> Result<ExitCode> {
    at_least_one(&[("--rows", args.rows), ("--max-length", args.max_length)])?;
    at_most(&[("--max-length", args.max_length, LONGEST)])?;
    if !(args.noise_scale.is_finite() && args.noise_scale > 0.0) {
        bail!("--noise-scale {} is not a positive number", args.noise_scale);
    }
    let settings = MeasureSettings {
        encoder: args.encoder.clone(),
        layer: args.layer,
        data: args.data.clone(),
        rows: args.rows,
        max_length: args.max_length,
        device: args.device.resolve()?,
    };
    if let Some(path) = &args.write_into {
        check_configuration(path)?;
    }
    let measured = measure(&settings, &hub::host(&mut Terminal::default()))?;
    let overall = measured.moments.overall()?;
    let stats = if args.overall { overall.clone() } else { measured.moments.per_channel()? };
    write(args, &overall, &stats)?;
    out!("over {} positions: {}", measured.moments.positions(), describe(&overall))?;
    match describe_words(&measured, &stats, args.noise_scale) {
        Err(e) if e.is::<ReaderGone>() => return Err(e),
        // A corpus of a few rows has means and deviations, but no word that occurs often enough.
        Err(e) => note!("note: which words can be told is not measured: {e}"),
        Ok(()) => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the numbers to where training reads them.
fn write(args: &StatsArgs, overall: &LatentStats, stats: &LatentStats) -> Result<()> {
    if let Some(path) = &args.write_into {
        write_into_configuration(path, overall)?;
        out!("latent_mean and latent_std are set in {}", path.display())?;
    }
    if !args.encoder.is_dir() {
        // The hub's cache is shared with other programs: nothing of ours belongs into a model there.
        if args.write_into.is_none() {
            out!(
                "{} comes from the hub: set latent_mean and latent_std to these numbers in the configuration, or let --write-into do it",
                args.encoder.display()
            )?;
        }
        return Ok(());
    }
    write_stats(&args.encoder, args.layer, stats)?;
    out!("written to {}", args.encoder.join(stats_file(args.layer)).display())?;
    Ok(())
}

/// Prints in how many dimensions latents vary, and which words noisy ones give away.
fn describe_words(measured: &LatentMeasurement, stats: &LatentStats, noise_scale: f64) -> Result<()> {
    out!("effective dimensions: {:.0}", measured.effective_dimensions(stats)?)?;
    let told = measured.words_told(stats, noise_scale)?;
    let row = |name: &str, cells: &mut dyn Iterator<Item = String>| {
        out!("  {name:>6}{}", cells.map(|cell| format!("{cell:>6}")).collect::<String>())
    };
    out!("words told from a noisy latent alone, noise scale {noise_scale} (linear discriminant analysis):")?;
    row("t", &mut told.shares.iter().map(|(t, _)| t.to_string()))?;
    row("told", &mut told.shares.iter().map(|(_, share)| format!("{:.0}%", 100.0 * share)))?;
    out!("  over {} tokens; {:.1}% more are of words that the sample does not hold", told.tokens, 100.0 * told.unseen)?;
    if let Some(undecided) = told.undecided_at_half {
        out!(
            "warning: {:.0}% of the words are undecided at t = 0.5, above which the usual times hardly reach",
            100.0 * undecided
        )?;
    }
    if let Some(noise) = told.proposal {
        out!(
            "proposal: denoiser_noise_scale {:.2} and decoder_noise_scale {:.2}, or, at noise scale {noise_scale}, \
             denoiser_p_mean {:.2}",
            noise.denoiser_noise_scale,
            noise.decoder_noise_scale,
            noise.denoiser_p_mean
        )?;
    }
    Ok(())
}
