//! Samplers of the preset `mini`.

use std::fmt;

use super::settings::{CANDIDATES, STEPS, Task};

/// A way to draw texts from a trained model: words for `elf sample`, and what they cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampler {
    /// The file of sampling settings that it begins with.
    pub config: Option<String>,
    /// Further words for `elf sample`, the number of steps aside.
    words: Vec<String>,
    /// The number of steps, if it is not the file's or the model's.
    pub steps: Option<u64>,
    /// Passes through a network for each text, beyond those of the steps.
    once: f64,
    /// Passes of each step.
    each: f64,
}

/// The paper's gamma.
const GAMMA: f64 = 1.5;
/// The paper's self-conditioning guidance.
const SELF_GUIDANCE: f64 = 3.0;

impl Sampler {
    fn costing(once: f64, each: f64) -> Self {
        Self { config: None, words: Vec::new(), steps: None, once, each }
    }

    /// The settings of a file, of which each step costs `each` passes.
    fn of_file(name: &str, each: f64) -> Self {
        Self { config: Some(format!("configs/sampling/{name}.yml")), ..Self::costing(1.0, each) }
    }

    /// With one more setting.
    pub fn with(mut self, flag: &str, value: impl ToString) -> Self {
        self.words.extend([flag.to_owned(), value.to_string()]);
        self
    }

    /// In a number of steps.
    pub fn in_steps(self, steps: u64) -> Self {
        Self { steps: Some(steps), ..self }
    }

    /// The paper's SDE.
    pub fn paper_sde() -> Self {
        Self::sde(GAMMA)
    }

    /// The paper's SDE with another gamma.
    pub fn sde(gamma: f64) -> Self {
        let sampler = Self::costing(1.0, 1.0).with("--sampler", "sde").with("--sde-gamma", gamma);
        sampler.with("--self-cond-cfg-scale", SELF_GUIDANCE)
    }

    /// The paper's ODE.
    pub fn paper_ode() -> Self {
        Self::costing(1.0, 1.0).with("--sampler", "ode").with("--self-cond-cfg-scale", SELF_GUIDANCE)
    }

    /// The usual setting of ELF on a task: with a guide, every step is two passes.
    pub fn of(task: &Task) -> Self {
        match task.sampling {
            Some(name) => Self::of_file(name, if task.condition.is_none() { 2.0 } else { 1.0 }),
            None => Self::paper_conditional(),
        }
    }

    /// The setting of the student of definitions.
    pub fn few_steps() -> Self {
        Self::of_file("definitions-few", 1.0)
    }

    /// The setting of the model that fills gaps.
    pub fn filling() -> Self {
        Self::of_file("infill", 2.0)
    }

    /// The paper's sampler of conditional tasks.
    fn paper_conditional() -> Self {
        Self::costing(1.0, 2.0).with("--sampler", "ode").with("--cfg", 2).with("--self-cond-cfg-scale", 1)
    }

    /// The setting of the model of a task that writes token by token: 9 passes for each token, over that token alone. Together and with the
    /// memory of those before it they cost about as much as 18 passes over the text.
    pub fn blocks(task: &Task) -> Self {
        Self { once: 18.0, ..Self::of_file(&format!("mini-{}-blocks", task.name), 0.0) }
    }

    /// Masked diffusion.
    pub fn masked() -> Self {
        Self::costing(0.0, 1.0)
    }

    /// An autoregressive model, from left to right.
    pub fn ancestral() -> Self {
        Self::costing(3.0, 0.0)
    }

    /// The same under a condition, with beam search.
    pub fn beam(width: u64) -> Self {
        Self::costing(4.0, 0.0).with("--beam", width)
    }

    /// Of several candidates, of several lengths, the one of minimum Bayes risk.
    pub fn of_candidates(self) -> Self {
        let (once, each) = (self.once * CANDIDATES as f64, self.each * CANDIDATES as f64);
        Self { once, each, ..self.with("--mbr", CANDIDATES) }
    }

    /// Whether texts depend on the seed. Those of beam search do not.
    pub fn draws(&self) -> bool {
        !self.words.iter().any(|word| word == "--beam")
    }

    /// Passes through a network for each text, for estimates.
    pub fn passes(&self) -> f64 {
        self.once + self.each * self.steps.unwrap_or(STEPS) as f64
    }

    /// Words for `elf sample`.
    pub fn words(&self) -> Vec<String> {
        let config = self.config.iter().flat_map(|file| ["--sampling-config".to_owned(), file.clone()]);
        let steps = self.steps.iter().flat_map(|steps| ["--steps".to_owned(), steps.to_string()]);
        config.chain(self.words.iter().cloned()).chain(steps).collect()
    }
}

/// The words for `elf sample`, for a reader.
impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.words().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reproduce::mini::settings::TASKS;

    #[test]
    fn samplers_are_words_of_elf_sample() {
        assert_eq!(
            Sampler::paper_sde().in_steps(32).to_string(),
            "--sampler sde --sde-gamma 1.5 --self-cond-cfg-scale 3 --steps 32"
        );
        assert_eq!(
            Sampler::of(&TASKS[0]).with("--guide-scale", 1).in_steps(4).to_string(),
            "--sampling-config configs/sampling/definitions.yml --guide-scale 1 --steps 4"
        );
        assert_eq!(Sampler::beam(4).to_string(), "--beam 4");
        assert_eq!(Sampler::masked().in_steps(8).to_string(), "--steps 8");
        assert_eq!(Sampler::ancestral().to_string(), "");
    }

    #[test]
    fn guidance_costs_a_second_pass() {
        assert_eq!(Sampler::paper_sde().in_steps(10).passes(), 11.0);
        assert_eq!(Sampler::of(&TASKS[0]).in_steps(10).passes(), 21.0);
        assert_eq!(Sampler::masked().in_steps(8).of_candidates().passes(), 80.0);
        assert!(!Sampler::beam(1).draws() && Sampler::ancestral().draws());
    }
}
