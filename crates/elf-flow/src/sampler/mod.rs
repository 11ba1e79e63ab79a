//! Samplers: ways to follow a field from noise at t = 0 to clean latents at t = 1.
//!
//! One file each. A sampler is plain data ([`SamplerConfig`]) that builds the thing which steps ([`Sampler`]); the sampler
//! calls the field, as often and wherever it needs to. To add one, see `examples/custom_sampler.rs`.

mod euler;
mod heun;
mod registry;
mod sde;

pub use euler::Euler;
pub use heun::Heun;
pub use registry::{BUILTIN, Entry, Registry, SamplerChoice};
pub use sde::Sde;

use elf_core::Noise;
use tch::Tensor;

use crate::{Field, Prediction, Result};

/// Where a run stands.
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

/// A sampler's settings: plain data that is read from a configuration file, stored with a run, and built when a run starts.
pub trait SamplerConfig: std::fmt::Debug {
    /// A fresh sampler. Called once a run, so that samplers may keep what they like between steps.
    fn build(&self) -> Box<dyn Sampler>;

    /// Checks the settings, beyond what their types say.
    ///
    /// # Errors
    /// Names the setting that is out of its range.
    fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// Carries latents through time.
pub trait Sampler {
    /// Carries `state` over `span`. The latents of the new state are those at `span.to`.
    ///
    /// # Errors
    /// If the field or the noise fails.
    fn step(&mut self, field: &dyn Field, state: State, span: Span, noise: &mut dyn Noise) -> Result<State>;

    /// The last step of a run, to t = 1 or wherever it is read: an Euler step, as ELF closes every run, whatever the sampler.
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
/// `after` is called after each step with its index and the new state.
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
