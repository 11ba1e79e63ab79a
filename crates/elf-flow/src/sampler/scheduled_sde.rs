//! The paper's stochastic sampler with an amount of noise that changes over time.

use elf_core::Noise;
use serde::{Deserialize, Serialize};

use super::sde::{Back, check_gamma};
use super::{Sampler, SamplerConfig, Span, State};
use crate::{Error, Field, Result};

/// [`Sde`](super::Sde) with `gamma(t) = g1 + (g0 - g1) (1 - t)^p` at the time t at which a step starts (not in ELF's paper).
///
/// g0 is [`gamma_start`](Self::gamma_start), g1 is [`gamma_end`](Self::gamma_end), p is [`power`](Self::power). Equal gammas
/// are `sde` with that gamma, bit for bit and draw for draw. Much noise early and little late lets the first steps explore and
/// the last ones settle; like `sde`, it gains likelihood at the cost of variety, so report entropy with it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduledSde {
    /// g0, the gamma of a step that starts at t = 0; at least 0.
    pub gamma_start: f64,
    /// g1, the gamma that is approached at t = 1; at least 0.
    pub gamma_end: f64,
    /// p, how quickly g1 is approached: 1 is a straight line, more is sooner; positive.
    pub power: f64,
}

impl Default for ScheduledSde {
    /// From twice the published gamma for 32 steps straight down to none.
    fn default() -> Self {
        Self { gamma_start: 3.0, gamma_end: 0.0, power: 1.0 }
    }
}

impl ScheduledSde {
    /// gamma(t).
    fn gamma(&self, t: f64) -> f64 {
        self.gamma_end + (self.gamma_start - self.gamma_end) * (1.0 - t).powf(self.power)
    }
}

impl SamplerConfig for ScheduledSde {
    const NAME: &'static str = "sde-schedule";
    const SUMMARY: &'static str = "the SDE sampler with a gamma that goes from gamma_start to gamma_end over time";

    fn build(&self) -> Box<dyn Sampler> {
        Box::new(*self)
    }

    fn check(&self) -> Result<()> {
        check_gamma("gamma_start", self.gamma_start)?;
        check_gamma("gamma_end", self.gamma_end)?;
        match self.power > 0.0 && self.power.is_finite() {
            true => Ok(()),
            false => Err(Error::setting("power", format!("{} is not a positive number", self.power))),
        }
    }

    fn noise_free() -> Self {
        Self { gamma_start: 0.0, gamma_end: 0.0, ..Self::default() }
    }
}

impl Sampler for ScheduledSde {
    fn step(&mut self, field: &dyn Field, state: State, span: Span, noise: &mut dyn Noise) -> Result<State> {
        Back::of(self.gamma(span.from), span).and_forth(field, state, span, noise)
    }
}
