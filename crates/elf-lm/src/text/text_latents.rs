//! From token ids to the latents that a flow learns: the encoder, the masks, the normalisation.

use std::path::{Path, PathBuf};

use crate::error::{Context, fail};
use elf_core::Precision;
use elf_core::device::upload;
use elf_data::Batch;
use elf_encoder::{
    EncoderMask, EncoderSource, GrowingRows, LatentStats, PerChannel, RELEASED_MOMENTS, TextEncoder, open_encoder_of,
};
use elf_flow::LatentBatch;
use elf_hub::What;
use tch::{Device, Kind, Tensor};

use crate::config::{EncoderFiles, EncoderRecord, RunConfig, RunPlan};
use crate::json_files::write_json;
use crate::{Host, Result};

/// The file beside an encoder's weights that says by what its output is normalised.
pub const STATS_FILE: &str = "latent_stats.json";

/// [`STATS_FILE`] of a layer's output: each layer has latents, and a file, of its own.
pub fn stats_file(layer: Option<usize>) -> String {
    layer.map_or_else(|| STATS_FILE.to_owned(), |layer| format!("latent_stats.layer-{layer}.json"))
}

/// Whether a file beside an encoder's weights is that of any layer.
pub fn is_stats_file(name: &str) -> bool {
    name.starts_with("latent_stats.") && name.ends_with(".json")
}

/// A frozen encoder with its normalisation.
pub struct TextLatents {
    encoder: Box<dyn TextEncoder>,
    stats: LatentStats,
    device: Device,
    /// Whether positions after a condition see no later ones.
    pub(super) causal: bool,
    /// Where its parameters were read and what they are; nothing for one that was made in memory.
    source: Option<KnownSource>,
}

/// Which encoder it is, wherever it lies.
#[derive(Debug, Clone, PartialEq, Eq)]
struct KnownSource {
    files: EncoderFiles,
    blake3: String,
}

impl EncoderFiles {
    /// Of the encoder that a configuration names, fetched if they are named by a Hugging Face id.
    ///
    /// # Errors
    /// If one is neither here nor on the hub.
    pub fn find(config: &RunConfig, host: &Host) -> Result<Self> {
        let weights = config.encoder.encoder_checkpoint.as_ref().map(|name| host.locate(name, What::Encoder));
        Ok(Self { folder: encoder_folder(config, host)?, weights: weights.transpose().context("encoder_checkpoint")? })
    }

    fn are_there(&self) -> bool {
        self.folder.join("config.json").is_file() && self.weights.as_ref().is_none_or(|weights| weights.exists())
    }

    /// So that they are found from any folder.
    fn absolute(&self) -> Result<Self> {
        let absolute = |path: &PathBuf| std::path::absolute(path).with_context(|| path.display().to_string());
        Ok(Self { folder: absolute(&self.folder)?, weights: self.weights.as_ref().map(absolute).transpose()? })
    }
}

/// How the encoder of a configuration is opened.
struct Opening<'a, 'h> {
    config: &'a RunConfig,
    device: Device,
    precision: Precision,
    host: &'a Host<'h>,
}

impl Opening<'_, '_> {
    fn encoder(&self, files: &EncoderFiles) -> Result<Box<dyn TextEncoder>> {
        let layer = self.config.encoder.encoder_layer;
        let source = EncoderSource { folder: files.folder.clone(), weights: files.weights.clone(), layer };
        open_encoder_of(self.host.encoders(), &source, self.device, self.precision).with_context(|| {
            format!(
                "the text encoder {} (encoder_model_name) cannot be used; it must be a folder with config.json and \
                 model.safetensors, such as `elf encoder init` makes",
                files.folder.display()
            )
        })
    }

