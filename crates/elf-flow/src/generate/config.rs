//! How text is sampled, and whether a network can be sampled so.

use elf_core::{NetworkShape, TokenDraw};
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
        if !(self.decode_at > 0.0 && self.decode_at <= 1.0) {
            return Err(Error::setting("decode_at", format!("{} is not a time in (0, 1]", self.decode_at)));
        }
        self.draw.check()?;
        match self.pad_to {
            Some(0) => Err(Error::setting("pad_to", "a batch of 0 rows holds nothing")),
            _ => Ok(()),
        }
    }
}
