//! T5 whole, encoder and decoder, as it is pre-trained; only the encoder is kept.

use std::path::Path;

use elf_core::device::{at_a_time, upload};
use elf_core::layers::RmsNorm;
use elf_core::{Fans, Init, ParamBuilder, ParamSet, Precision, Weight, tensorfile};
use tch::{Device, Kind, Tensor};

use crate::span_corruption::DenoisingBatch;
use crate::t5_config::{FeedForward, T5Config};
use crate::t5_layers::{Attention, Dense, Direction, PositionBias};
use crate::text_encoder::check_ids;
use crate::{Error, Result, T5Encoder};

const EMBEDDING: &str = "shared.weight";
/// Logits held at a time on a CPU.
const LOGITS_AT_A_TIME: i64 = 1 << 24;

/// An encoder with the decoder that teaches it: `T5ForConditionalGeneration` by Hugging Face's names, without dropout.
///
/// As in T5 1.0 (a feed-forward layer with ReLU) the decoder's output is scaled by `1 / sqrt(d_model)` and multiplied by the
/// token table itself; as in T5 1.1 (gated GELU) it has a head of its own. Master weights, norms, the residual stream and
/// losses are fp32; matrix products run in the given precision.
#[derive(Debug)]
pub struct T5Pretraining {
    encoder: T5Encoder,
    params: ParamSet,
    decoder: Decoder,
    head: Option<Weight>,
    precision: Precision,
    device: Device,
    shipped_vocab: i64,
}

impl T5Pretraining {
    /// A random start. `config` is that of the encoder to be; ids from its `vocab_size` on, `extra_ids` of them, exist only
    /// here: sentinels that a tokenizer lacks. The decoder has `decoder_layers` blocks of the encoder's sizes.
    ///
    /// # Errors
    /// If the settings make no model, or libtorch fails.
    pub fn new(
        config: &T5Config,
        extra_ids: i64,
        decoder_layers: i64,
        mut builder: ParamBuilder,
        precision: Precision,
    ) -> Result<Self> {
        if !(1..=1 << 10).contains(&decoder_layers) {
            return Err(Error::Config(format!("a decoder of {decoder_layers} blocks; it must have 1 to 1024")));
        }
        let shipped_vocab = config.vocab_size;
        let config = T5Config { vocab_size: shipped_vocab.saturating_add(extra_ids.max(0)), ..config.clone() };
        config.check()?;
        let device = builder.device();
        let parts = T5Encoder::parts(&config, &mut builder)?;
        let decoder = Decoder::new(&mut builder, &config, decoder_layers)?;
        let std = config.initializer_factor * (config.d_model as f64).powf(-0.5);
        let head = match config.feed_forward_proj {
            FeedForward::Relu => None,
            // Normal with this deviation, as in the released code, logits start at the size of 1.
            FeedForward::GatedGelu => Some(builder.matrix(
                "lm_head.weight",
                [config.vocab_size, config.d_model],
                Init::Normal(std),
                Fans { fan_in: config.d_model, fan_out: config.vocab_size },
            )?),
        };
        let params = builder.finish();
        let kept = params.subset(|name| name == EMBEDDING || name.starts_with("encoder."));
        let encoder = T5Encoder::of_parts(config, parts, kept, device, precision);
        params.set_requires_grad(true);
        Ok(Self { encoder, params, decoder, head, precision, device, shipped_vocab })
    }

    /// All parameters, by Hugging Face's names; all carry gradients.
    pub fn params(&self) -> &ParamSet {
        &self.params
    }

    /// The mean cross-entropy of a batch's targets, in nats: a differentiable fp32 scalar.
    ///
    /// # Errors
    /// If an id is outside of the vocabulary, shapes do not fit, or libtorch fails.
    pub fn loss(&self, batch: &DenoisingBatch) -> Result<Tensor> {
        let hidden = self.decoded(batch)?;
        let c = self.encoder.config().d_model;
        let places = upload(&batch.places, self.device)?;
        let hidden = hidden.f_view([-1, c])?.f_index_select(0, &places)?;
        let targets = upload(&batch.targets, self.device)?;
        self.cross_entropy(&hidden, &targets)
    }

