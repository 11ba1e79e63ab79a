//! The layer that encoders of the BERT family are made of.

use elf_core::layers::{LayerNorm, Linear};
use elf_core::{Fans, Init, ParamBuilder};
use tch::{Kind, Tensor};

use crate::Result;
use crate::bert_config::{BertConfig, BertLayout};
use crate::key_values::KeyValues;

/// Standard deviation of a random start, as in the released configurations.
pub(crate) const INITIAL_STD: f64 = 0.02;

/// Names of a layer's parts: query, key, value, output and norm of attention; inner, outer and norm of the feed-forward layer.
type Names = [&'static str; 8];

const BERT: Names = [
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
];

const DISTILBERT: Names = [
    "attention.q_lin",
    "attention.k_lin",
    "attention.v_lin",
    "attention.out_lin",
    "sa_layer_norm",
    "ffn.lin1",
    "ffn.lin2",
    "output_layer_norm",
];

/// Attention and feed-forward, each with its normalisation behind the sum with the residual stream.
#[derive(Debug)]
pub(crate) struct Layer {
    q: Linear,
    k: Linear,
    v: Linear,
    mixed: Linear,
    attention_norm: LayerNorm,
    inner: Linear,
    outer: Linear,
    norm: LayerNorm,
    heads: i64,
}

impl Layer {
    /// Layer `i`, counted from 0, under the names of the configuration's layout.
    pub(crate) fn new(b: &mut ParamBuilder, config: &BertConfig, i: i64) -> Result<Self> {
        let (stem, [q, k, v, mixed, attention_norm, inner, outer, norm]) = match config.layout {
            BertLayout::Bert => ("encoder", BERT),
            BertLayout::DistilBert => ("transformer", DISTILBERT),
        };
        let name = |part: &str| format!("{stem}.layer.{i}.{part}");
        let (c, f) = (config.hidden_size, config.intermediate_size);
        let mut linear = |part: &str, fan_in, fan_out| {
            Linear::new(b, &name(part), Fans { fan_in, fan_out }, Init::Normal(INITIAL_STD), true)
        };
        let (q, k, v, mixed) = (linear(q, c, c)?, linear(k, c, c)?, linear(v, c, c)?, linear(mixed, c, c)?);
        let (inner, outer) = (linear(inner, c, f)?, linear(outer, f, c)?);
        let mut norm_of = |part: &str| LayerNorm::new(b, &name(part), c, config.layer_norm_eps);
        let (attention_norm, norm) = (norm_of(attention_norm)?, norm_of(norm)?);
        Ok(Self { q, k, v, mixed, attention_norm, inner, outer, norm, heads: config.num_attention_heads })
    }

    /// `x` `[B, S, C]` fp32, to the same; matrix products in `kind`. `visible`, `[B, 1, 1 or S, S]` of bool, must show every row
    /// at least one position. With `memory`, which knows the positions before `from`, the rows of `x` are those from there on, and
    /// `visible` is `[B, 1, S, from + S]`.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        visible: Option<&Tensor>,
        kind: Kind,
        memory: Option<(&mut KeyValues, i64)>,
    ) -> Result<Tensor> {
        let (b, s, c) = x.size3()?;
        let y = x.f_to_kind(kind)?;
        let heads = |z: Tensor| z.f_view([b, s, self.heads, c / self.heads])?.f_transpose(1, 2);
        let (q, mut k, mut v) = (heads(self.q.forward(&y))?, heads(self.k.forward(&y))?, heads(self.v.forward(&y))?);
        if let Some((memory, from)) = memory {
            (k, v) = memory.put(from, &k, &v)?;
        }
        let mixed = Tensor::f_scaled_dot_product_attention(&q, &k, &v, visible, 0.0, false, None, false)?;
        let mixed = self.mixed.forward(&mixed.f_transpose(1, 2)?.f_reshape([b, s, c])?);
        let x = self.attention_norm.forward(&x.f_add(&mixed)?);
        let inner = self.inner.forward(&x.f_to_kind(kind)?).f_gelu("none")?;
        Ok(self.norm.forward(&x.f_add(&self.outer.forward(&inner))?))
    }
}