    /// The encoder, normalised by `recorded`, or else as settings say or as measured.
    fn latents(&self, files: EncoderFiles, recorded: Option<&LatentStats>) -> Result<TextLatents> {
        let encoder = self.encoder(&files)?;
        let tokens = i64::try_from(self.config.data.max_length)?;
        if let Some(most) = encoder.longest().filter(|most| *most < tokens) {
            return Err(elf_encoder::Error::TooLong { tokens, most })
                .with_context(|| files.folder.display().to_string());
        }
        let stats = match recorded {
            Some(recorded) => recorded.clone(),
            None => self.stats(&files, &*encoder)?,
        };
        let blake3 = elf_train::fingerprint(encoder.params())?;
        let source = Some(KnownSource { files, blake3 });
        let causal = self.config.network.causal_latents;
        Ok(TextLatents { causal, source, ..TextLatents::new(encoder, stats, self.device)? })
    }

    fn stats(&self, files: &EncoderFiles, encoder: &dyn TextEncoder) -> Result<LatentStats> {
        // Learned latents are normalised by themselves.
        let learned = self.config.network.learned_latents.then_some(RELEASED_MOMENTS);
        if let Some(stats) = stats(self.config, &files.folder, encoder.usual_moments().or(learned))? {
            return Ok(stats);
        }
        let layer = self.config.encoder.encoder_layer;
        let (folder, flag) = (files.folder.display(), layer.map_or(String::new(), |layer| format!(" --layer {layer}")));
        fail!(
            place(&files.folder),
            "the latents of the text encoder {folder} ({}) were never measured, as there is no {}: measure them with `elf encoder stats \
             {folder}{flag} --data SHARDS`, or set latent_mean and latent_std",
            encoder.describe(),
            stats_file(layer)
        )
    }
}

impl TextLatents {
    /// Loads the encoder that a configuration names.
    ///
    /// # Errors
    /// If its folder is missing, incomplete, or of no family of encoders that is known.
    pub fn load(config: &RunConfig, device: Device, precision: Precision, host: &Host) -> Result<Self> {
        Opening { config, device, precision, host }.latents(EncoderFiles::find(config, host)?, None)
    }

    /// Loads the encoder that a run was trained with, with the normalisation of that time: the one that is `named`, or the one in
    /// the place that its configuration names, or in which it lay.
    ///
    /// # Errors
    /// If none of these is there, or it is another one.
    pub fn of_run(
        plan: &RunPlan,
        named: Option<&Path>,
        device: Device,
        precision: Precision,
        host: &Host,
    ) -> Result<Self> {
        let config = &plan.config;
        let opening = Opening { config, device, precision, host };
        let record = plan.encoder();
        let named = named.map(|name| host.locate(name, What::Encoder).context("--encoder")).transpose()?;
        let named = named.map(|folder| EncoderFiles { folder, weights: None });
        let Some(record) = record else {
            // Of a model from elsewhere, or an older run, nothing is known but names.
            let Some(files) = named else {
                return Self::load(config, device, precision, host);
            };
            return opening.latents(files, None);
        };
        let as_written = EncoderFiles {
            folder: config.encoder.encoder_model_name.clone().into(),
            weights: config.encoder.encoder_checkpoint.as_ref().map(PathBuf::from),
        };
        let candidates = match named {
            Some(files) => vec![files],
            None => [as_written, record.files.clone()].into_iter().filter(EncoderFiles::are_there).collect(),
        };
        let candidates = if candidates.is_empty() { vec![EncoderFiles::find(config, host)?] } else { candidates };
        let mut others = Vec::new();
        for files in candidates {
            let folder = files.folder.display().to_string();
            let found = opening.latents(files, Some(&record.stats))?;
            if found.source.as_ref().is_some_and(|source| source.blake3 == record.blake3) {
                return Ok(found);
            }
            others.push(folder);
        }
        others.dedup();
        fail!(
            mismatch("the text encoder"),
            "the weights in {} are not those of the text encoder that the model was trained with, which was {}: bring it back, or \
             name it with --encoder",
            others.join(" and "),
            record.files.folder.display()
        )
    }

    /// What tells it from others.
    ///
    /// # Errors
    /// If this machine cannot say in which folder it is.
    pub fn record(&self) -> Result<Option<EncoderRecord>> {
        let record = |source: &KnownSource| -> Result<_> {
            let files = source.files.absolute()?;
            Ok(EncoderRecord { files, blake3: source.blake3.clone(), stats: self.stats.clone() })
        };
        self.source.as_ref().map(record).transpose()
    }

