//! Velocity fields over latents, which samplers integrate.

use tch::Tensor;

use crate::{Prediction, Result};

/// A velocity field over latents. Guidance wraps a field and is itself a field; samplers know nothing but this trait.
pub trait Field {
    /// The prediction at `z` `[B, S, C]` and time `t` in [0, 1].
    ///
    /// `hint` `[B, S, C]` is an earlier clean estimate of the same rows, which self-conditioned networks take as a second
    /// input; `None` is no estimate yet.
    ///
    /// # Errors
    /// If a shape does not fit or the network fails.
    fn eval(&self, z: &Tensor, t: f64, hint: Option<&Tensor>) -> Result<Prediction>;

    /// Puts the clean condition back in its positions. A sampler calls this after any change of `z` that is not along `v`.
    ///
    /// # Errors
    /// If libtorch fails.
    fn pin(&self, z: Tensor) -> Result<Tensor> {
        Ok(z)
    }

    /// sigma, the standard deviation of the latents at t = 0: samplers that add noise scale it by this.
    fn noise_scale(&self) -> f64;
}

impl<F: Field + ?Sized> Field for &F {
    fn eval(&self, z: &Tensor, t: f64, hint: Option<&Tensor>) -> Result<Prediction> {
        (**self).eval(z, t, hint)
    }

    fn pin(&self, z: Tensor) -> Result<Tensor> {
        (**self).pin(z)
    }

    fn noise_scale(&self) -> f64 {
        (**self).noise_scale()
    }
}

impl<F: Field + ?Sized> Field for Box<F> {
    fn eval(&self, z: &Tensor, t: f64, hint: Option<&Tensor>) -> Result<Prediction> {
        (**self).eval(z, t, hint)
    }

    fn pin(&self, z: Tensor) -> Result<Tensor> {
        (**self).pin(z)
    }

    fn noise_scale(&self) -> f64 {
        (**self).noise_scale()
    }
}
