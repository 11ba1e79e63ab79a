//! The straight path between noise and data.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{Error, Prediction, Result};

/// `z_t = t x0 + (1 - t) sigma eps`: pure noise of scale sigma at t = 0, data at t = 1.
///
/// The network predicts x0, from which velocities follow, or the other way round. Both the predicted and the target velocity
/// divide by `max(1 - t, t_eps)`: the clamp is in the released code, not in the paper.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowPath {
    /// sigma, the standard deviation of the noise at t = 0.
    pub noise_scale: f64,
    /// The smallest remaining time that a velocity is divided by.
    pub t_eps: f64,
    /// The quantity that the network's head predicts.
    #[serde(default)]
    pub prediction: PredictionTarget,
}

/// The quantity that a network's head predicts at a noisy point. The loss is that of the velocity in both cases (the paper's ablation
/// of x- against v-prediction).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PredictionTarget {
    /// The clean latents, as ELF does.
    #[default]
    #[serde(rename = "x")]
    Clean,
    /// The velocity from noise to data.
    #[serde(rename = "v")]
    Velocity,
}

impl Default for FlowPath {
    /// The released recipes' values.
    fn default() -> Self {
        Self { noise_scale: 2.0, t_eps: 0.05, prediction: PredictionTarget::Clean }
    }
}

impl FlowPath {
    /// Checks the settings.
    ///
    /// # Errors
    /// If the noise scale is not positive or `t_eps` is not in (0, 1].
    pub fn check(&self) -> Result<()> {
        // Tensors are fp32 and cannot hold a larger number.
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

    /// [`FlowPath::velocity`] at one time for all rows.
    pub fn velocity_at(&self, x: &Tensor, z: &Tensor, t: f64) -> Tensor {
        (x - z) / (1.0 - t).max(self.t_eps)
    }

    /// The clean latents that follow from a network's `head` at `z` and time `t`; all three broadcast.
    pub fn clean_of(&self, head: Tensor, z: &Tensor, t: &Tensor) -> Tensor {
        match self.prediction {
            PredictionTarget::Clean => head,
            PredictionTarget::Velocity => {
                let left: Tensor = 1.0 - t;
                z + left.clamp_min(self.t_eps) * head
            }
        }
    }

    /// The velocity that follows from a network's `head` at `z` and time `t`; all three broadcast.
    pub fn velocity_of(&self, head: Tensor, z: &Tensor, t: &Tensor) -> Tensor {
        match self.prediction {
            PredictionTarget::Clean => self.velocity(&head, z, t),
            PredictionTarget::Velocity => head,
        }
    }

    /// Clean latents and velocity, at one time for all rows.
    pub(crate) fn resolve_at(&self, head: Tensor, z: &Tensor, t: f64) -> Prediction {
        match self.prediction {
            PredictionTarget::Clean => Prediction { v: self.velocity_at(&head, z, t), x: head },
            PredictionTarget::Velocity => Prediction { x: z + &head * (1.0 - t).max(self.t_eps), v: head },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A head of clean latents and the head of the same velocities give the same results, at the clamp too.
    #[test]
    fn heads_of_either_kind_agree() {
        let x = Tensor::from_slice(&[0.5f32, -1.0, 2.0]);
        let z = Tensor::from_slice(&[1.0f32, 0.25, -3.0]);
        let clean = FlowPath::default();
        let velocity = FlowPath { prediction: PredictionTarget::Velocity, ..clean };
        for t in [0.0, 0.3, 0.97, 1.0] {
            let time = Tensor::from(t).to_kind(tch::Kind::Float);
            let v = clean.velocity_of(x.shallow_clone(), &z, &time);
            let close = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]) < 1e-5;
            assert!(close(&velocity.clean_of(v.shallow_clone(), &z, &time), &x), "{t}");
            assert!(close(&velocity.velocity_of(v.shallow_clone(), &z, &time), &v), "{t}");
            let (a, b) = (clean.resolve_at(x.shallow_clone(), &z, t), velocity.resolve_at(v, &z, t));
            assert!(close(&a.v, &b.v) && close(&a.x, &b.x), "{t}");
        }
    }

    #[test]
    fn settings_without_a_prediction_are_of_the_clean_kind() {
        let path: FlowPath = serde_json::from_str(r#"{"noise_scale": 2.0, "t_eps": 0.05}"#).unwrap();
        assert_eq!(path, FlowPath::default());
    }
}
