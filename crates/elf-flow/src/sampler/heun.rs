//! Heun's method.

use elf_core::Noise;
use serde::{Deserialize, Serialize};

use super::{Sampler, SamplerConfig, Span, State};
use crate::{Field, Result};

/// Steps along the mean of the velocities at both ends of an Euler step: second order, two evaluations per step, no noise.
///
/// The estimate of the first evaluation is the hint of the second, and that of the second the hint of the next step. Near
/// t = 1 a network's velocity is clamped (see [`FlowPath`](crate::FlowPath)), so the last steps are of first order only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heun {}

impl SamplerConfig for Heun {
    const NAME: &'static str = "heun";
    const SUMMARY: &'static str = "Heun's method, of second order: two evaluations per step, no noise";
    const ORDER: u32 = 2;

    fn build(&self) -> Box<dyn Sampler> {
        Box::new(*self)
    }
}

impl Sampler for Heun {
    fn step(&mut self, field: &dyn Field, state: State, span: Span, _noise: &mut dyn Noise) -> Result<State> {
        let start = field.eval(&state.z, span.from, state.x.as_ref())?;
        let end = field.eval(&(&state.z + &start.v * span.length()), span.to, Some(&start.x))?;
        Ok(State { z: state.z + (start.v + end.v) * (0.5 * span.length()), x: Some(end.x) })
    }
}
