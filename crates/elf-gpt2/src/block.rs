//! One transformer block and causal attention.

use elf_core::layers::LayerNorm;
use elf_core::{Dropout, Fans, Init, ParamBuilder, Precision, Weight};
use tch::{Device, Kind, Tensor};

use crate::{Gpt2Config, Result};

/// The prefix of each name in Hugging Face's language models; its bare models have none.
pub(crate) const PREFIX: &str = "transformer.";

/// The dropout of one pass and its rate.
pub(crate) type Dropped<'a> = Option<(&'a Dropout, f64)>;

/// Applies the dropout of one place in the network to `x` `[B, N, C]`, the first N positions of each row.
pub(crate) fn dropped(x: Tensor, dropout: Dropped, place: [u64; 2]) -> Result<Tensor> {
    let Some((dropout, share)) = dropout else { return Ok(x) };
    let held = [0, x.size3()?.1];
    Ok(dropout.apply(&x, share, &place, dropout.length(), &[held])?)
}

/// A block: attention and a feed-forward layer.
#[derive(Debug)]
pub(crate) struct Block {
    ln_1: LayerNorm,
    c_attn: Conv1d,
    attn_proj: Conv1d,
    ln_2: LayerNorm,
    c_fc: Conv1d,
    mlp_proj: Conv1d,
    heads: i64,
}

impl Block {
    pub(crate) fn new(b: &mut ParamBuilder, index: i64, config: &Gpt2Config) -> Result<Self> {
        let name = format!("{PREFIX}h.{index}");
        let (h, inner, eps) = (config.n_embd, config.inner(), config.layer_norm_epsilon);
        let init = Init::Normal(config.initializer_range);
        // Layers that write to the residual stream start smaller, so that its size does not depend on the depth.
        let closing = Init::Normal(config.initializer_range / (2.0 * config.n_layer as f64).sqrt());
        let fans = |fan_in, fan_out| Fans { fan_in, fan_out };
        Ok(Self {
            ln_1: LayerNorm::new(b, &format!("{name}.ln_1"), h, eps)?,
            c_attn: Conv1d::new(b, &format!("{name}.attn.c_attn"), fans(h, 3 * h), init)?,
            attn_proj: Conv1d::new(b, &format!("{name}.attn.c_proj"), fans(h, h), closing)?,
            ln_2: LayerNorm::new(b, &format!("{name}.ln_2"), h, eps)?,
            c_fc: Conv1d::new(b, &format!("{name}.mlp.c_fc"), fans(h, inner), init)?,
            mlp_proj: Conv1d::new(b, &format!("{name}.mlp.c_proj"), fans(inner, h), closing)?,
            heads: config.n_head,
        })
    }

    /// Queries, keys and values, each `[B, heads, S, head_dim]` in `kind`, of the residual stream `[B, S, H]`.
    pub(crate) fn project(&self, x: &Tensor, kind: Kind) -> Result<(Tensor, Tensor, Tensor)> {
        let (b, s, h) = x.size3()?;
        let qkv = self.c_attn.forward(&self.ln_1.forward(x).f_to_kind(kind)?)?;
        let qkv = qkv.f_view([b, s, 3, self.heads, h / self.heads])?.f_permute([2, 0, 3, 1, 4])?;
        Ok((qkv.f_get(0)?, qkv.f_get(1)?, qkv.f_get(2)?))
    }

    /// The rest of the block after attention: the residual stream `[B, S, H]` and `mixed`
    /// `[B, heads, S, head_dim]` to the next residual stream.
    pub(crate) fn close(&self, x: &Tensor, mixed: &Tensor, number: u64, dropout: Dropped) -> Result<Tensor> {
        let (b, s, h) = x.size3()?;
        let attended = self.attn_proj.forward(&mixed.f_transpose(1, 2)?.f_reshape([b, s, h])?)?;
        let x = x.f_add(&dropped(attended, dropout, [number, 0])?)?;
        let inner = self.c_fc.forward(&self.ln_2.forward(&x).f_to_kind(mixed.kind())?)?.f_gelu("tanh")?;
        Ok(x.f_add(&dropped(self.mlp_proj.forward(&inner)?, dropout, [number, 1])?)?)
    }

