//! From hidden states to words: H -> C -> V, without ever holding all logits.

use elf_core::{Fans, Init, ParamBuilder, Precision, Result, Weight};
use tch::{Kind, Tensor};

/// Logits held at a time. Large enough that the matrix products run at full speed, small enough for a cache and for any
/// vocabulary.
const LOGITS_AT_A_TIME: i64 = 1 << 24;

#[derive(Debug)]
pub(crate) struct VocabHead {
    proj_kernel: Weight,
    proj_bias: Weight,
    unembed_kernel: Weight,
    unembed_bias: Weight,
    vocab: i64,
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
            vocab,
        })
    }

    /// `[N, H]` to the features before the last product, `[N, C]`, fp32.
    fn features(&self, hidden: &Tensor, precision: Precision) -> Tensor {
        let kind = precision.kind();
        let product = hidden.to_kind(kind).matmul(&self.proj_kernel.get(kind)).to_kind(Kind::Float);
        (product + self.proj_bias.master()).gelu("tanh")
    }

    /// `[N, C]` to `[N, V]`, fp32.
    fn unembed(&self, features: &Tensor, precision: Precision) -> Tensor {
        let kind = precision.kind();
        match precision {
            Precision::F32 => self.unembed_bias.master().addmm(features, self.unembed_kernel.master()),
            Precision::Bf16 => {
                features.to_kind(kind).matmul(&self.unembed_kernel.get(kind)).to_kind(Kind::Float)
                    + self.unembed_bias.master()
            }
        }
    }

    /// `[N, H]` to `[N, V]`, fp32.
    pub(crate) fn logits(&self, hidden: &Tensor, precision: Precision) -> Tensor {
        self.unembed(&self.features(hidden, precision), precision)
    }

    /// The weighted sum of cross-entropies: a differentiable scalar, in chunks of rows.
    ///
    /// The gradient of cross-entropy with respect to its logits is known in closed form (softmax minus one-hot), so each
    /// chunk's part of the gradient is taken while its logits are at hand, and no chunk's logits outlive it. The result
    /// carries those gradients: it is the loss in value, and linear in features, kernel and bias with them as coefficients.
    pub(crate) fn cross_entropy_sum(
        &self,
        hidden: &Tensor,
        ids: &Tensor,
        weights: Option<&Tensor>,
        precision: Precision,
    ) -> Result<Tensor> {
        let rows = hidden.size2()?.0;
        let features = self.features(hidden, precision);
        let with_grad = features.requires_grad();
        let kind = precision.kind();
        let device = hidden.device();
        let value = Tensor::f_zeros([], (Kind::Float, device))?;
        let mut feature_grads = Vec::new();
        let mut kernel_grad: Option<Tensor> = None;
        let mut bias_grad: Option<Tensor> = None;
        tch::no_grad(|| -> Result<()> {
            let step = (LOGITS_AT_A_TIME / self.vocab).max(1);
            for start in (0..rows).step_by(step as usize) {
                let n = step.min(rows - start);
                let x = features.f_narrow(0, start, n)?;
                let target = ids.f_narrow(0, start, n)?;
                let weight = weights.map(|w| w.f_narrow(0, start, n)).transpose()?;
                let x = x.to_kind(kind);
                let mut logits = x.f_matmul(&self.unembed_kernel.get(kind))?;
                let bias = self.unembed_bias.master();
                let (losses, bias_slope) =
                    elf_kernels::cross_entropy(&mut logits, bias, &target, weight.as_ref(), with_grad)?;
                let _ = value.shallow_clone().f_add_(&losses.f_sum(Kind::Float)?)?;
                let Some(bias_slope) = bias_slope else { continue };
                add_to(&mut bias_grad, bias_slope)?;
                let slope = logits;
                feature_grads.push(slope.f_matmul(&self.unembed_kernel.get(kind).tr())?.to_kind(Kind::Float));
                add_to(&mut kernel_grad, x.tr().f_matmul(&slope)?.to_kind(Kind::Float))?;
            }
            Ok(())
        })?;
        let (Some(kernel_grad), Some(bias_grad)) = (kernel_grad, bias_grad) else {
            return Ok(value);
        };
        let linear = (&features * Tensor::f_cat(&feature_grads, 0)?).f_sum(Kind::Float)?
            + (self.unembed_kernel.master() * kernel_grad).f_sum(Kind::Float)?
            + (self.unembed_bias.master() * bias_grad).f_sum(Kind::Float)?;
        Ok(&linear - linear.f_detach()? + value)
    }
}

fn add_to(sum: &mut Option<Tensor>, part: Tensor) -> Result<()> {
    match sum {
        Some(sum) => _ = sum.f_add_(&part)?,
        None => *sum = Some(part),
    }
    Ok(())
}
