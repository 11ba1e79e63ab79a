//! A stochastic sampler that keeps the spread of the data.

use elf_core::Noise;
use serde::{Deserialize, Serialize};

use super::sde::{Back, check_gamma};
use super::{Sampler, SamplerConfig, Span, State};
use crate::{Field, Result};

/// [`Sde`](super::Sde) with as much noise as the earlier time has (not in ELF's paper; the idea is the churn of Karras et al. 2022,
/// arXiv 2206.00364).
///
/// Back at time `a from`, latents have noise of standard deviation `(1 - a from) sigma`, of which shrinking by a leaves
/// `a (1 - from) sigma`: the difference of the squares is added. A field that is exact then keeps the law of the data for any gamma,
/// while later steps correct errors of earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Churn {
    /// How far back in time a step goes, per unit of time; at least 0.
    pub gamma: f64,
}

impl Default for Churn {
    fn default() -> Self {
        Self { gamma: 1.0 }
    }
}

impl SamplerConfig for Churn {
    const NAME: &'static str = "churn";
    const SUMMARY: &'static str = "like sde, with as much noise as keeps the spread of the data; gamma 0 is euler";

    fn build(&self) -> Box<dyn Sampler> {
        Box::new(*self)
    }

    fn check(&self) -> Result<()> {
        check_gamma("gamma", self.gamma)
    }

    fn noise_free() -> Self {
        Self { gamma: 0.0 }
    }
}

impl Sampler for Churn {
    fn step(&mut self, field: &dyn Field, state: State, span: Span, noise: &mut dyn Noise) -> Result<State> {
        let Back { keep, .. } = Back::of(self.gamma, span);
        let left = keep * (1.0 - span.from);
        let missing = ((1.0 - keep * span.from).powi(2) - left * left).sqrt();
        Back { keep, noise: missing }.and_forth(field, state, span, noise)
    }
}