    /// An encoder on `device` and what its output is normalised by.
    ///
    /// # Errors
    /// If they do not fit together.
    pub fn new(encoder: Box<dyn TextEncoder>, stats: LatentStats, device: Device) -> Result<Self> {
        stats.check_dim(encoder.dim())?;
        Ok(Self { encoder, stats, device, causal: false, source: None })
    }

    /// Where the encoder computes.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Numbers in the encoder's parameters.
    pub fn parameters(&self) -> u64 {
        self.encoder.params().numel()
    }

    /// C, channels of a latent.
    pub fn dim(&self) -> i64 {
        self.encoder.dim()
    }

    /// Entries of the encoder's vocabulary.
    pub fn vocab_size(&self) -> i64 {
        self.encoder.vocab_size()
    }

    /// What latents are normalised by.
    pub fn stats(&self) -> &LatentStats {
        &self.stats
    }

    /// Encodes a batch.
    ///
    /// # Errors
    /// If an id is not in the encoder's vocabulary, or libtorch fails.
    pub fn encode(&self, batch: &Batch) -> Result<LatentBatch> {
        latent_batch(batch, self.latents(batch)?)
    }

    /// The normalised latents of a batch, `[B, S, C]`, fp32.
    ///
    /// # Errors
    /// If an id is not in the encoder's vocabulary, or libtorch fails.
    pub fn latents(&self, batch: &Batch) -> Result<Tensor> {
        let ids = Tensor::f_from_slice(&batch.input_ids)?.f_view([batch.rows as i64, batch.seq_len as i64])?;
        let masks = Masks::of(batch, self.causal, self.device)?;
        let mask = match &masks.pairs {
            Some(pairs) => EncoderMask::Pairs(pairs),
            None => EncoderMask::Columns(&masks.valid),
        };
        Ok(self.stats.normalise(&self.encoder.encode(&ids, mask)?)?)
    }

    /// An encoder of `rows` rows of at most `capacity` positions that grow at their end. None if targets see what follows them, or
    /// if it cannot.
    pub(super) fn growing(&self, rows: i64, capacity: i64) -> Option<Box<dyn GrowingRows + '_>> {
        if self.causal { self.encoder.growing(rows, capacity) } else { None }
    }

    /// Latents `[B, S - from, C]`, normalised, of a batch's positions from `from` on, those before it being known to `growing`.
    ///
    /// # Errors
    /// If an id is not in the encoder's vocabulary, or libtorch fails.
    pub(super) fn encode_from(&self, growing: &mut dyn GrowingRows, from: usize, batch: &Batch) -> Result<Tensor> {
        let (b, s, from) = (batch.rows as i64, batch.seq_len as i64, from as i64);
        let ids = Tensor::f_from_slice(&batch.input_ids)?.f_view([b, s])?.f_narrow(1, from, s - from)?;
        let mask = Masks::of(batch, true, self.device)?.pairs.context("the encoder's mask")?;
        Ok(self.stats.normalise(&growing.encode(from, &ids, &mask.f_narrow(1, from, s - from)?)?)?)
    }
}

/// A batch of token rows with its latents `[B, S, C]`.
///
/// # Errors
/// If libtorch fails.
pub fn latent_batch(batch: &Batch, latents: Tensor) -> Result<LatentBatch> {
    let shape = [batch.rows as i64, batch.seq_len as i64];
    Ok(LatentBatch {
        latents,
        ids: Tensor::f_from_slice(&batch.input_ids)?.f_view(shape)?,
        loss_mask: Tensor::f_from_slice(&batch.loss_mask())?.f_view(shape)?,
        condition: match batch.has_conditions() {
            true => Some(Tensor::f_from_slice(&batch.is_cond())?.f_view(shape)?),
            false => None,
        },
        dropped: batch.label_drop.clone(),
    })
}

