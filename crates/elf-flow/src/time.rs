//! Laws of times and guidance scales in training, and the times that a sampler visits.

use elf_core::Noise;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{Error, Result};

/// `sigmoid(mean + std n)` with n standard normal.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogitNormal {
    /// Mean before the sigmoid.
    pub mean: f64,
    /// Standard deviation before the sigmoid.
    pub std: f64,
}

impl LogitNormal {
    /// The law of training times in the released recipes: mostly noisy.
    pub const DENOISER: Self = Self { mean: -1.5, std: 0.8 };
    /// The law of clean shares in decoder training in the released recipes: mostly clean.
    pub const DECODER: Self = Self { mean: 0.8, std: 0.8 };

    /// Turns standard normal numbers into times, element by element.
    pub fn transform(&self, normal: &Tensor) -> Tensor {
        (normal * self.std + self.mean).sigmoid()
    }

    pub(crate) fn check(&self, setting: &str) -> Result<()> {
        // Tensors are fp32 and cannot hold larger numbers.
        if !((self.mean as f32).is_finite() && (self.std as f32).is_finite() && self.std >= 0.0) {
            return Err(Error::setting(
                setting,
                format!(
                    "mean {} and std {} do not make a distribution; use finite numbers and a std of at least 0",
                    self.mean, self.std
                ),
            ));
        }
        Ok(())
    }
}

/// The law of training times, and of the times that a sampler visits between 0 and 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeLaw {
    /// Logit-normal.
    LogitNormal(LogitNormal),
    /// Uniform in [0, 1).
    Uniform,
}

impl TimeLaw {
    /// Checks the settings.
    ///
    /// # Errors
    /// If mean or standard deviation is not a finite number, or the standard deviation is negative.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::LogitNormal(law) => law.check("denoiser_p_mean, denoiser_p_std"),
            Self::Uniform => Ok(()),
        }
    }

    /// One time per row, `[rows]`: the draw `t_normal` or `t_uniform`.
    ///
    /// # Errors
    /// If the noise fails.
    pub fn draw(&self, rows: i64, noise: &mut dyn Noise) -> Result<Tensor> {
        self.draw_named("t", &[rows], noise)
    }

    /// Times of the shape `[rows, ..]`: the draw `NAME_normal` or `NAME_uniform`.
    ///
    /// # Errors
    /// If the noise fails.
    pub fn draw_named(&self, name: &str, shape: &[i64], noise: &mut dyn Noise) -> Result<Tensor> {
        Ok(match self {
            Self::LogitNormal(law) => law.transform(&noise.normal(&format!("{name}_normal"), shape)?),
            Self::Uniform => noise.uniform(&format!("{name}_uniform"), shape)?,
        })
    }

    /// Checks that there is a grid of so many steps.
    pub(crate) fn check_grid(&self, steps: usize) -> Result<()> {
        if let Self::LogitNormal(law) = self {
            law.check("grid")?;
        }
        match steps {
            0 => Err(Error::setting("num_sampling_steps", "at least 1 step is needed")),
            _ => Ok(()),
        }
    }

    /// The `steps + 1` times of a run, ascending from 0 to 1: inner points drawn from a logit-normal law (the draw `grid_normal`) and
    /// sorted, or, for the uniform law, equal steps.
    ///
    /// Draw it from noise of its own, once per run: rows of one batch share it, and a request's result must not depend on the batch
    /// that it is part of.
    ///
    /// # Errors
    /// If `steps` is 0, mean and standard deviation make no law, or the noise fails.
    pub fn grid(&self, steps: usize, noise: &mut dyn Noise) -> Result<Vec<f64>> {
        self.check_grid(steps)?;
        let inner = steps - 1;
        let mut times = Vec::with_capacity(steps + 1);
        times.push(0.0);
        match self {
            Self::Uniform => times.extend((1..steps).map(|i| i as f64 / steps as f64)),
            Self::LogitNormal(law) if inner > 0 => {
                let drawn = law.transform(&noise.normal("grid_normal", &[1, inner as i64])?).f_view([inner as i64])?;
                let mut drawn = Vec::<f32>::try_from(&drawn)?;
                drawn.sort_by(f32::total_cmp);
                times.extend(drawn.into_iter().map(f64::from));
            }
            Self::LogitNormal(_) => {}
        }
        times.push(1.0);
        Ok(times)
    }
}

/// The law of guidance scales in training: `w = (1 + min) exp(u ln((1 + max) / (1 + min))) - 1`, which is log-uniform in
/// 1 + w (so in the released code).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuidanceLaw {
    /// Smallest scale.
    pub min: f64,
    /// Largest scale.
    pub max: f64,
}

impl Default for GuidanceLaw {
    fn default() -> Self {
        Self { min: 0.5, max: 5.0 }
    }
}

impl GuidanceLaw {
    /// Checks the settings.
    ///
    /// # Errors
    /// If the range is empty or contains no positive scales (the training target divides by w).
    pub fn check(&self) -> Result<()> {
        // Tensors are fp32 and cannot hold larger numbers.
        if !(self.min > 0.0 && self.min <= self.max && (self.max as f32).is_finite()) {
            return Err(Error::setting(
                "self_cond_cfg_min, self_cond_cfg_max",
                format!("{} to {} is not a range of positive scales", self.min, self.max),
            ));
        }
        Ok(())
    }

    /// Turns uniform numbers in [0, 1) into scales, element by element.
    pub fn transform(&self, uniform: &Tensor) -> Tensor {
        (uniform * ((1.0 + self.max) / (1.0 + self.min)).ln()).exp() * (1.0 + self.min) - 1.0
    }
}
