//! The encoder half of T5.

use std::path::Path;

use elf_core::device::upload;
use elf_core::layers::{Embedding, RmsNorm};
use elf_core::tensorfile;
use elf_core::weights::{ParamKind, Weights};
use elf_core::{ParamBuilder, ParamSet, Precision, Weight};
use tch::{Device, Tensor};

use crate::growing_rows::Extent;
use crate::key_values::KeyValues;
use crate::latent_stats::RELEASED_MOMENTS;
use crate::t5_config::T5Config;
use crate::t5_layers::{Attention, Dense, Direction, PositionBias, least_finite};
use crate::text_encoder::{EncoderMask, GrowingRows, TextEncoder, check_ids};
use crate::{Error, Result};

const EMBEDDING: &str = "shared.weight";
/// The same table under the name it has where only the encoder was saved.
const ENCODER_EMBEDDING: &str = "encoder.embed_tokens.weight";
/// The norm behind the blocks, and its parameter.
const FINAL_NORM: &str = "encoder.final_layer_norm";
const FINAL_NORM_WEIGHT: &str = "encoder.final_layer_norm.weight";

/// A frozen T5 encoder.
#[derive(Debug)]
pub struct T5Encoder {
    config: T5Config,
    precision: Precision,
    device: Device,
    params: ParamSet,
    embedding: Embedding,
    /// None without blocks, where nothing attends.
    positions: Option<PositionBias>,
    blocks: Vec<Block>,
    final_norm: RmsNorm,
}

impl T5Encoder {
    /// An encoder whose parameters come from `builder`: seeded, with the standard deviations of Hugging Face's own
    /// start, or unset, to be loaded. `precision` is that of the blocks' matrix products; the residual stream, norms
    /// and softmax are fp32 always.
    ///
    /// # Errors
    /// If the settings make no model, or libtorch fails.
    pub fn new(config: &T5Config, mut builder: ParamBuilder, precision: Precision) -> Result<Self> {
        let device = builder.device();
        let parts = Self::parts(config, &mut builder)?;
        let params = builder.finish();
        params.set_requires_grad(false);
        Ok(Self::of_parts(config.clone(), parts, params, device, precision))
    }

    /// Makes the layers' parameters.
    pub(crate) fn parts(config: &T5Config, b: &mut ParamBuilder) -> Result<Parts> {
        config.check()?;
        let embedding = Embedding::new(b, EMBEDDING, config.vocab_size, config.d_model, config.initializer_factor)?;
        let mut blocks = Vec::new();
        let mut positions = None;
        for i in 0..config.num_layers {
            let attention = format!("encoder.block.{i}.layer.0");
            if i == 0 {
                // One table, stored in the first block and used by all.
                let table = format!("{attention}.SelfAttention.relative_attention_bias.weight");
                positions = Some(PositionBias::new(b, &table, config, Direction::Both)?);
            }
            blocks.push(Block {
                attention: Attention::new(b, &attention, "SelfAttention", config)?,
                feed_forward: Dense::new(b, &format!("encoder.block.{i}.layer.1"), config)?,
            });
        }
        let final_norm = RmsNorm::new(b, FINAL_NORM, config.d_model, config.layer_norm_epsilon)?;
        Ok(Parts { embedding, positions, blocks, final_norm })
    }

    /// An encoder of layers whose parameters are, among others maybe, finished: `params` are its own of them.
    pub(crate) fn of_parts(
        config: T5Config,
        parts: Parts,
        params: ParamSet,
        device: Device,
        precision: Precision,
    ) -> Self {
        let Parts { embedding, positions, blocks, final_norm } = parts;
        if config.initializer_factor != 1.0 {
            tch::no_grad(|| {
                for (_, p) in params.iter().filter(|(name, _)| name.ends_with("layer_norm.weight")) {
                    let _ = p.tensor.shallow_clone().fill_(config.initializer_factor);
                }
            });
        }
        Self { config, precision, device, params, embedding, positions, blocks, final_norm }
    }