    /// What the decoder reads of ids `[B, S]` without padding: latents `[B, S, C]`, fp32, without gradients.
    ///
    /// # Errors
    /// If an id is outside of the vocabulary, or libtorch fails.
    pub fn latents(&self, ids: &Tensor) -> Result<Tensor> {
        check_ids(ids, self.encoder.config().vocab_size)?;
        tch::no_grad(|| self.encoder.hidden_trained(&upload(ids, self.device)?, None))
    }

    /// The decoder's hidden states `[B, T, C]`, fp32, normalised.
    fn decoded(&self, batch: &DenoisingBatch) -> Result<Tensor> {
        let vocab = self.encoder.config().vocab_size;
        let (b, _) = check_ids(&batch.inputs, vocab)?;
        let (of_decoder, _) = check_ids(&batch.decoder_inputs, vocab)?;
        if b != of_decoder {
            return Err(Error::shape("the decoder's ids", &batch.decoder_inputs, format!("[{b}, T]")));
        }
        let kind = self.precision.kind();
        let columns = batch.columns.as_ref().map(|c| upload(c, self.device)).transpose()?;
        let memory = self.encoder.hidden_trained(&upload(&batch.inputs, self.device)?, columns.as_ref())?;
        let memory = memory.f_to_kind(kind)?;
        let x = self.encoder.embed(&upload(&batch.decoder_inputs, self.device)?);
        self.decoder.forward(x, &memory, columns.as_ref(), kind)
    }

    /// The mean cross-entropy of `hidden` `[N, C]` fp32 against `targets` `[N]`.
    ///
    /// The gradient of cross-entropy with respect to logits is known in closed form, so each chunk's part of it is taken while
    /// its logits are at hand, and logits never exist whole. The result carries those gradients: it is the loss in value, and
    /// linear in hidden states and head with them as coefficients.
    fn cross_entropy(&self, hidden: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let (n, c) = hidden.size2()?;
        let kind = self.precision.kind();
        let (head, scale) = match &self.head {
            Some(head) => (head, 1.0),
            None => (self.encoder.table(), (c as f64).powf(-0.5)),
        };
        let features = hidden.f_mul_scalar(scale)?;
        let with_grad = features.requires_grad();
        let vocab = head.master().size()[0];
        let bias = Tensor::f_zeros([vocab], (Kind::Float, self.device))?;
        let mut value = Tensor::f_zeros([], (Kind::Float, self.device))?;
        let mut feature_grads = Vec::new();
        let mut head_grad: Option<Tensor> = None;
        tch::no_grad(|| -> Result<()> {
            let matrix = head.get(kind);
            let step = (at_a_time(self.device, LOGITS_AT_A_TIME) / vocab).max(1);
            for start in (0..n).step_by(step as usize) {
                let rows = step.min(n - start);
                let x = features.f_narrow(0, start, rows)?.f_to_kind(kind)?;
                let mut logits = x.f_matmul(&matrix.f_tr()?)?;
                let ids = targets.f_narrow(0, start, rows)?;
                let (losses, slope) = elf_kernels::cross_entropy(&mut logits, &bias, &ids, None, with_grad)?;
                value = value.f_add(&losses.f_sum(Kind::Float)?)?;
                if slope.is_none() {
                    continue;
                }
                // Now the logits hold the loss's slope.
                feature_grads.push(logits.f_matmul(&matrix)?.f_to_kind(Kind::Float)?);
                let part = logits.f_tr()?.f_matmul(&x)?.f_to_kind(Kind::Float)?;
                head_grad = Some(match head_grad.take() {
                    Some(mut sum) => sum.f_add_(&part)?,
                    None => part,
                });
            }
            Ok(())
        })?;
        let mean = 1.0 / n.max(1) as f64;
        let Some(head_grad) = head_grad else { return Ok(value.f_mul_scalar(mean)?) };
        let linear = features
            .f_mul(&Tensor::f_cat(&feature_grads, 0)?)?
            .f_sum(Kind::Float)?
            .f_add(&head.master().f_mul(&head_grad)?.f_sum(Kind::Float)?)?;
        Ok(linear.f_sub(&linear.f_detach()?)?.f_add(&value)?.f_mul_scalar(mean)?)
    }