/// The columns (keys) that each position (query) of a batch sees in the encoder, `[B, S, S]`, boolean; `None` if every position sees
/// all valid columns. With `causal`, a position after the condition sees no later one.
///
/// # Errors
/// If libtorch fails.
pub fn encoder_mask(batch: &Batch, causal: bool, device: Device) -> Result<Option<Tensor>> {
    Ok(Masks::of(batch, causal, device)?.pairs)
}

/// What the encoder may see, built on its device out of two lengths a row.
struct Masks {
    /// `[B, S]`.
    valid: Tensor,
    /// `[B, S, S]`; none where all rows see all valid columns.
    pairs: Option<Tensor>,
}

impl Masks {
    /// With `causal`, what is no condition sees itself and what stands before it.
    fn of(batch: &Batch, causal: bool, device: Device) -> Result<Self> {
        let column = |lengths: &[usize]| -> Result<Tensor> {
            let lengths: Vec<i64> = lengths.iter().map(|&n| n as i64).collect();
            Ok(upload(&Tensor::f_from_slice(&lengths)?, device)?.f_unsqueeze(-1)?)
        };
        let positions = Tensor::f_arange(batch.seq_len as i64, (Kind::Int64, device))?.f_unsqueeze(0)?;
        let valid = positions.f_lt_tensor(&column(&batch.valid_len)?)?;
        if !causal && !batch.has_conditions() {
            return Ok(Self { valid, pairs: None });
        }
        let mut condition = positions.f_lt_tensor(&column(&batch.cond_len)?)?;
        if !batch.given.is_empty() {
            let given = Tensor::f_from_slice(&batch.given)?.f_view([batch.rows as i64, batch.seq_len as i64])?;
            condition = condition.f_logical_or(&upload(&given, device)?)?;
        }
        let drop: Vec<bool> =
            if batch.label_drop.is_empty() { vec![false; batch.rows] } else { batch.label_drop.clone() };
        let drop = upload(&Tensor::f_from_slice(&drop)?, device)?.f_unsqueeze(-1)?;
        // A condition sees the condition; all else sees what is valid, without the condition where it is dropped.
        let seen_by_target = valid.f_logical_and(&condition.f_logical_and(&drop)?.f_logical_not()?)?;
        let (rows, seen_by_condition) = (condition.f_unsqueeze(-1)?, condition.f_unsqueeze(1)?);
        let mut seen_by_target = seen_by_target.f_unsqueeze(1)?;
        if causal {
            let past = positions.f_unsqueeze(1)?.f_le_tensor(&positions.f_unsqueeze(-1)?)?;
            seen_by_target = seen_by_target.f_logical_and(&past)?;
        }
        let pairs = seen_by_condition.f_where_self(&rows, &seen_by_target)?;
        Ok(Self { valid, pairs: Some(pairs) })
    }
}

/// The encoder's folder, fetched if it is named by a Hugging Face id.
///
/// # Errors
/// If it is neither here nor on the hub.
pub fn encoder_folder(config: &RunConfig, host: &Host) -> Result<PathBuf> {
    host.locate(&config.encoder.encoder_model_name, What::Encoder).context("encoder_model_name")
}

/// What an encoder's output is normalised by: as settings say, or as measured, beside the encoder in `folder`. A number that
/// neither says is that of `usual`; without it there is none.
///
/// # Errors
/// If the file beside it is damaged, or the settings are no numbers to normalise by.
pub fn stats(config: &RunConfig, folder: &Path, usual: Option<(f64, f64)>) -> Result<Option<LatentStats>> {
    let (mean, std) = (config.encoder.latent_mean, config.encoder.latent_std);
    if (mean, std) == (None, None) {
        let path = folder.join(stats_file(config.encoder.encoder_layer));
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                return serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display())).map(Some);
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        }
    }
    let (usual_mean, usual_std) = usual.unzip();
    let stated = mean.or(usual_mean).zip(std.or(usual_std));
    stated.map(|(mean, std)| LatentStats::uniform(mean, std).context("latent_mean and latent_std")).transpose()
}

/// Writes what [`TextLatents::load`] will normalise by.
///
/// # Errors
/// If the file cannot be written.
pub fn write_stats(folder: &Path, layer: Option<usize>, stats: &LatentStats) -> Result<()> {
    write_json(&folder.join(stats_file(layer)), stats)
}

