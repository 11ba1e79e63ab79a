//! The straight path between noise and data.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{Error, Result};

/// `z_t = t x0 + (1 - t) sigma eps`: pure noise of scale sigma at t = 0, data at t = 1.
///
/// The network predicts x0; velocities follow from it. Both the predicted and the target velocity divide by
/// `max(1 - t, t_eps)`: the clamp is in the released code, not in the paper.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Path {
    /// sigma, the standard deviation of the noise at t = 0.
    pub noise_scale: f64,
    /// The smallest remaining time that a velocity is divided by.
    pub t_eps: f64,
}

impl Default for Path {
    /// The released recipes' values.
    fn default() -> Self {
        Self { noise_scale: 2.0, t_eps: 0.05 }
    }
}

impl Path {
    /// Checks the settings.
    ///
    /// # Errors
    /// If the noise scale is not positive or `t_eps` is not in (0, 1].
    pub fn check(&self) -> Result<()> {
        // Tensors are fp32: a larger number would not fit beside them.
        if !(self.noise_scale > 0.0 && (self.noise_scale as f32).is_finite()) {
            return Err(Error::setting(
                "denoiser_noise_scale",
                format!("{} is not a positive number", self.noise_scale),
            ));
        }
        if !(self.t_eps > 0.0 && self.t_eps <= 1.0) {
            return Err(Error::setting("t_eps", format!("{} is not in (0, 1]", self.t_eps)));
        }
        Ok(())
    }

    /// The point at time `t` on the line from `eps` (standard normal) to `x0`; all three broadcast together.
    pub fn interpolate(&self, x0: &Tensor, eps: &Tensor, t: &Tensor) -> Tensor {
        t * x0 + (1.0 - t) * eps * self.noise_scale
    }

    /// The velocity at `z` and time `t` of the line that ends in `x`: `(x - z) / max(1 - t, t_eps)`; all three broadcast.
    pub fn velocity(&self, x: &Tensor, z: &Tensor, t: &Tensor) -> Tensor {
        let left: Tensor = 1.0 - t;
        (x - z) / left.clamp_min(self.t_eps)
    }

    /// [`Path::velocity`] at one time for all rows.
    pub fn velocity_at(&self, x: &Tensor, z: &Tensor, t: f64) -> Tensor {
        (x - z) / (1.0 - t).max(self.t_eps)
    }
}