    /// The encoder alone, on the CPU, as [`T5Encoder::load`] reads it back from a file of `kind` (fp32, bf16 or fp16): with
    /// the tokenizer's rows of the token table and no others.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn shipped(&self, kind: Kind, precision: Precision) -> Result<T5Encoder> {
        let config = T5Config { vocab_size: self.shipped_vocab, ..self.encoder.config().clone() };
        let shipped = T5Encoder::new(&config, ParamBuilder::unset(Device::Cpu), precision)?;
        let tensors = self.shipped_tensors(kind)?;
        shipped.params().load("the trained encoder", tensors.iter().map(|(name, t)| (name.as_str(), t)))?;
        Ok(shipped)
    }

    /// Writes the encoder into a folder: `config.json` and `model.safetensors` by Hugging Face's names, its numbers as `kind`
    /// (fp32, bf16 or fp16). Neither the decoder nor rows for sentinels that the tokenizer lacks are in it.
    ///
    /// # Errors
    /// If a file cannot be written. An earlier file of this name is then kept.
    pub fn save_encoder(&self, folder: &Path, kind: Kind) -> Result<()> {
        let tensors = self.shipped_tensors(kind)?;
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        let named = tensors.iter().map(|(name, t)| (name.as_str(), t));
        tensorfile::write(&folder.join("model.safetensors"), named, metadata)?;
        let config = T5Config { vocab_size: self.shipped_vocab, ..self.encoder.config().clone() };
        config.save(&folder.join("config.json"))
    }

    fn shipped_tensors(&self, kind: Kind) -> Result<Vec<(String, Tensor)>> {
        tch::no_grad(|| {
            let params = self.encoder.params().iter();
            params
                .map(|(name, p)| {
                    let value = p.tensor.f_detach()?;
                    let value = match name {
                        EMBEDDING => value.f_narrow(0, 0, self.shipped_vocab)?,
                        _ => value,
                    };
                    Ok((name.to_owned(), value.f_to_device(Device::Cpu)?.f_to_kind(kind)?))
                })
                .collect()
        })
    }
}

/// The decoder: causal attention to itself, attention to the encoder, a feed-forward layer.
#[derive(Debug)]
struct Decoder {
    positions: PositionBias,
    blocks: Vec<DecoderBlock>,
    final_norm: RmsNorm,
}

#[derive(Debug)]
struct DecoderBlock {
    attention: Attention,
    across: Attention,
    feed_forward: Dense,
}

impl Decoder {
    fn new(b: &mut ParamBuilder, config: &T5Config, layers: i64) -> Result<Self> {
        let table = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
        let positions = PositionBias::new(b, table, config, Direction::Causal)?;
        let blocks = (0..layers).map(|i| {
            let layer = |n: usize| format!("decoder.block.{i}.layer.{n}");
            Ok(DecoderBlock {
                attention: Attention::new(b, &layer(0), "SelfAttention", config)?,
                across: Attention::new(b, &layer(1), "EncDecAttention", config)?,
                feed_forward: Dense::new(b, &layer(2), config)?,
            })
        });
        let blocks = blocks.collect::<Result<_>>()?;
        let final_norm = RmsNorm::new(b, "decoder.final_layer_norm", config.d_model, config.layer_norm_epsilon)?;
        Ok(Self { positions, blocks, final_norm })
    }

    /// `x` `[B, T, C]` fp32, `memory` `[B, S, C]` in `kind`; to `[B, T, C]` fp32.
    fn forward(&self, mut x: Tensor, memory: &Tensor, columns: Option<&Tensor>, kind: Kind) -> Result<Tensor> {
        let bias = self.positions.get(x.size3()?.1, kind, x.device())?;
        for block in &self.blocks {
            x = x.f_add(&block.attention.forward_trained(&x, &bias, None, kind)?)?;
            x = x.f_add(&block.across.forward_across(&x, memory, columns, kind)?)?;
            x = x.f_add(&block.feed_forward.forward(&x, kind)?)?;
        }
        Ok(self.final_norm.forward(&x))
    }
}