    /// Reads `config.json` and the weights (safetensors, also in shards, or `pytorch_model.bin`) from a folder as Hugging
    /// Face writes it. A decoder and a language
    /// model head in the file are ignored.
    ///
    /// # Errors
    /// If a file is missing or damaged, or the two do not fit together: then every difference is named.
    pub fn load(folder: &Path, device: Device, precision: Precision) -> Result<Self> {
        Self::load_with(folder, folder, device, precision)
    }

    /// [`T5Encoder::load`] with the weights of another folder or file.
    ///
    /// # Errors
    /// As [`T5Encoder::load`].
    pub fn load_with(folder: &Path, weights: &Path, device: Device, precision: Precision) -> Result<Self> {
        let config_path = folder.join("config.json");
        let config = T5Config::load(&config_path)?;
        let file = Weights::open(weights, ParamKind::Trained)?;
        let path = file.path().to_owned();
        if let Some(reason) = file.fall_short_of(config.parameter_count()) {
            return Err(Error::ConfigFile { path: config_path, reason });
        }
        let encoder = Self::new(&config, ParamBuilder::unset(device), precision)?;
        let has_shared = file.names().any(|name| name == EMBEDDING);
        let mut tensors = Vec::new();
        for name in file.names() {
            let ours = match name {
                EMBEDDING => EMBEDDING,
                ENCODER_EMBEDDING if has_shared => continue,
                ENCODER_EMBEDDING => EMBEDDING,
                _ if name.starts_with("encoder.") => name,
                _ => continue,
            };
            tensors.push((ours, file.get(name, Device::Cpu)?));
        }
        encoder.params.load(&path.display().to_string(), tensors.iter().map(|(name, t)| (*name, t)))?;
        Ok(encoder)
    }

    /// Writes `config.json` and `model.safetensors` into a folder, each aside and renamed, under Hugging Face's names.
    ///
    /// # Errors
    /// If a file cannot be written. An earlier file of this name is then kept.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        tensorfile::write(
            &folder.join("model.safetensors"),
            self.params.iter().map(|(name, p)| (name, &p.tensor)),
            metadata,
        )?;
        self.config.save(&folder.join("config.json"))
    }

    /// The settings.
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// The parameters by Hugging Face's names; none carries gradients.
    pub fn params(&self) -> &ParamSet {
        &self.params
    }

    /// The encoder without its blocks: each token's latent is its normalised row of the embedding table and does not depend on the other
    /// tokens. The usual mean and standard deviation of the released encoders do not apply to these latents.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn token_table(&self) -> Result<Self> {
        let config = T5Config { num_layers: 0, ..self.config.clone() };
        let alone = Self::new(&config, ParamBuilder::unset(self.device), self.precision)?;
        let table = tch::no_grad(|| self.table().master().f_detach())?;
        let ones = Tensor::f_ones([config.d_model], (tch::Kind::Float, self.device))?;
        alone.params.load("the encoder", [(EMBEDDING, &table), (FINAL_NORM_WEIGHT, &ones)])?;
        Ok(alone)
    }

    /// What is added to the attention scores: `[1 or B, heads, S, S]`, in the blocks' kind.
    fn score_bias(&self, positions: &PositionBias, b: i64, s: i64, mask: EncoderMask) -> Result<Tensor> {
        let kind = self.precision.kind();
        let positions = positions.get(s, kind, self.device)?;
        let Some(visible) = mask.visible(b, s, self.device)? else { return Ok(positions) };
        let hidden = visible.f_logical_not()?.f_unsqueeze(1)?;
        // The least finite number rather than -inf, as in the released encoders: a row that may see nothing then sees
        // everything evenly (all scores are equal after rounding), where -inf would make it NaN.
        Ok(positions.f_masked_fill(&hidden, least_finite(kind))?)
    }

    /// Latents `[B, S, C]`, fp32, with gradients, of ids `[B, S]` on the encoder's device, already checked; `columns` `[B, S]`,
    /// fp32, is 0 where there is text and minus infinity at padding.
    pub(crate) fn hidden_trained(&self, ids: &Tensor, columns: Option<&Tensor>) -> Result<Tensor> {
        let kind = self.precision.kind();
        let mut x = self.embed(ids);
        let Some(positions) = &self.positions else { return Ok(self.final_norm.forward(&x)) };
        let bias = positions.get(ids.size2()?.1, kind, self.device)?;
        for block in &self.blocks {
            x = x.f_add(&block.attention.forward_trained(&x, &bias, columns, kind)?)?;
            x = x.f_add(&block.feed_forward.forward(&x, kind)?)?;
        }
        Ok(self.final_norm.forward(&x))
    }

    /// Rows of the token table, fp32, of ids on the encoder's device, already checked.
    pub(crate) fn embed(&self, ids: &Tensor) -> Tensor {
        self.embedding.forward(ids)
    }

    /// The token table `[V, C]`.
    pub(crate) fn table(&self) -> &Weight {
        self.embedding.weight()
    }

    fn hidden(&self, ids: &Tensor, mask: EncoderMask) -> Result<Tensor> {
        let (b, s) = check_ids(ids, self.config.vocab_size)?;
        let kind = self.precision.kind();
        let mut x = self.embedding.forward(&upload(ids, self.device)?);
        let Some(positions) = &self.positions else { return Ok(self.final_norm.forward(&x)) };
        let bias = self.score_bias(positions, b, s, mask)?;
        for block in &self.blocks {
            x = x.f_add(&block.attention.forward(&x, &bias, kind, None)?)?;
            x = x.f_add(&block.feed_forward.forward(&x, kind)?)?;
        }
        Ok(self.final_norm.forward(&x))
    }
}

