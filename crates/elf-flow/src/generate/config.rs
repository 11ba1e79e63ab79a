//! How text is sampled, and whether a network can be sampled so.

use elf_core::{NetworkShape, Noise, TokenDraw};
use serde::{Deserialize, Serialize};

use crate::sampler::{Registry, SamplerChoice, Sde};
use crate::{Error, LogitNormal, Result, TimeLaw, TrainedFlow};

/// Far more than is useful: a mistyped number must not exhaust memory.
const MAX_STEPS: usize = 100_000;

/// How text is sampled. The defaults are the published setting for 32 steps of unconditional text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GenerateConfig {
    /// The sampler and its settings.
    pub sampler: SamplerChoice,
    /// N, the steps of a run.
    pub steps: usize,
    /// The law of the times that a run visits.
    pub grid: TimeLaw,
    /// The seed of a random grid: of the run, not of a row, since all rows of a batch visit the same times.
    pub grid_seed: u64,
    /// w, the self-conditioning guidance scale; 1 is none.
    pub self_conditioning_guidance: f64,
    /// s, the condition guidance scale; 1 is none, anything else doubles the cost of a step.
    pub condition_guidance: f64,
    /// The time in (0, 1] from which the last step leads to the end, all others lying evenly or by `grid` before it; 1 for times of `grid`
    /// alone, as in the paper. With a sampler that follows the clean estimate, the network then decodes the estimate that it makes at this
    /// time, which helps where later ones are worse.
    pub leap_at: f64,
    /// The time in (0, 1] at which a run ends and the network decodes; the paper's is 1. Decode rows of training are noisy, so the
    /// network has learned to decode earlier, which helps where it has learned the last steps to clean latents less well than
    /// decoding noisy ones. The grid is cut at this time: fewer steps are made.
    pub decode_at: f64,
    /// How words are chosen from the network's prediction at `decode_at`. The paper takes the likeliest. Where a run is decoded while
    /// much of a word is still open, the likeliest word is the commonplace one, and a drawn word is not. All tokens of a block are
    /// drawn independently, so draw in blocks of one token, or at `decode_at` 1.
    pub draw: TokenDraw,
    /// Fills every batch up to this many rows. Matrix products of another shape may round differently, and a rounding may change a
    /// token: with one fixed shape a row's tokens depend on its seed and its condition, not on the other rows. Where rows stand alone
    /// anyway ([`elf_core::Network::rows_stand_alone`]), batches are not filled up.
    pub pad_to: Option<usize>,
}

impl Default for GenerateConfig {
    fn default() -> Self {
        Self {
            sampler: SamplerChoice::of(&Sde::default()),
            steps: 32,
            grid: TimeLaw::LogitNormal(LogitNormal::DENOISER),
            grid_seed: 0,
            self_conditioning_guidance: 3.0,
            condition_guidance: 1.0,
            leap_at: 1.0,
            decode_at: 1.0,
            draw: TokenDraw::LIKELIEST,
            pad_to: None,
        }
    }
}

impl GenerateConfig {
    /// Checks that a network of this shape, trained so, can be sampled with these settings. No network is needed.
    ///
    /// # Errors
    /// Names the first setting that makes no sense, alone or for such a network.
    pub fn check(&self, shape: &NetworkShape, trained: &TrainedFlow, registry: &Registry) -> Result<()> {
        trained.path.check()?;
        registry.config(&self.sampler)?;
        let w = self.self_conditioning_guidance;
        for (setting, scale) in [("self_conditioning_guidance", w), ("condition_guidance", self.condition_guidance)] {
            // Tensors are fp32 and cannot hold a larger number.
            if !(scale as f32).is_finite() {
                return Err(Error::setting(setting, format!("{scale} is not a scale")));
            }
        }
        if w != 1.0 && !trained.self_conditioned && !shape.guidance_input {
            let reason = format!("{w} is asked for, but this network was trained without self-conditioning; use 1");
            return Err(Error::setting("self_conditioning_guidance", reason));
        }
        if self.steps > MAX_STEPS {
            let reason = format!("{} steps are more than the {MAX_STEPS} that are allowed", self.steps);
            return Err(Error::setting("steps", reason));
        }
        self.grid.check_grid(self.steps)?;
        for (setting, time) in [("leap_at", self.leap_at), ("decode_at", self.decode_at)] {
            if !(time > 0.0 && time <= 1.0) {
                return Err(Error::setting(setting, format!("{time} is not a time in (0, 1]")));
            }
        }
        self.draw.check()?;
        match self.pad_to {
            Some(0) => Err(Error::setting("pad_to", "a batch of 0 rows holds nothing")),
            _ => Ok(()),
        }
    }

    /// The times of a run, from 0 to `decode_at`.
    ///
    /// # Errors
    /// If the noise fails.
    pub(super) fn times(&self, noise: &mut dyn Noise) -> Result<Vec<f64>> {
        let times = match self.leap_at < 1.0 && self.steps > 1 {
            true => {
                let before = self.grid.grid(self.steps - 1, noise)?;
                before.into_iter().map(|t| t * self.leap_at).chain([1.0]).collect()
            }
            false => self.grid.grid(self.steps, noise)?,
        };
        Ok(until(times, self.decode_at))
    }
}

/// The times before `end`, and `end` itself.
pub(super) fn until(mut times: Vec<f64>, end: f64) -> Vec<f64> {
    if end < 1.0 {
        times.retain(|&t| t < end);
        times.push(end);
    }
    times
}

#[cfg(test)]
mod tests {
    use elf_core::Seeded;
    use tch::Device;

    use super::*;

    #[test]
    fn a_leap_is_the_last_step_and_the_others_lie_before_it() {
        let with = |leap_at, steps| GenerateConfig {
            leap_at,
            grid: TimeLaw::Uniform,
            steps,
            self_conditioning_guidance: 1.0,
            ..GenerateConfig::default()
        };
        let times = with(0.4, 5).times(&mut Seeded::new(vec![0], Device::Cpu)).unwrap();
        assert_eq!(times.len(), 6);
        assert!(times.iter().zip([0.0, 0.1, 0.2, 0.3, 0.4, 1.0]).all(|(a, b)| (a - b).abs() < 1e-12), "{times:?}");
        let shape =
            NetworkShape { latent_dim: 2, hidden_size: 2, vocab_size: 2, guidance_input: false, stochastic: false };
        let flow = crate::FlowPath::default();
        let trained = TrainedFlow { path: flow, self_conditioned: false, block_size: None };
        let check = |config: GenerateConfig| config.check(&shape, &trained, &Registry::builtin());
        check(with(0.4, 5)).unwrap();
        let one = with(0.4, 1).times(&mut Seeded::new(vec![0], Device::Cpu)).unwrap();
        assert_eq!(one, [0.0, 1.0]);
        for wrong in [0.0, 1.5, f64::NAN] {
            let error = check(with(wrong, 5)).unwrap_err().to_string();
            assert!(error.contains("leap_at"), "{error}");
        }
    }
}
