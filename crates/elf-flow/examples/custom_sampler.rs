//! A sampler of one's own, whole, in one file: settings, step, name. Runs in a second, without a model:
//!
//! ```text
//! cargo run --release -p elf-flow --example custom_sampler
//! cargo run --release -p elf-flow --example custom_sampler -- renoise:gamma=2
//! ```
//!
//! The sampler goes back in time before each step, as the built-in `sde` does, but adds exactly the noise that the earlier
//! time has. On data whose flow is known (independent normal variables) both are compared with the truth.

use elf_core::{Noise, Seeded};
use elf_flow::analytic::GaussianField;
use elf_flow::sampler::{Entry, Registry, Sampler, SamplerChoice, SamplerConfig, Span, State, euler_step, integrate};
use elf_flow::{Error, Field, Result};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

// 1. The settings: plain data. `Default` says which settings there are and their values where they are left out.

/// How far to go back.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Renoise {
    /// Share of the time walked so far that is given back, per unit of time.
    gamma: f64,
}

impl Default for Renoise {
    fn default() -> Self {
        Self { gamma: 1.0 }
    }
}

// 2. What programs need to know: the name, one line for lists, how to build it, which values make no sense.

impl SamplerConfig for Renoise {
    const NAME: &'static str = "renoise";
    const SUMMARY: &'static str = "goes back in time before each step, with the noise that the earlier time has";

    fn build(&self) -> Box<dyn Sampler> {
        Box::new(*self)
    }

    fn check(&self) -> Result<()> {
        match self.gamma >= 0.0 && self.gamma.is_finite() {
            true => Ok(()),
            false => Err(Error::setting("gamma", format!("{} is not a number of at least 0", self.gamma))),
        }
    }

    fn noise_free() -> Self {
        Self { gamma: 0.0 }
    }
}

// 3. The step. It may call the field as often and wherever it needs to, and keep values in `self` between steps.

impl Sampler for Renoise {
    fn step(&mut self, field: &dyn Field, state: State, span: Span, noise: &mut dyn Noise) -> Result<State> {
        let keep = (1.0 - self.gamma * span.length()).clamp(0.0, 1.0);
        let back = keep * span.from;
        // Shrinking leaves noise of scale keep (1 - from); at the earlier time it is 1 - back. Variances add.
        let missing = ((1.0 - back).powi(2) - (keep * (1.0 - span.from)).powi(2)).max(0.0).sqrt();
        // All noise comes from `noise`, by a name: that makes runs repeatable and rows independent of their batch.
        let eps = noise.normal("renoise", &state.z.size())?;
        // z was changed other than along the velocity, so a condition must be put back in its place.
        let z = field.pin(state.z * keep + eps * (missing * field.noise_scale()))?;
        euler_step(field, State { z, ..state }, Span { from: back, to: span.to })
    }
    // `finish`, the last step, is an Euler step unless it is written here.
}

fn main() -> std::process::ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(words: impl Iterator<Item = String>) -> std::result::Result<(), Box<dyn std::error::Error>> {
    // 4. The registry. A program adds its sampler to ours; a configuration or a command line then chooses one.
    let registry = Registry::builtin().with(Entry::of::<Renoise>());

    let mut choices = words.map(|word| word.parse()).collect::<Result<Vec<SamplerChoice>>>()?;
    if choices.is_empty() {
        registry.entries().for_each(|entry| println!("{entry}"));
        choices = registry.entries().map(|entry| SamplerChoice::named(entry.name())).collect();
    }
    let field = GaussianField { mean: 0.7, std: 1.0, noise_scale: 2.0 };
    let times: Vec<f64> = (0..=64).map(|i| f64::from(i) / 64.0).collect();
    println!("64 uniform steps, data of mean {:.3} and standard deviation {:.3}", field.mean, field.std);
    for choice in choices {
        let config = registry.config(&choice)?;
        let mut noise = Seeded::new(vec![42], Device::Cpu);
        let z0 = noise.normal("z0", &[1, 100_000, 1])? * field.noise_scale;
        let end = integrate(&field, &mut *config.build(), State::start(z0), &times, &mut noise, |_, _| Ok(()))?;
        let (mean, std) = (end.z.mean(Kind::Double).double_value(&[]), end.z.std(true).double_value(&[]));
        let name = choice.name + &config.choice().settings_label();
        println!("{name:<52} mean {mean:.3}   standard deviation {std:.3}");
    }
    Ok(())
}
