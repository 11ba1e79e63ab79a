//! Samplers: ways to follow a field from noise at t = 0 to clean latents at t = 1.
//!
//! One file each. A sampler is plain data ([`SamplerConfig`]) that builds the object which makes steps ([`Sampler`]); the
//! sampler calls the field, as often and wherever it needs to. To add one, see `examples/custom_sampler.rs`.

mod choice;
mod churn;
mod euler;
mod heun;
mod registry;
mod scheduled_sde;
mod sde;

pub use choice::SamplerChoice;
pub use churn::Churn;
pub use euler::Euler;
pub use heun::Heun;
pub use registry::{BUILTIN, ConfiguredSampler, Entry, Registry};
pub use scheduled_sde::ScheduledSde;
pub use sde::Sde;

use elf_core::Noise;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tch::Tensor;

use crate::{Field, Prediction, Result};

/// The latents of a run between two steps.
#[derive(Debug)]
pub struct State {
    /// Latents, `[B, S, C]`.
    pub z: Tensor,
    /// The latest clean estimate, `[B, S, C]`: the hint of the next evaluation. `None` before the first.
    pub x: Option<Tensor>,
}

impl State {
    /// The start of a run, without an estimate.
    pub fn start(z: Tensor) -> Self {
        Self { z, x: None }
    }
}

/// One step in time; both ends in [0, 1].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Span {
    /// Where the step starts.
    pub from: f64,
    /// Where it ends; greater than `from`.
    pub to: f64,
}

impl Span {
    /// `to - from`.
    pub fn length(self) -> f64 {
        self.to - self.from
    }
}

/// A sampler's settings and everything that programs need to know about it.
///
/// The settings are a struct of named fields that is read from a configuration, stored with a run, and built when a run starts.
/// `Default` says which settings there are and their values where they are left out.
pub trait SamplerConfig: std::fmt::Debug + Default + Serialize + DeserializeOwned + 'static {
    /// The name in configurations and on command lines.
    const NAME: &'static str;
    /// Other names of the same sampler.
    const ALIASES: &'static [&'static str] = &[];
    /// One line that says what the sampler does, for lists of all samplers.
    const SUMMARY: &'static str;
    /// Keys of a flat configuration in the released form, each with the setting that it means: `("sde_gamma", "gamma")`.
    const RELEASED_KEYS: &'static [(&'static str, &'static str)] = &[];
    /// The order of convergence with the settings of [`SamplerConfig::noise_free`]: n means that the error of a run of N steps
    /// falls as 1 / N^n.
    const ORDER: u32 = 1;

    /// A fresh sampler. Called once per run, so that a sampler may keep values between the steps of a run.
    fn build(&self) -> Box<dyn Sampler>;

    /// Checks the values, as far as their types allow wrong ones.
    ///
    /// # Errors
    /// Names the setting that is out of its range.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Settings under which the sampler draws no noise: the defaults, for samplers that never do.
    fn noise_free() -> Self {
        Self::default()
    }
}

/// Carries latents through time.
pub trait Sampler {
    /// Carries `state` over `span`. The latents of the new state are those at `span.to`.
    ///
    /// # Errors
    /// If the field or the noise fails.
    fn step(&mut self, field: &dyn Field, state: State, span: Span, noise: &mut dyn Noise) -> Result<State>;

    /// The last step of a run, to t = 1 or to an earlier time at which words are read: an Euler step, with which ELF closes
    /// every run of every sampler.
    ///
    /// # Errors
    /// As [`Sampler::step`].
    fn finish(&mut self, field: &dyn Field, state: State, span: Span, noise: &mut dyn Noise) -> Result<State> {
        let _ = noise;
        euler_step(field, state, span)
    }
}

/// `z + (to - from) v(z, from)`: the step that most samplers are made of.
///
/// # Errors
/// If the field fails.
pub fn euler_step(field: &dyn Field, state: State, span: Span) -> Result<State> {
    let Prediction { v, x } = field.eval(&state.z, span.from, state.x.as_ref())?;
    Ok(State { z: state.z + v * span.length(), x: Some(x) })
}

/// Carries a start over all `times` (ascending): [`Sampler::step`] between each two, [`Sampler::finish`] for the last.
///
/// `after` is called after each step with the step's index and the new state. (Six arguments, because a run consists of just these
/// six parts, which no two callers group in the same way.)
///
/// # Errors
/// If there are fewer than two times, or the sampler or `after` fails.
pub fn integrate(
    field: &dyn Field,
    sampler: &mut dyn Sampler,
    start: State,
    times: &[f64],
    noise: &mut dyn Noise,
    mut after: impl FnMut(usize, &State) -> Result<()>,
) -> Result<State> {
    if times.len() < 2 {
        return Err(crate::Error::setting("times", format!("{times:?} make no step; a run needs at least 0 and 1")));
    }
    let last = times.len() - 2;
    let mut state = State { z: field.pin(start.z)?, ..start };
    for (i, pair) in times.windows(2).enumerate() {
        let span = Span { from: pair[0], to: pair[1] };
        state = match i == last {
            false => sampler.step(field, state, span, noise)?,
            true => sampler.finish(field, state, span, noise)?,
        };
        after(i, &state)?;
    }
    Ok(state)
}
