//! Cross-entropy against a vocabulary without all logits in memory.

use tch::{Kind, Tensor};

use crate::device::at_a_time;
use crate::{CrossEntropy, Precision, Result, Weight};

/// Number of logits held at a time on a CPU: enough for matrix products at full speed, few enough for a cache with any
/// vocabulary.
const LOGITS_AT_A_TIME: i64 = 1 << 24;

/// The last matrix product of a network, from features to logits. Token vectors are columns or rows of the matrix.
#[derive(Debug)]
pub struct Unembedding {
    /// The stored matrix, fp32.
    stored: Tensor,
    /// The matrix in the kind of the products, `[C, V]`.
    kernel: Tensor,
    /// `[V]`, fp32.
    bias: Tensor,
    /// Whether `stored` is `[V, C]`.
    in_rows: bool,
}

impl Unembedding {
    /// Token vectors in the columns of `kernel` `[C, V]`, with a bias `[V]` (fp32).
    pub fn of_columns(kernel: &Weight, bias: &Tensor, precision: Precision) -> Self {
        let (stored, kernel) = (kernel.master().shallow_clone(), kernel.get(precision.kind()));
        Self { stored, kernel, bias: bias.shallow_clone(), in_rows: false }
    }

    /// Token vectors in the first V rows of `table`, as in a head tied to an embedding, with a bias `[V]` (fp32) that
    /// determines V.
    ///
    /// # Errors
    /// If the table has fewer rows.
    pub fn of_rows(table: &Weight, bias: &Tensor, precision: Precision) -> Result<Self> {
        let words = bias.size1()?;
        let stored = table.master().f_narrow(0, 0, words)?;
        let kernel = table.get(precision.kind()).f_narrow(0, 0, words)?.f_tr()?;
        Ok(Self { stored, kernel, bias: bias.shallow_clone(), in_rows: true })
    }

    /// Logits `[N, V]`, fp32, of features `[N, C]`.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn logits(&self, features: &Tensor) -> Result<Tensor> {
        if self.kernel.kind() == Kind::Float {
            return Ok(self.bias.f_addmm(&features.f_to_kind(Kind::Float)?, &self.kernel)?);
        }
        let product = features.f_to_kind(self.kernel.kind())?.f_matmul(&self.kernel)?;
        Ok(product.f_to_kind(Kind::Float)?.f_add(&self.bias)?)
    }

    /// Cross-entropies of `features` `[N, C]` (fp32) against `ids` `[N]`, in chunks of rows. `weights` `[N]` is 1 everywhere if it
    /// is `None`.
    ///
    /// The gradient of cross-entropy with respect to its logits is known in closed form (softmax minus one-hot), so each
    /// chunk's part of the gradient is taken while its logits are at hand, and no chunk's logits outlive it. The sum
    /// carries those gradients: it is the loss in value, and linear in features, kernel and bias with them as coefficients.
    ///
    /// # Errors
    /// If shapes do not fit, an id is outside of the vocabulary, or libtorch fails.
    pub fn cross_entropy(&self, features: &Tensor, ids: &Tensor, weights: Option<&Tensor>) -> Result<CrossEntropy> {
        let (rows, vocab) = (features.size2()?.0, self.bias.size1()?);
        let (with_grad, kind) = (features.requires_grad(), self.kernel.kind());
        let mut each = vec![Tensor::f_zeros([0], (Kind::Float, features.device()))?];
        let mut feature_grads = Vec::new();
        let mut kernel_grad: Option<Tensor> = None;
        let mut bias_grad: Option<Tensor> = None;
        tch::no_grad(|| -> Result<()> {
            let step = (at_a_time(features.device(), LOGITS_AT_A_TIME) / vocab).max(1);
            for start in (0..rows).step_by(step as usize) {
                let n = step.min(rows - start);
                let x = features.f_narrow(0, start, n)?.f_to_kind(kind)?;
                let target = ids.f_narrow(0, start, n)?;
                let weight = weights.map(|w| w.f_narrow(0, start, n)).transpose()?;
                let mut logits = x.f_matmul(&self.kernel)?;
                let (losses, bias_slope) =
                    elf_kernels::cross_entropy(&mut logits, &self.bias, &target, weight.as_ref(), with_grad)?;
                each.push(losses);
                let Some(bias_slope) = bias_slope else { continue };
                add_to(&mut bias_grad, bias_slope)?;
                let slope = logits;
                feature_grads.push(slope.f_matmul(&self.kernel.f_tr()?)?.f_to_kind(Kind::Float)?);
                let of_kernel = match self.in_rows {
                    true => slope.f_tr()?.f_matmul(&x)?,
                    false => x.f_tr()?.f_matmul(&slope)?,
                };
                add_to(&mut kernel_grad, of_kernel.f_to_kind(Kind::Float)?)?;
            }
            Ok(())
        })?;
        let each = Tensor::f_cat(&each, 0)?;
        let value = each.f_sum(Kind::Float)?;
        let (Some(kernel_grad), Some(bias_grad)) = (kernel_grad, bias_grad) else {
            return Ok(CrossEntropy { sum: value, each });
        };
        let linear = (features * Tensor::f_cat(&feature_grads, 0)?).f_sum(Kind::Float)?
            + (&self.stored * kernel_grad).f_sum(Kind::Float)?
            + (&self.bias * bias_grad).f_sum(Kind::Float)?;
        Ok(CrossEntropy { sum: &linear - linear.f_detach()? + value, each })
    }
}

