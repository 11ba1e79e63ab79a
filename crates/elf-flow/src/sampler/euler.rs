//! Euler's method, the paper's ODE sampler.

use elf_core::Noise;
use serde::{Deserialize, Serialize};

use super::{Sampler, SamplerConfig, Span, State, euler_step};
use crate::{Field, Result};

/// Straight steps along the velocity at their start: first order, one evaluation per step, no noise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Euler {}

impl SamplerConfig for Euler {
    const NAME: &'static str = "euler";
    const ALIASES: &'static [&'static str] = &["ode"];
    const SUMMARY: &'static str = "the paper's ODE sampler, Euler's method: one evaluation per step, no noise";

    fn build(&self) -> Box<dyn Sampler> {
        Box::new(*self)
    }
}

impl Sampler for Euler {
    fn step(&mut self, field: &dyn Field, state: State, span: Span, _noise: &mut dyn Noise) -> Result<State> {
        euler_step(field, state, span)
    }
}