    /// [`Block::close`] without dropout.
    pub(crate) fn close_without_dropout(&self, x: &Tensor, mixed: &Tensor) -> Result<Tensor> {
        self.close(x, mixed, 0, None)
    }
}

/// Maximum number of positions for which attention scores are stored.
const EXPLICIT_UP_TO: i64 = 512;

/// Causal attention; all `[B, heads, S, head_dim]`.
///
/// libtorch's fused attention does not store the scores, but on a CPU its backward pass in bf16 is several times slower
/// than plain batched products.
pub(crate) fn attend(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    let (b, heads, s, dim) = q.size4()?;
    let precision = if q.kind() == Kind::BFloat16 { Precision::Bf16 } else { Precision::F32 };
    if precision == Precision::F32 || q.device() != Device::Cpu || s > EXPLICIT_UP_TO {
        return Ok(Tensor::f_scaled_dot_product_attention(q, k, v, None::<&Tensor>, 0.0, true, None, false)?);
    }
    let flat = |x: &Tensor| x.f_reshape([b * heads, s, dim]);
    let later = tch::no_grad(|| {
        Tensor::f_full([s, s], f64::NEG_INFINITY, (q.kind(), q.device())).and_then(|all| all.f_triu(1))
    })?;
    let scores = flat(q)?.f_mul_scalar(1.0 / (dim as f64).sqrt())?.f_bmm(&flat(k)?.f_transpose(1, 2)?)?;
    let scores = scores.f_add(&later)?;
    Ok(elf_kernels::softmax(&scores, None)?.f_bmm(&flat(v)?)?.f_view([b, heads, s, dim])?)
}

/// `y = x W + b`, the weight stored as (in, out), as in all linear layers of GPT-2.
#[derive(Debug)]
struct Conv1d {
    weight: Weight,
    bias: Weight,
}

impl Conv1d {
    fn new(b: &mut ParamBuilder, name: &str, fans: Fans, init: Init) -> Result<Self> {
        let weight = b.matrix(&format!("{name}.weight"), [fans.fan_in, fans.fan_out], init, fans)?;
        let bias = b.tensor(&format!("{name}.bias"), &[fans.fan_out], Init::Constant(0.0))?;
        Ok(Self { weight, bias })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let kind = x.kind();
        Ok(x.f_linear(&self.weight.get(kind).f_tr()?, Some(self.bias.get(kind)))?)
    }
}

#[cfg(test)]
mod tests {
    use elf_core::{Noise, Seeded};

    use super::*;

    /// Scores stored as a whole in bf16 give the same as libtorch's fused attention in fp32, and no position sees a
    /// later one.
    #[test]
    fn attention_with_whole_scores_is_causal_attention() {
        let mut noise = Seeded::new(vec![1, 2, 3], Device::Cpu);
        let all = noise.normal("qkv", &[3, 2, 3, 9, 16]).unwrap().to_kind(Kind::BFloat16);
        let (q, k, v) = (all.get(0), all.get(1), all.get(2));
        let wide = |x: &Tensor| x.to_kind(Kind::Float);
        let ours = attend(&q, &k, &v).unwrap();
        let theirs = attend(&wide(&q), &wide(&k), &wide(&v)).unwrap();
        assert_eq!(ours.kind(), Kind::BFloat16);
        assert!((wide(&ours) - theirs).abs().max().double_value(&[]) < 0.05);
        let later = v.copy();
        let _ = later.narrow(2, 5, 4).fill_(100.0);
        let changed = attend(&q, &k, &later).unwrap();
        assert!(changed.narrow(2, 0, 5).equal(&ours.narrow(2, 0, 5)));
    }
}