/// One line about a normalisation.
pub fn describe(stats: &LatentStats) -> String {
    let one = |value: &PerChannel| match value {
        PerChannel::All(v) => format!("{v}"),
        PerChannel::Each(v) => {
            let mean = v.iter().sum::<f64>() / v.len().max(1) as f64;
            format!("{mean:.4} on average over {} channels", v.len())
        }
    };
    format!("mean {}, standard deviation {}", one(stats.mean()), one(stats.std()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use elf_data::{CollateConfig, Collator, Example, PadToken};

    /// The encoder's mask, position by position: a condition sees the condition, because at inference there is no target yet; every
    /// other position sees all that is valid, without the condition where it is dropped.
    fn spelled_out(batch: &Batch) -> Vec<f32> {
        let s = batch.seq_len;
        let sees = |i: usize| {
            let (row, query, key) = (i / (s * s), i / s % s, i % s);
            let valid = batch.valid_len[row];
            let given = |place: usize| {
                place < batch.cond_len[row] || batch.given.get(row * s + place).is_some_and(|&given| given)
            };
            if given(query) { given(key) } else { key < valid && !(batch.label_drop[row] && given(key)) }
        };
        (0..batch.rows * s * s).map(|i| f32::from(sees(i))).collect()
    }

    #[test]
    fn device_masks_equal_host_masks() {
        let config = CollateConfig { max_length: 9, max_input_length: Some(4), pad_token: PadToken::Eos };
        let example = |c: &[i32], t: &[i32]| Example { input_ids: t.to_vec(), condition_ids: Some(c.to_vec()) };
        let examples =
            [example(&[5, 6, 7], &[8, 9]), example(&[5; 7], &[8; 9]), example(&[4], &[]), example(&[], &[7])];
        let anywhere: Vec<bool> = (0..36).map(|place| place % 9 < 4 && place % 3 == 1).collect();
        for (drop, given) in
            [(vec![false; 4], Vec::new()), (vec![true, false, false, true], Vec::new()), (vec![false; 4], anywhere)]
        {
            let mut batch = Collator::with_fill_id(config, 1).unwrap().collate(&examples).unwrap();
            batch.label_drop = drop;
            batch.given = given;
            let ours = Masks::of(&batch, false, Device::Cpu).unwrap();
            let pairs = Vec::<f32>::try_from(ours.pairs.unwrap().to_kind(Kind::Float).view([-1])).unwrap();
            assert_eq!(pairs, spelled_out(&batch));
            let valid = Vec::<f32>::try_from(ours.valid.to_kind(Kind::Float).view([-1])).unwrap();
            assert_eq!(valid, batch.is_valid());
        }
    }

    /// Of what follows nothing is seen, and of the rest what is seen otherwise.
    #[test]
    fn causal_targets_see_what_stands_before_them() {
        let config = CollateConfig { max_length: 7, max_input_length: Some(3), pad_token: PadToken::Eos };
        let example = |c: &[i32], t: &[i32]| Example { input_ids: t.to_vec(), condition_ids: Some(c.to_vec()) };
        let examples = [example(&[5, 6], &[8, 9, 4]), example(&[], &[7, 8])];
        let mut batch = Collator::with_fill_id(config, 1).unwrap().collate(&examples).unwrap();
        for drop in [false, true] {
            batch.label_drop = vec![drop; 2];
            let all = spelled_out(&batch);
            let ours = Masks::of(&batch, true, Device::Cpu).unwrap().pairs.unwrap();
            let ours = Vec::<f32>::try_from(ours.to_kind(Kind::Float).view([-1])).unwrap();
            for (place, (&ours, &all)) in ours.iter().zip(&all).enumerate() {
                let (row, query, key) = (place / 49, place / 7 % 7, place % 7);
                let hidden = query >= batch.cond_len[row] && key > query;
                assert_eq!(ours, if hidden { 0.0 } else { all }, "row {row}, {query} sees {key}");
            }
        }
    }
}
