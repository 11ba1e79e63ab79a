//! The head from hidden states to words, H -> C -> V, which never stores all logits.

use elf_core::layers::RmsNorm;
use elf_core::{CrossEntropy, Fans, Init, ParamBuilder, Precision, Result, Unembedding, Weight};
use tch::{Kind, Tensor};

use crate::ElfConfig;

/// The name of the normalisation before the head; the released model has none.
pub(crate) const VOCAB_HEAD_NORM: &str = "vocab_head_norm";

const EPS: f64 = 1e-6;

#[derive(Debug)]
pub(crate) struct VocabHead {
    norm: Option<RmsNorm>,
    proj_kernel: Weight,
    proj_bias: Weight,
    unembed_kernel: Weight,
    unembed_bias: Weight,
}

impl VocabHead {
    pub(crate) fn new(b: &mut ParamBuilder, config: &ElfConfig) -> Result<Self> {
        let (hidden, latent, vocab) = (config.hidden_size, config.text_encoder_dim, config.vocab_size);
        let matrix = |b: &mut ParamBuilder, name: &str, fan_in: i64, fan_out: i64| {
            b.matrix(name, [fan_in, fan_out], Init::XavierUniform, Fans { fan_in, fan_out })
        };
        let norm = match config.vocab_head_norm {
            true => Some(RmsNorm::new(b, VOCAB_HEAD_NORM, hidden, EPS)?),
            false => None,
        };
        Ok(Self {
            norm,
            proj_kernel: matrix(b, "proj_kernel", hidden, latent)?,
            proj_bias: b.tensor("proj_bias", &[latent], Init::Constant(0.0))?,
            unembed_kernel: matrix(b, "unembed_kernel", latent, vocab)?,
            unembed_bias: b.tensor("unembed_bias", &[vocab], Init::Constant(0.0))?,
        })
    }

    /// `[N, H]` to the features before the last product, `[N, C]`, fp32.
    fn features(&self, hidden: &Tensor, precision: Precision) -> Tensor {
        let kind = precision.kind();
        let hidden = match &self.norm {
            Some(norm) => norm.forward_to(hidden, kind),
            None => hidden.to_kind(kind),
        };
        let product = hidden.matmul(&self.proj_kernel.get(kind)).to_kind(Kind::Float);
        (product + self.proj_bias.master()).gelu("tanh")
    }

    fn unembedding(&self, precision: Precision) -> Unembedding {
        Unembedding::of_columns(&self.unembed_kernel, self.unembed_bias.master(), precision)
    }

    /// Logits: `[N, H]` to `[N, V]`, fp32.
    pub(crate) fn logits(&self, hidden: &Tensor, precision: Precision) -> Result<Tensor> {
        self.unembedding(precision).logits(&self.features(hidden, precision))
    }

    /// Cross-entropies, in chunks of rows.
    pub(crate) fn cross_entropy(
        &self,
        hidden: &Tensor,
        ids: &Tensor,
        weights: Option<&Tensor>,
        precision: Precision,
    ) -> Result<CrossEntropy> {
        self.unembedding(precision).cross_entropy(&self.features(hidden, precision), ids, weights)
    }
}
