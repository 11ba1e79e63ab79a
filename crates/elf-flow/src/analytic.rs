//! A field whose flow is known in closed form, for tests of samplers without a network.

use tch::Tensor;

use crate::{Field, Prediction, Result};

/// The exact field of data whose components are independent normal variables of one mean and one standard deviation.
///
/// With `d(t)^2 = t^2 std^2 + (1 - t)^2 sigma^2` the velocity is `mean + (t std^2 - (1 - t) sigma^2) (z - t mean) / d(t)^2`.
/// It is smooth up to t = 1 (no clamp) and ignores hints.
#[derive(Debug, Clone, Copy)]
pub struct GaussianField {
    /// The data's mean.
    pub mean: f64,
    /// The data's standard deviation.
    pub std: f64,
    /// sigma, the noise's standard deviation.
    pub noise_scale: f64,
}

impl GaussianField {
    /// The end at t = 1 of the exact flow from `z0` at t = 0.
    pub fn end_of(&self, z0: &Tensor) -> Tensor {
        z0 * (self.std / self.noise_scale) + self.mean
    }

    /// The slope of the velocity in z at time `t`.
    pub fn slope(&self, t: f64) -> f64 {
        let (data, noise) = (self.std * self.std, self.noise_scale * self.noise_scale);
        (t * data - (1.0 - t) * noise) / (t * t * data + (1.0 - t) * (1.0 - t) * noise)
    }
}

impl Field for GaussianField {
    fn eval(&self, z: &Tensor, t: f64, _hint: Option<&Tensor>) -> Result<Prediction> {
        let v = (z - t * self.mean) * self.slope(t) + self.mean;
        Ok(Prediction { x: z + &v * (1.0 - t), v })
    }

    fn noise_scale(&self) -> f64 {
        self.noise_scale
    }
}
