//! The layers that T5's encoder and decoder are made of.

use std::cell::RefCell;

use elf_core::device::upload;
use elf_core::layers::{Linear, RmsNorm};
use elf_core::{Fans, Init, ParamBuilder, Weight};
use tch::{Device, Kind, Tensor};

use crate::Result;
use crate::key_values::KeyValues;
use crate::t5_config::{FeedForward, T5Config};

/// The least finite number of a kind: what a score becomes that must not count.
pub(crate) fn least_finite(kind: Kind) -> f64 {
    match kind {
        // bf16 has fp32's exponents, but its greatest number has seven digits of one only.
        Kind::BFloat16 => -f64::from(f32::from_bits(0x7f7f_0000)),
        _ => f64::from(f32::MIN),
    }
}

/// Which positions a row may look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// All of them, as in the encoder.
    Both,
    /// Itself and what came before it, as in the decoder.
    Causal,
}

/// The learned bias of attention scores by relative position.
#[derive(Debug)]
pub(crate) struct PositionBias {
    table: Weight,
    config: T5Config,
    direction: Direction,
    /// The last one made: batches of one run have one length.
    cached: RefCell<Option<(i64, Kind, Tensor)>>,
}

impl PositionBias {
    pub(crate) fn new(b: &mut ParamBuilder, name: &str, config: &T5Config, direction: Direction) -> Result<Self> {
        let shape = [config.relative_attention_num_buckets, config.num_heads];
        let std = config.initializer_factor * (config.d_model as f64).powf(-0.5);
        Ok(Self {
            table: b.tensor(name, &shape, Init::Normal(std))?,
            config: config.clone(),
            direction,
            cached: RefCell::new(None),
        })
    }

    /// `[1, heads, length, length]`. Positions after its own are closed to a row of [`Direction::Causal`].
    ///
    /// A table that carries gradients changes between calls, and its bias belongs to one pass: it is made anew each time.
    pub(crate) fn get(&self, length: i64, kind: Kind, device: Device) -> Result<Tensor> {
        if self.table.master().requires_grad() {
            return self.make(length, kind, device);
        }
        let mut cached = self.cached.borrow_mut();
        if let Some((of, in_kind, bias)) = &*cached
            && (*of, *in_kind) == (length, kind)
        {
            return Ok(bias.shallow_clone());
        }
        let bias = self.make(length, kind, device)?;
        *cached = Some((length, kind, bias.shallow_clone()));
        Ok(bias)
    }

    fn make(&self, length: i64, kind: Kind, device: Device) -> Result<Tensor> {
        let buckets = self.config.buckets()?;
        let buckets = match self.direction {
            Direction::Both => buckets.square(length),
            Direction::Causal => buckets.causal_square(length),
        }?;
        let bias = Tensor::f_embedding(self.table.master(), &upload(&buckets, device)?, -1, false, false)?;
        let bias = bias.f_permute([2, 0, 1])?.f_unsqueeze(0)?.f_to_kind(kind)?.f_contiguous()?;
        Ok(match self.direction {
            Direction::Both => bias,
            Direction::Causal => {
                let after = Tensor::f_ones([length, length], (Kind::Bool, device))?.f_triu(1)?;
                bias.f_masked_fill(&after, least_finite(kind))?
            }
        })
    }
}

/// Attention behind its normalisation; what it gives is added to the residual stream by the caller.
#[derive(Debug)]
pub(crate) struct Attention {
    norm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    heads: i64,
    head_dim: i64,
}