fn add_to(sum: &mut Option<Tensor>, part: Tensor) -> Result<()> {
    match sum {
        Some(sum) => _ = sum.f_add_(&part)?,
        None => *sum = Some(part),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Fans, Init, ParamBuilder};
    use tch::Device;

    /// Value and gradients equal those of libtorch's own cross-entropy, whichever way the words lie.
    #[test]
    fn value_and_gradients_are_those_of_plain_cross_entropy() {
        let (c, v) = (6, 11);
        let fans = Fans { fan_in: c, fan_out: v };
        for in_rows in [false, true] {
            let mut b = ParamBuilder::seeded(3, Device::Cpu);
            // One row more than words: the row of a symbol that is never predicted.
            let shape = if in_rows { [v + 1, c] } else { [c, v] };
            let weight = b.matrix("kernel", shape, Init::Normal(0.5), fans).unwrap();
            let bias = b.tensor("bias", &[v], Init::Normal(0.5)).unwrap();
            let features = b.tensor("features", &[5, c], Init::Normal(1.0)).unwrap();
            let params = b.finish();
            params.set_requires_grad(true);
            let ids = Tensor::from_slice(&[0i64, 10, 4, 4, 7]);
            let weights = Tensor::from_slice(&[1f32, 0.5, 0.0, 2.0, 1.0]);
            let head = match in_rows {
                true => Unembedding::of_rows(&weight, bias.master(), Precision::F32).unwrap(),
                false => Unembedding::of_columns(&weight, bias.master(), Precision::F32),
            };
            let CrossEntropy { sum: ours, each } = head.cross_entropy(features.master(), &ids, Some(&weights)).unwrap();
            let grads = |loss: &Tensor| {
                params.zero_grad();
                loss.backward();
                params.iter().map(|(_, p)| p.tensor.grad().copy()).collect::<Vec<_>>()
            };
            let of_ours = grads(&ours);
            let nll = head.logits(features.master()).unwrap().cross_entropy_loss(
                &ids,
                None::<&Tensor>,
                tch::Reduction::None,
                -100,
                0.0,
            );
            let weighted = nll * &weights;
            assert!((each - weighted.detach()).abs().max().double_value(&[]) < 1e-5);
            let plain = weighted.sum(Kind::Float);
            assert!((&ours - &plain).abs().double_value(&[]) < 1e-5);
            for (a, b) in of_ours.iter().zip(grads(&plain)) {
                assert!((a - b).abs().max().double_value(&[]) < 1e-5);
            }
        }
    }
}
