//! Measurements of an encoder's latents on a corpus: moments, dimensions, and which words noisy latents give away.

use std::path::{Path, PathBuf};

use elf_core::Precision;
use elf_data::{Batch, CollateConfig, Collator, Dataset, PadToken};
use elf_encoder::{
    EncoderMask, EncoderSource, LatentMoments, LatentSample, LatentStats, PerChannel, SeenWords, TextEncoder,
    open_encoder_of,
};
use elf_hub::What;
use tch::{Device, Tensor};

use crate::config::{Overrides, RunConfig, read_yaml, with_numbers};
use crate::error::{Context, fail};
use crate::json_files::write;
use crate::{Event, Host, Result};

/// Rows that are encoded together.
const CHUNK: usize = 32;
/// One chunk of this many is held out, and its words are to be told.
const HELD_OUT_EVERY: usize = 8;
/// Most tokens that word means are taken from, and most that are to be told.
const FITTED_TOKENS: i64 = 60_000;
const TOLD_TOKENS: i64 = 3_000;
/// Times at which the share of recognised words is measured.
const TIMES: [f64; 6] = [0.2, 0.3, 0.4, 0.5, 0.7, 1.0];
/// The time up to which most words should be decided: the paper's times hardly reach those above.
const HALF: f64 = 0.5;
/// The share of decided words there that is enough.
const ENOUGH_AT_HALF: f64 = 2.0 / 3.0;
/// The time at which nine tenths of what clean latents tell should be told, as with the encoders with which texts came out well.
const DECIDED_AT: f64 = 0.45;
/// The paper's noise in decode rows, by the noise at t = 0.
const DECODER_TO_DENOISER: f64 = 2.5;
/// The keys of a configuration behind which the numbers go, if they are not in it yet.
const BESIDE: [&str; 2] = ["encoder_checkpoint", "encoder_model_name"];

/// What is measured on which rows.
#[derive(Debug, Clone)]
pub struct MeasureSettings {
    /// The encoder: a folder or a Hugging Face id.
    pub encoder: PathBuf,
    /// The layer whose output is measured; `None` for the last.
    pub layer: Option<usize>,
    /// Token shards: files, folders, or Hugging Face ids of data sets.
    pub data: Vec<PathBuf>,
    /// Rows, evenly over the corpus, which need not be shuffled.
    pub rows: usize,
    /// Tokens that a row is cut off at.
    pub max_length: usize,
    /// Where the encoder computes.
    pub device: Device,
}

/// What was measured on the rows.
#[derive(Debug)]
pub struct LatentMeasurement {
    /// Mean and standard deviation, of all channels and of each.
    pub moments: LatentMoments,
    fitted: LatentSample,
    held_out: LatentSample,
}

/// Encodes rows of a corpus and measures their latents. Rows are reported as progress.
///
/// # Errors
/// If the encoder or the data cannot be read, or there are no rows.
pub fn measure(settings: &MeasureSettings, host: &Host) -> Result<LatentMeasurement> {
    let folder = host.locate(&settings.encoder, What::Encoder)?;
    let source = EncoderSource { layer: settings.layer, ..EncoderSource::folder(folder) };
    let encoder = open_encoder_of(host.encoders(), &source, settings.device, Precision::F32)
        .with_context(|| format!("the encoder {} cannot be used", settings.encoder.display()))?;
    let dataset = Dataset::open(&host.locate_all(&settings.data, What::Dataset)?)?;
    if dataset.is_empty() {
        fail!(request, "the shards hold no rows to measure on");
    }
    let config = CollateConfig { max_length: settings.max_length, max_input_length: None, pad_token: PadToken::Pad };
    let collator = Collator::with_fill_id(config, 0)?;
    let dim = usize::try_from(encoder.dim()).context("the encoder's width")?;
    let (fitted, held_out) = (LatentSample::default(), LatentSample::default());
    let mut measured = LatentMeasurement { moments: LatentMoments::new(dim), fitted, held_out };
    let rows = settings.rows.clamp(1, dataset.len());
    host.send(Event::Started { unit: "rows", done: 0, total: rows as u64 });
    let chosen: Vec<usize> = (0..rows).map(|i| i * dataset.len() / rows).collect();
    for (i, chunk) in chosen.chunks(CHUNK).enumerate() {
        let batch = collator.collate(&dataset.examples(chunk)?)?.trimmed();
        measured.add(&*encoder, &batch, i % HELD_OUT_EVERY == 0, settings.device)?;
        host.send(Event::Progress { done: (i * CHUNK + chunk.len()) as u64, message: None });
    }
    host.send(Event::Ended);
    Ok(measured)
}