impl Attention {
    /// `{name}.layer_norm`, and the four maps as `{name}.{kind}.q` and so on; `kind` is `SelfAttention` or `EncDecAttention`.
    pub(crate) fn new(b: &mut ParamBuilder, name: &str, kind: &str, config: &T5Config) -> Result<Self> {
        let (model, inner) = (config.d_model, config.inner_dim());
        let (into, out) = (Fans { fan_in: model, fan_out: inner }, Fans { fan_in: inner, fan_out: model });
        let normal = |variance: i64| Init::Normal(config.initializer_factor * (variance as f64).powf(-0.5));
        let mut linear = |layer: &str, fans, init| Linear::new(b, &format!("{name}.{kind}.{layer}"), fans, init, false);
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

    /// `x` `[B, S, C]` fp32, `bias` `[1 or B, heads, S, S]` in `kind`; to `[B, S, C]` in `kind`. With `memory`, which knows the
    /// positions before `from`, the rows of `x` are those from there on, and `bias` is `[1 or B, heads, S, from + S]`.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        bias: &Tensor,
        kind: Kind,
        memory: Option<(&mut KeyValues, i64)>,
    ) -> Result<Tensor> {
        let (b, s, _) = x.size3()?;
        let x = self.norm.forward_to(x, kind);
        let heads = |y: Tensor| y.f_view([b, s, self.heads, self.head_dim])?.f_transpose(1, 2);
        let (q, mut k, mut v) = (heads(self.q.forward(&x))?, heads(self.k.forward(&x))?, heads(self.v.forward(&x))?);
        if let Some((memory, from)) = memory {
            (k, v) = memory.put(from, &k, &v)?;
        }
        // libtorch's fused kernel, with the softmax in fp32 as in the released encoders. Against matmul, add, softmax,
        // matmul it takes 28 instead of 92 ms at B 16, S 256, 8 heads of 64 in bf16 on two cores with AVX-512 bf16, 30
        // instead of 99 in fp32, and about a third at S 64 and 1024 too; a bias of its own for each row costs no more.
        let mixed = Tensor::f_scaled_dot_product_attention(&q, &k, &v, Some(bias), 0.0, false, 1.0, false)?;
        Ok(self.o.forward(&mixed.f_transpose(1, 2)?.f_reshape([b, s, self.heads * self.head_dim])?))
    }

    /// As [`Attention::forward`], for passes with gradients: `bias` `[1, heads, S, S]` may carry them, and `columns`
    /// `[B, S]`, fp32, is added to the scores of all rows of a sequence (0, or minus infinity where nothing is to be seen).
    pub(crate) fn forward_trained(
        &self,
        x: &Tensor,
        bias: &Tensor,
        columns: Option<&Tensor>,
        kind: Kind,
    ) -> Result<Tensor> {
        let x = self.norm.forward_to(x, kind);
        self.mix(&x, &x, Some(bias), columns)
    }

    /// Attention from `x` `[B, T, C]` fp32 to `memory` `[B, S, C]` in `kind`, already normalised; `columns` `[B, S]` as in
    /// [`Attention::forward_trained`]; to `[B, T, C]` in `kind`.
    pub(crate) fn forward_across(
        &self,
        x: &Tensor,
        memory: &Tensor,
        columns: Option<&Tensor>,
        kind: Kind,
    ) -> Result<Tensor> {
        self.mix(&self.norm.forward_to(x, kind), memory, None, columns)
    }

    /// Scores held whole: libtorch's fused attention has no gradient for a bias, and on a CPU its backward pass in bf16 is
    /// several times slower than plain batched products.
    fn mix(&self, x: &Tensor, memory: &Tensor, bias: Option<&Tensor>, columns: Option<&Tensor>) -> Result<Tensor> {
        let (b, t, _) = x.size3()?;
        let s = memory.size3()?.1;
        let rows = b * self.heads;
        let by_head = |y: Tensor, n: i64| {
            y.f_view([b, n, self.heads, self.head_dim])?.f_transpose(1, 2)?.f_reshape([rows, n, self.head_dim])
        };
        let q = by_head(self.q.forward(x), t)?;
        let (k, v) = (by_head(self.k.forward(memory), s)?, by_head(self.v.forward(memory), s)?);
        let mut scores = q.f_bmm(&k.f_transpose(1, 2)?)?;
        if let Some(bias) = bias {
            scores = scores.f_view([b, self.heads, t, s])?.f_add(bias)?.f_view([rows, t, s])?;
        }
        let mixed = elf_kernels::softmax(&scores, columns)?.f_bmm(&v)?;
        let mixed = mixed.f_view([b, self.heads, t, self.head_dim])?.f_transpose(1, 2)?;
        Ok(self.o.forward(&mixed.f_reshape([b, t, self.heads * self.head_dim])?))
    }
}

/// The feed-forward layer.
#[derive(Debug)]
pub(crate) struct Dense {
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
    pub(crate) fn new(b: &mut ParamBuilder, name: &str, config: &T5Config) -> Result<Self> {
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
    pub(crate) fn forward(&self, x: &Tensor, kind: Kind) -> Result<Tensor> {
        let x = self.norm.forward_to(x, kind);
        let inner = match &self.inner {
            Inner::Relu(wi) => wi.forward(&x).f_relu_()?,
            Inner::GatedGelu(gate, wi) => gate.forward(&x).f_gelu("tanh")?.f_mul(&wi.forward(&x))?,
        };
        Ok(self.wo.forward(&inner))
    }
}
