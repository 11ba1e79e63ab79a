//! Gradients of all parameters: allocation, global norm, and clipping.

use elf_core::ParamSet;
use tch::{Device, Kind, Tensor};

use crate::Result;

/// Gives every parameter a gradient of zeros. From then on backward passes add to these tensors, and all ranks of a run
/// have gradients of the same parameters, even if their rows use different ones.
pub(crate) fn allocate_gradients(params: &ParamSet) -> Result<()> {
    for (_, p) in params.iter() {
        p.tensor.shallow_clone().zero_grad();
        // The derivative of 0 p is 0 for every p.
        let zeros = tch::no_grad(|| p.tensor.f_zeros_like())?;
        (&p.tensor * zeros).f_sum(Kind::Float)?.f_backward()?;
    }
    Ok(())
}

/// All existing gradients, in the order of the parameters. A parameter that no loss has reached yet may have none.
pub(crate) fn gradients(params: &ParamSet) -> Result<Vec<Tensor>> {
    let mut found = Vec::with_capacity(params.len());
    for (_, p) in params.iter() {
        let grad = p.tensor.f_grad()?;
        if grad.defined() {
            found.push(grad);
        }
    }
    Ok(found)
}

/// The Euclidean norm over all gradients together: an fp32 scalar on their device, not yet read. It is infinite or NaN
/// if any gradient is.
///
/// # Errors
/// If libtorch fails.
pub fn grad_norm(params: &ParamSet) -> Result<Tensor> {
    tch::no_grad(|| norm_of(&gradients(params)?))
}

/// The Euclidean norm over several tensors together.
pub(crate) fn norm_of(tensors: &[Tensor]) -> Result<Tensor> {
    Ok(match tensors.is_empty() {
        true => Tensor::f_zeros([], (Kind::Float, Device::Cpu))?,
        false => elf_kernels::lists::norms(tensors)?.f_norm()?,
    })
}

/// Scales all gradients, in place, so that their global norm is at most `max_norm`; returns the norm from before.
///
/// The factor is `min(1, max_norm / (norm + 1e-6))`, as in PyTorch, and never leaves the device.
///
/// # Errors
/// If libtorch fails.
pub fn clip_grad_norm(params: &ParamSet, max_norm: f64) -> Result<Tensor> {
    tch::no_grad(|| {
        let gradients = gradients(params)?;
        let norm = norm_of(&gradients)?;
        let factor = ((&norm + 1e-6).f_reciprocal()? * max_norm).f_clamp_max(1.0)?;
        elf_kernels::lists::scale(&gradients, &factor)?;
        Ok(norm)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use elf_core::{Init, ParamBuilder};

    fn with_gradients(scale: f64) -> ParamSet {
        let mut b = ParamBuilder::seeded(3, Device::Cpu);
        let weights =
            [b.tensor("a", &[4], Init::Normal(1.0)).unwrap(), b.tensor("b", &[2, 3], Init::Normal(1.0)).unwrap()];
        b.tensor("unused", &[5], Init::Normal(1.0)).unwrap();
        let set = b.finish();
        set.set_requires_grad(true);
        let loss: Tensor = weights.iter().map(|w| w.master().square().sum(Kind::Float)).sum();
        (loss * (scale / 2.0)).backward();
        set
    }

    /// With half the sum of squares as the loss, the gradient is the parameter itself.
    fn expected(set: &ParamSet) -> f64 {
        ["a", "b"]
            .iter()
            .map(|n| set.get(n).unwrap().tensor.square().sum(Kind::Double).double_value(&[]))
            .sum::<f64>()
            .sqrt()
    }

    #[test]
    fn large_gradients_are_scaled_to_the_limit_and_small_ones_are_left_alone() {
        let set = with_gradients(10.0);
        let norm = clip_grad_norm(&set, 1.0).unwrap().double_value(&[]);
        assert!((norm - 10.0 * expected(&set)).abs() < 1e-4, "{norm}");
        assert!((grad_norm(&set).unwrap().double_value(&[]) - 1.0).abs() < 1e-5);

        let set = with_gradients(1e-3);
        let before = set.get("a").unwrap().tensor.grad().copy();
        let _ = clip_grad_norm(&set, 1.0).unwrap();
        assert!(set.get("a").unwrap().tensor.grad().equal(&before));
    }

    #[test]
    fn one_nan_makes_the_norm_nan() {
        let set = with_gradients(1.0);
        let _ = set.get("b").unwrap().tensor.grad().get(0).fill_(f64::NAN);
        assert!(clip_grad_norm(&set, 1.0).unwrap().double_value(&[]).is_nan());
    }

    #[test]
    fn allocated_gradients_are_zero_and_are_added_to() {
        let set = with_gradients(1.0);
        let _ = tch::no_grad(|| set.get("a").unwrap().tensor.shallow_clone().fill_(f64::NAN));
        assert_eq!(gradients(&set).unwrap().len(), 2);
        allocate_gradients(&set).unwrap();
        let all = gradients(&set).unwrap();
        assert_eq!(all.len(), 3);
        assert!(all.iter().all(|g| g.abs().max().double_value(&[]) == 0.0));
        let b = &set.get("b").unwrap().tensor;
        (b * 3.0).sum(Kind::Float).backward();
        assert_eq!(all[1].double_value(&[0, 0]), 3.0);
    }

    #[test]
    fn no_gradients_have_norm_zero() {
        let mut b = ParamBuilder::seeded(3, Device::Cpu);
        b.tensor("a", &[4], Init::Normal(1.0)).unwrap();
        assert_eq!(clip_grad_norm(&b.finish(), 1.0).unwrap().double_value(&[]), 0.0);
    }
}