/// Shares of words that a linear classifier recognises from noisy latents, without context.
#[derive(Debug, Clone, PartialEq)]
pub struct WordsTold {
    /// Times, each with the share of held-out tokens that are recognised there.
    pub shares: Vec<(f64, f64)>,
    /// Held-out tokens.
    pub tokens: i64,
    /// Share of further tokens whose words the sample does not hold.
    pub unseen: f64,
    /// Share of undecided words at t = 0.5, if it is so large that the usual times hardly reach those at which they are decided.
    pub undecided_at_half: Option<f64>,
    /// The noise that suits the latents; none if even clean latents do not tell their words.
    pub proposal: Option<NoiseProposal>,
}

/// Settings of noise that suit an encoder's latents.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NoiseProposal {
    /// The noise at t = 0.
    pub denoiser_noise_scale: f64,
    /// The noise in decode rows.
    pub decoder_noise_scale: f64,
    /// The mean of times that does as well at the noise scale as it was.
    pub denoiser_p_mean: f64,
}

impl LatentMeasurement {
    fn add(&mut self, encoder: &dyn TextEncoder, batch: &Batch, held_out: bool, device: Device) -> Result<()> {
        let shape = [batch.rows as i64, batch.seq_len as i64];
        let ids = Tensor::f_from_slice(&batch.input_ids)?.f_view(shape)?;
        let valid = Tensor::f_from_slice(&batch.is_valid())?.f_view(shape)?.f_to_device(device)?;
        let latents = encoder.encode(&ids, EncoderMask::Columns(&valid))?;
        self.moments.add(&latents, &valid)?;
        let (sample, most) = match held_out {
            true => (&mut self.held_out, TOLD_TOKENS),
            false => (&mut self.fitted, FITTED_TOKENS),
        };
        if sample.tokens() < most {
            sample.add(&latents, &ids, &valid)?;
        }
        Ok(())
    }

    /// In how many dimensions latents normalised by `stats` vary; see [`LatentSample::effective_dimensions`].
    ///
    /// # Errors
    /// If there are too few tokens.
    pub fn effective_dimensions(&self, stats: &LatentStats) -> Result<f64> {
        Ok(self.fitted.normalised(stats)?.effective_dimensions()?)
    }

    /// The shares of words that are recognised, at several times, from latents that are normalised by `stats`. `noise_scale` is the
    /// standard deviation of the noise at t = 0.
    ///
    /// # Errors
    /// If the corpus is too small for it.
    pub fn words_told(&self, stats: &LatentStats, noise_scale: f64) -> Result<WordsTold> {
        let (fitted, held_out) = (self.fitted.normalised(stats)?, self.held_out.normalised(stats)?);
        let words = SeenWords::of(&fitted)?;
        let told = TIMES.map(|t| words.told(&held_out, noise_scale * (1.0 - t) / t, 0));
        let told = told.into_iter().collect::<Result<Vec<_>, _>>()?;
        let shares: Vec<(f64, f64)> = TIMES.into_iter().zip(told.iter().map(|told| told.share)).collect();
        let at = |time: f64| shares.iter().find(|(t, _)| *t == time).map_or(0.0, |(_, share)| *share);
        let ratio = words.noise_ratio_of(&held_out, 0.9 * at(1.0), 0)?;
        let proposed = ratio * DECIDED_AT / (1.0 - DECIDED_AT);
        let proposal = (proposed > 0.0).then(|| NoiseProposal {
            denoiser_noise_scale: proposed,
            decoder_noise_scale: DECODER_TO_DENOISER * proposed,
            denoiser_p_mean: RunConfig::default().flow.denoiser_p_mean + (noise_scale / proposed).ln(),
        });
        Ok(WordsTold {
            undecided_at_half: Some(1.0 - at(HALF)).filter(|undecided| *undecided > 1.0 - ENOUGH_AT_HALF),
            unseen: told[0].unseen,
            tokens: held_out.tokens(),
            shares,
            proposal,
        })
    }
}

/// Checks that a run configuration can take `latent_mean` and `latent_std`, before an hour of measuring.
///
/// # Errors
/// If it is no configuration, or the numbers cannot be put into its text.
pub fn check_configuration(path: &Path) -> Result<()> {
    let _: RunConfig = read_yaml(Some(path), &Overrides::default(), |_| {})?;
    with_stats(path, 0.0, 1.0).map(drop)
}

/// Sets `latent_mean` and `latent_std` in a run configuration; the rest of the file is left as it is.
///
/// # Errors
/// If the numbers are of single channels, cannot be put into its text, or it cannot be written.
pub fn write_into_configuration(path: &Path, overall: &LatentStats) -> Result<()> {
    let (PerChannel::All(mean), PerChannel::All(std)) = (overall.mean(), overall.std()) else {
        fail!(request, "the overall numbers are of single channels");
    };
    write(path, with_stats(path, *mean, *std)?)
}

/// A configuration's text with the numbers in it.
fn with_stats(path: &Path, mean: f64, std: f64) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    with_numbers(&text, &[("latent_mean", mean), ("latent_std", std)], &BESIDE)
        .with_context(|| format!("{} cannot be changed", path.display()))
}
