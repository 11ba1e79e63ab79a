//! From hidden states to words: H -> C -> V, without ever holding all logits.

use elf_core::{Fans, Init, ParamBuilder, Precision, Result, Unembedding, Weight};
use tch::{Kind, Tensor};

#[derive(Debug)]
pub(crate) struct VocabHead {
    proj_kernel: Weight,
    proj_bias: Weight,
    unembed_kernel: Weight,
    unembed_bias: Weight,
}

impl VocabHead {
    pub(crate) fn new(b: &mut ParamBuilder, hidden: i64, latent: i64, vocab: i64) -> Result<Self> {
        let matrix = |b: &mut ParamBuilder, name: &str, fan_in: i64, fan_out: i64| {
            b.matrix(name, [fan_in, fan_out], Init::XavierUniform, Fans { fan_in, fan_out })
        };
        Ok(Self {
            proj_kernel: matrix(b, "proj_kernel", hidden, latent)?,
            proj_bias: b.tensor("proj_bias", &[latent], Init::Constant(0.0))?,
            unembed_kernel: matrix(b, "unembed_kernel", latent, vocab)?,
            unembed_bias: b.tensor("unembed_bias", &[vocab], Init::Constant(0.0))?,
        })
    }

    /// `[N, H]` to the features before the last product, `[N, C]`, fp32.
    fn features(&self, hidden: &Tensor, precision: Precision) -> Tensor {
        let kind = precision.kind();
        let product = hidden.to_kind(kind).matmul(&self.proj_kernel.get(kind)).to_kind(Kind::Float);
        (product + self.proj_bias.master()).gelu("tanh")
    }

    fn unembedding(&self, precision: Precision) -> Unembedding {
        Unembedding::of_columns(&self.unembed_kernel, self.unembed_bias.master(), precision)
    }

    /// `[N, H]` to `[N, V]`, fp32.
    pub(crate) fn logits(&self, hidden: &Tensor, precision: Precision) -> Result<Tensor> {
        self.unembedding(precision).logits(&self.features(hidden, precision))
    }

    /// The weighted sum of cross-entropies: a differentiable scalar, in chunks of rows.
    pub(crate) fn cross_entropy_sum(
        &self,
        hidden: &Tensor,
        ids: &Tensor,
        weights: Option<&Tensor>,
        precision: Precision,
    ) -> Result<Tensor> {
        self.unembedding(precision).cross_entropy_sum(&self.features(hidden, precision), ids, weights)
    }
}
