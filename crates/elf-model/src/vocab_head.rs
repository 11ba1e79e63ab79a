//! The head from hidden states to words, H -> C -> V, which never stores all logits.

use elf_core::layers::RmsNorm;
use elf_core::{CrossEntropy, Fans, Init, ParamBuilder, Precision, Result, Unembedding, Weight};
use tch::{Kind, Tensor};

use crate::ElfConfig;

/// The name of the normalisation before the head; the released model has none.
pub(crate) const VOCAB_HEAD_NORM: &str = "vocab_head_norm";

const EPS: f64 = 1e-6;

/// By how much the first product of a head that starts as a reader is scaled down, so that its first logits are the words' shares.
const START_SCALE: f64 = 0.1;

/// The length of the longest direction in such a head: how sure it is grows with what the first product learns.
const START_LENGTH: f64 = 8.0;

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

    /// Sets the head to a linear reader of latents: directions `weight` `[V, C]` and biases `bias` `[V]` of the logits
    /// `latents weight^T + bias`. The longest directions get the length [`START_LENGTH`].
    ///
    /// The activation between the two products is not linear, but `gelu(y) - gelu(-y) = y`: pairs of features of opposite
    /// sign carry the C / 2 directions of the latents that the reader uses most. The first product then starts small, and
    /// what it has to learn is to say the latents in these directions.
    pub(crate) fn start_as_reader(&self, weight: &Tensor, bias: &Tensor) -> Result<()> {
        tch::no_grad(|| {
            let (hidden, latent) = self.proj_kernel.master().size2()?;
            let pairs = latent / 2;
            let weight = weight.f_to_kind(Kind::Double)?;
            // Ascending eigenvalues: the last columns are the directions with the largest weights.
            let (_, directions) = weight.tr().f_matmul(&weight)?.f_linalg_eigh("L")?;
            let used = directions.f_narrow(1, latent - pairs, pairs)?;
            let own = weight.f_matmul(&used)?.tr();
            let longest = own.f_norm_scalaropt_dim(2.0, [0i64], false)?.f_max()?;
            let own = own * START_LENGTH / longest.f_clamp_min(f64::MIN_POSITIVE)?;
            let mut unembed = self.unembed_kernel.master().shallow_clone();
            let _ = unembed.f_zero_()?;
            unembed.f_narrow(0, 0, pairs)?.f_copy_(&own)?;
            unembed.f_narrow(0, pairs, pairs)?.f_copy_(&own.f_neg()?)?;
            self.unembed_bias.master().shallow_clone().f_copy_(bias)?;
            let proj = self.proj_kernel.master().shallow_clone();
            let half = proj.f_narrow(1, 0, pairs)?.f_mul_scalar(START_SCALE)?;
            debug_assert_eq!(half.size(), [hidden, pairs]);
            proj.f_narrow(1, 0, pairs)?.f_copy_(&half)?;
            proj.f_narrow(1, pairs, pairs)?.f_copy_(&half.f_neg()?)?;
            Ok(())
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