impl TextEncoder for T5Encoder {
    fn dim(&self) -> i64 {
        self.config.d_model
    }

    fn vocab_size(&self) -> i64 {
        self.config.vocab_size
    }

    fn params(&self) -> &ParamSet {
        &self.params
    }

    fn encode_flops(&self, tokens: u64) -> u64 {
        self.config.encode_flops(tokens)
    }

    fn describe(&self) -> String {
        format!("T5, {} blocks of {} channels", self.config.num_layers, self.config.d_model)
    }

    fn usual_moments(&self) -> Option<(f64, f64)> {
        (self.config.num_layers > 0).then_some(RELEASED_MOMENTS)
    }

    fn encode(&self, ids: &Tensor, mask: EncoderMask) -> Result<Tensor> {
        tch::no_grad(|| self.hidden(ids, mask))
    }

    fn growing(&self, rows: i64, capacity: i64) -> Option<Box<dyn GrowingRows + '_>> {
        let layers = self.blocks.iter().map(|_| KeyValues::new(capacity)).collect();
        Some(Box::new(GrowingT5 { encoder: self, layers, extent: Extent::new(rows, capacity) }))
    }
}

/// Rows of a T5 that grow.
struct GrowingT5<'a> {
    encoder: &'a T5Encoder,
    /// Of each block.
    layers: Vec<KeyValues>,
    extent: Extent,
}

impl GrowingRows for GrowingT5<'_> {
    fn encode(&mut self, from: i64, ids: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let Self { encoder, layers, extent } = self;
        let n = extent.check(from, ids, mask, encoder.config.vocab_size)?;
        let kind = encoder.precision.kind();
        tch::no_grad(|| {
            let mut x = encoder.embedding.forward(&upload(ids, encoder.device)?);
            let Some(positions) = &encoder.positions else { return Ok(encoder.final_norm.forward(&x)) };
            let hidden = mask.f_to_device(encoder.device)?.f_eq(0)?.f_unsqueeze(1)?;
            // Of the greatest length, so that it is made once.
            let bias = positions.get(extent.capacity(), kind, encoder.device)?;
            let bias = bias.f_narrow(2, from, n)?.f_narrow(3, 0, from + n)?;
            let bias = bias.f_masked_fill(&hidden, least_finite(kind))?;
            for (block, memory) in encoder.blocks.iter().zip(layers) {
                x = x.f_add(&block.attention.forward(&x, &bias, kind, Some((memory, from)))?)?;
                x = x.f_add(&block.feed_forward.forward(&x, kind)?)?;
            }
            Ok(encoder.final_norm.forward(&x))
        })
    }
}

/// The layers of an encoder.
#[derive(Debug)]
pub(crate) struct Parts {
    embedding: Embedding,
    positions: Option<PositionBias>,
    blocks: Vec<Block>,
    final_norm: RmsNorm,
}

#[derive(Debug)]
struct Block {
    attention: Attention,
    feed_forward: Dense,
}
