//! The sampler: everything about it is in this file.

use elf_core::Noise;
use elf_flow::sampler::{Sampler, SamplerConfig, Span, State};
use elf_flow::{Error, Field, Result};
use serde::{Deserialize, Serialize};

/// The family of second-order Runge-Kutta methods with two evaluations per step, the second one `place` of a step ahead.
///
/// With h the length of a step and a the place: `v1 = v(z, t)`, `v2 = v(z + a h v1, t + a h)`, and the step is
/// `z + h ((1 - 1 / (2 a)) v1 + 1 / (2 a) v2)`. At 0.5 this is the midpoint method, at 2/3 Ralston's, at 1 Heun's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TwoStage {
    /// a, the place of the second evaluation as a share of the step; in (0, 1].
    pub place: f64,
}

impl Default for TwoStage {
    /// Ralston's method, which has the smallest error bound of the family.
    fn default() -> Self {
        Self { place: 2.0 / 3.0 }
    }
}

impl SamplerConfig for TwoStage {
    const NAME: &'static str = "two-stage";
    const SUMMARY: &'static str = "second-order Runge-Kutta methods whose second evaluation is at `place` of a step";
    const ORDER: u32 = 2;

    fn build(&self) -> Box<dyn Sampler> {
        Box::new(*self)
    }

    fn check(&self) -> Result<()> {
        match self.place > 0.0 && self.place <= 1.0 {
            true => Ok(()),
            false => Err(Error::setting("place", format!("{} is not in (0, 1]", self.place))),
        }
    }
}

impl Sampler for TwoStage {
    fn step(&mut self, field: &dyn Field, state: State, span: Span, _noise: &mut dyn Noise) -> Result<State> {
        let (h, a) = (span.length(), self.place);
        let first = field.eval(&state.z, span.from, state.x.as_ref())?;
        let ahead = &state.z + &first.v * (a * h);
        // The estimate of the first evaluation is the hint of the second, for networks with self-conditioning.
        let second = field.eval(&ahead, span.from + a * h, Some(&first.x))?;
        let weight = 1.0 / (2.0 * a);
        let z = state.z + (first.v * (1.0 - weight) + second.v * weight) * h;
        Ok(State { z, x: Some(second.x) })
    }
}
