//! The encoder half of T5.

use std::cell::RefCell;
use std::path::Path;

use elf_core::device::upload;
use elf_core::layers::{Embedding, Linear, RmsNorm};
use elf_core::tensorfile;
use elf_core::weights::{ParamKind, Weights};
use elf_core::{Fans, Init, ParamBuilder, ParamSet, Precision, Weight};
use tch::{Device, Kind, Tensor};

use crate::t5_config::{FeedForward, T5Config};
use crate::text_encoder::{EncoderMask, TextEncoder, check_ids};
use crate::{Error, Result};

const EMBEDDING: &str = "shared.weight";
/// The same table under the name it has where only the encoder was saved.
const ENCODER_EMBEDDING: &str = "encoder.embed_tokens.weight";

/// A frozen T5 encoder.
#[derive(Debug)]
pub struct T5Encoder {
    config: T5Config,
    precision: Precision,
    device: Device,
    params: ParamSet,
    embedding: Embedding,
    positions: PositionBias,
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
        config.validate()?;
        let device = builder.device();
        let b = &mut builder;
        let embedding = Embedding::new(b, EMBEDDING, config.vocab_size, config.d_model, config.initializer_factor)?;
        let mut blocks = Vec::new();
        let mut positions = None;
        for i in 0..config.num_layers {
            let attention = format!("encoder.block.{i}.layer.0");
            if i == 0 {
                // One table, stored in the first block and used by all.
                positions = Some(PositionBias::new(
                    b,
                    &format!("{attention}.SelfAttention.relative_attention_bias.weight"),
                    config,
                )?);
            }
            blocks.push(Block {
                attention: Attention::new(b, &attention, config)?,
                feed_forward: Dense::new(b, &format!("encoder.block.{i}.layer.1"), config)?,
            });
        }
        let positions = positions.ok_or_else(|| Error::Config("num_layers is 0".into()))?;
        let final_norm = RmsNorm::new(b, "encoder.final_layer_norm", config.d_model, config.layer_norm_epsilon)?;
        let params = builder.finish();
        if config.initializer_factor != 1.0 {
            tch::no_grad(|| {
                for (_, p) in params.iter().filter(|(name, _)| name.ends_with("layer_norm.weight")) {
                    let _ = p.tensor.shallow_clone().f_fill_(config.initializer_factor)?;
                }
                Ok::<_, Error>(())
            })?;
        }
        params.set_requires_grad(false);
        Ok(Self { config: config.clone(), precision, device, params, embedding, positions, blocks, final_norm })
    }

    /// Reads `config.json` and the weights (safetensors, also in shards, or `pytorch_model.bin`) from a folder as Hugging
    /// Face writes it. A decoder and a language
    /// model head in the file are ignored.
    ///
    /// # Errors
    /// If a file is missing or damaged, or the two do not fit together: then every difference is named.
    pub fn load(folder: &Path, device: Device, precision: Precision) -> Result<Self> {
        let config_path = folder.join("config.json");
        let config = T5Config::load(&config_path)?;
        let file = Weights::open(folder, ParamKind::Trained)?;
        let path = file.path().to_owned();
        // Before anything is allocated: a damaged size must not ask for terabytes. What is only a little too small is told
        // name by name below.
        let (needed, held) = (config.parameter_count(), file.numel());
        if needed > held.saturating_mul(2) {
            let reason = format!(
                "it describes {needed} parameters, but {} holds only {held} numbers; both must be of the same model",
                path.display()
            );
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
    /// If a file cannot be written; the one that was there before is kept then.
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

    /// What is added to the attention scores: `[1 or B, heads, S, S]`, in the blocks' kind.
    fn score_bias(&self, b: i64, s: i64, mask: EncoderMask) -> Result<Tensor> {
        let kind = self.precision.kind();
        let positions = self.positions.get(s, kind, self.device)?;
        let mask = match mask {
            EncoderMask::None => return Ok(positions),
            EncoderMask::Columns(m) if m.size() == [b, s] => m.f_view([b, 1, 1, s]),
            EncoderMask::Pairs(m) if m.size() == [b, s, s] => m.f_unsqueeze(1),
            EncoderMask::Columns(m) => return Err(Error::shape("the encoder's mask", m, format!("[{b}, {s}]"))),
            EncoderMask::Pairs(m) => return Err(Error::shape("the encoder's mask", m, format!("[{b}, {s}, {s}]"))),
        }?;
        let hidden = mask.f_to_device(self.device)?.f_eq(0)?;
        // The least finite number rather than -inf, as in the released encoders: a row that may see nothing then sees
        // everything evenly (all scores are equal after rounding), where -inf would make it NaN.
        Ok(positions.f_masked_fill(&hidden, least_finite(kind))?)
    }

    fn hidden(&self, ids: &Tensor, mask: EncoderMask) -> Result<Tensor> {
        let (b, s) = check_ids(ids, self.config.vocab_size)?;
        let kind = self.precision.kind();
        let bias = self.score_bias(b, s, mask)?;
        let mut x = self.embedding.forward(&upload(ids, self.device)?);
        for block in &self.blocks {
            x = x.f_add(&block.attention.forward(&x, &bias, kind)?)?;
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

    fn encode(&self, ids: &Tensor, mask: EncoderMask) -> Result<Tensor> {
        tch::no_grad(|| self.hidden(ids, mask))
    }
}

fn least_finite(kind: Kind) -> f64 {
    match kind {
        // bf16 has fp32's exponents, but its greatest number has seven digits of one only.
        Kind::BFloat16 => -f64::from(f32::from_bits(0x7f7f_0000)),
        _ => f64::from(f32::MIN),
    }
}

/// The learned bias of attention scores by relative position.
#[derive(Debug)]
struct PositionBias {
    table: Weight,
    config: T5Config,
    /// The last one made: batches of one run have one length.
    cached: RefCell<Option<(i64, Kind, Tensor)>>,
}

impl PositionBias {
    fn new(b: &mut ParamBuilder, name: &str, config: &T5Config) -> Result<Self> {
        let shape = [config.relative_attention_num_buckets, config.num_heads];
        let std = config.initializer_factor * (config.d_model as f64).powf(-0.5);
        Ok(Self {
            table: b.tensor(name, &shape, Init::Normal(std))?,
            config: config.clone(),
            cached: RefCell::new(None),
        })
    }

    /// `[1, heads, length, length]`.
    fn get(&self, length: i64, kind: Kind, device: Device) -> Result<Tensor> {
        let mut cached = self.cached.borrow_mut();
        if let Some((of, in_kind, bias)) = &*cached
            && (*of, *in_kind) == (length, kind)
        {
            return Ok(bias.shallow_clone());
        }
        let buckets = self.config.buckets()?.square(length)?.f_to_device(device)?;
        let bias = Tensor::f_embedding(self.table.master(), &buckets, -1, false, false)?;
        let bias = bias.f_permute([2, 0, 1])?.f_unsqueeze(0)?.f_to_kind(kind)?.f_contiguous()?;
        *cached = Some((length, kind, bias.shallow_clone()));
        Ok(bias)
    }
}

#[derive(Debug)]
struct Block {
    attention: Attention,
    feed_forward: Dense,
}

#[derive(Debug)]
struct Attention {
    norm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    heads: i64,
    head_dim: i64,
}

impl Attention {
    fn new(b: &mut ParamBuilder, name: &str, config: &T5Config) -> Result<Self> {
        let (model, inner) = (config.d_model, config.inner_dim());
        let (into, out) = (Fans { fan_in: model, fan_out: inner }, Fans { fan_in: inner, fan_out: model });
        let normal = |variance: i64| Init::Normal(config.initializer_factor * (variance as f64).powf(-0.5));
        let mut linear =
            |layer: &str, fans, init| Linear::new(b, &format!("{name}.SelfAttention.{layer}"), fans, init, false);
        Ok(Self {
            // The scores are not divided by the root of head_dim: q starts smaller instead.
            q: linear("q", into, normal(model * config.d_kv))?,
            k: linear("k", into, normal(model))?,
            v: linear("v", into, normal(model))?,
            o: linear("o", out, normal(inner))?,
            norm: RmsNorm::new(b, &format!("{name}.layer_norm"), model, config.layer_norm_epsilon)?,
            heads: config.num_heads,
            head_dim: config.d_kv,
        })
    }

    /// `x` `[B, S, C]` fp32, `bias` `[1 or B, heads, S, S]` in `kind`; to `[B, S, C]` in `kind`.
    fn forward(&self, x: &Tensor, bias: &Tensor, kind: Kind) -> Result<Tensor> {
        let (b, s, _) = x.size3()?;
        let x = self.norm.forward_to(x, kind);
        let heads = |y: Tensor| y.f_view([b, s, self.heads, self.head_dim])?.f_transpose(1, 2);
        let (q, k, v) = (heads(self.q.forward(&x))?, heads(self.k.forward(&x))?, heads(self.v.forward(&x))?);
        // libtorch's fused kernel, with the softmax in fp32 as in the released encoders. Against matmul, add, softmax,
        // matmul it takes 28 instead of 92 ms at B 16, S 256, 8 heads of 64 in bf16 on two cores with AVX-512 bf16, 30
        // instead of 99 in fp32, and about a third at S 64 and 1024 too; a bias of its own for each row costs no more.
        let mixed = Tensor::f_scaled_dot_product_attention(&q, &k, &v, Some(bias), 0.0, false, 1.0, false)?;
        Ok(self.o.forward(&mixed.f_transpose(1, 2)?.f_reshape([b, s, self.heads * self.head_dim])?))
    }
}

/// The feed-forward layer.
#[derive(Debug)]
struct Dense {
    norm: RmsNorm,
    inner: Inner,
    wo: Linear,
}

#[derive(Debug)]
enum Inner {
    Relu(Linear),
    GatedGelu(Linear, Linear),
}

impl Dense {
    fn new(b: &mut ParamBuilder, name: &str, config: &T5Config) -> Result<Self> {
        let (into, out) = (
            Fans { fan_in: config.d_model, fan_out: config.d_ff },
            Fans { fan_in: config.d_ff, fan_out: config.d_model },
        );
        let mut linear = |layer: &str, fans: Fans| {
            let init = Init::Normal(config.initializer_factor * (fans.fan_in as f64).powf(-0.5));
            Linear::new(b, &format!("{name}.DenseReluDense.{layer}"), fans, init, false)
        };
        Ok(Self {
            inner: match config.feed_forward_proj {
                FeedForward::Relu => Inner::Relu(linear("wi", into)?),
                FeedForward::GatedGelu => Inner::GatedGelu(linear("wi_0", into)?, linear("wi_1", into)?),
            },
            wo: linear("wo", out)?,
            norm: RmsNorm::new(b, &format!("{name}.layer_norm"), config.d_model, config.layer_norm_epsilon)?,
        })
    }

    /// `[B, S, C]` fp32 to the same shape in `kind`.
    fn forward(&self, x: &Tensor, kind: Kind) -> Result<Tensor> {
        let x = self.norm.forward_to(x, kind);
        let inner = match &self.inner {
            Inner::Relu(wi) => wi.forward(&x).f_relu_()?,
            Inner::GatedGelu(gate, wi) => gate.forward(&x).f_gelu("tanh")?.f_mul(&wi.forward(&x))?,
        };
        Ok(self.wo.forward(&inner))
    }
}
