//! How the preset `mini` draws texts from trained models.

use std::fmt;

use super::mini_settings::{BLOCK_STEPS, DECODED_AT, DRAWN_AT, DRAWN_TEMPERATURE, GUIDE_SCALE, LIKELIEST_AT};

/// A way to draw texts from a trained model; shown, it is words for `elf sample`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// What is drawn from, and how.
    pub kind: Kind,
    /// Steps, of those that have any.
    pub steps: Option<u64>,
}

/// What is drawn from, and how.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// ELF with the SDE.
    Sde {
        /// How much noise is renewed.
        gamma: f64,
        /// Self-conditioning guidance.
        scale: f64,
        /// Steps evenly in time.
        uniform_grid: bool,
    },
    /// ELF with the ODE.
    Ode,
    /// ELF with the ODE, guided by a lesser version of itself.
    Guided {
        /// How far away from the lesser version.
        scale: f64,
        /// The time at which the text is read.
        decode_at: f64,
    },
    /// ELF with the ODE, block after block, without any guidance.
    Blocks {
        /// Whether there is a condition, whose guidance is left out, too.
        conditional: bool,
        /// Steps of each block.
        steps: u64,
        /// The time at which a block is read.
        decode_at: f64,
        /// At which its words are drawn; 0 takes the likeliest.
        temperature: f64,
    },
    /// ELF under a condition.
    Conditional {
        /// Condition guidance.
        scale: f64,
    },
    /// Masked diffusion.
    Masked,
    /// An autoregressive model, from left to right.
    Ancestral,
    /// The same under a condition, with beam search.
    Beam(u64),
}

/// The paper's gamma and self-conditioning guidance.
pub const GAMMA: f64 = 1.5;
pub const SELF_GUIDANCE: f64 = 3.0;

/// The paper's SDE, unless the sampler itself is looked at.
pub const PAPER_SDE: Kind = Kind::Sde { gamma: GAMMA, scale: SELF_GUIDANCE, uniform_grid: false };
/// The sampler that students and their teacher are compared with: the paper's for few steps.
pub const FEW_STEPS: Kind = Kind::Sde { gamma: GAMMA, scale: 2.5, uniform_grid: false };
/// The sampler of guided texts.
pub const GUIDED: Kind = Kind::Guided { scale: GUIDE_SCALE, decode_at: DECODED_AT };
/// The sampler of texts that are written token by token.
pub const BLOCKS: Kind =
    Kind::Blocks { conditional: false, steps: BLOCK_STEPS, decode_at: DRAWN_AT, temperature: DRAWN_TEMPERATURE };
/// The same for conditional tasks.
pub const CONDITIONAL_BLOCKS: Kind =
    Kind::Blocks { conditional: true, steps: BLOCK_STEPS, decode_at: LIKELIEST_AT, temperature: 0.0 };
/// The sampler of conditional tasks: the paper's.
pub const CONDITIONAL: Kind = Kind::Conditional { scale: 2.0 };

impl Kind {
    /// With so many steps.
    pub fn in_steps(self, steps: u64) -> Sampler {
        Sampler { kind: self, steps: Some(steps) }
    }

    /// As it is, of those without steps.
    pub fn alone(self) -> Sampler {
        Sampler { kind: self, steps: None }
    }
}

impl Sampler {
    /// Whether it takes a second, lesser network.
    pub fn is_guided(&self) -> bool {
        matches!(self.kind, Kind::Guided { .. })
    }

    /// Whether another seed gives other texts: beam search draws nothing.
    pub fn draws(&self) -> bool {
        !matches!(self.kind, Kind::Beam(_))
    }

    /// Passes through a network a text, for estimates.
    pub fn passes(&self) -> f64 {
        let steps = self.steps.unwrap_or(0) as f64;
        match self.kind {
            Kind::Sde { .. } | Kind::Ode => steps + 1.0,
            Kind::Guided { .. } | Kind::Conditional { .. } => 2.0 * steps + 1.0,
            // Those of all its blocks are narrow: this many over all of a text.
            Kind::Blocks { conditional: false, steps, .. } => 3.0 * (steps + 1) as f64,
            Kind::Blocks { conditional: true, steps, .. } => 2.0 * (steps + 1) as f64,
            Kind::Masked => steps,
            Kind::Ancestral => 3.0,
            Kind::Beam(_) => 4.0,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Sde { gamma, scale, uniform_grid } => {
                let grid = if *uniform_grid { " --uniform-grid" } else { "" };
                write!(f, "--sampler sde --sde-gamma {gamma} --self-cond-cfg-scale {scale}{grid}")
            }
            Self::Ode => write!(f, "--sampler ode --self-cond-cfg-scale {SELF_GUIDANCE}"),
            Self::Guided { scale, decode_at } => {
                write!(f, "{} --guide-scale {scale} --decode-at {decode_at}", Self::Ode)
            }
            Self::Blocks { conditional, steps, decode_at, temperature } => {
                let cfg = if *conditional { " --cfg 1" } else { "" };
                let drawn = if *temperature > 0.0 { format!(" --temperature {temperature}") } else { String::new() };
                write!(f, "--sampler ode{cfg} --self-cond-cfg-scale 1 --steps {steps} --decode-at {decode_at}{drawn}")
            }
            Self::Conditional { scale } => write!(f, "--sampler ode --cfg {scale} --self-cond-cfg-scale 1"),
            Self::Masked | Self::Ancestral => Ok(()),
            Self::Beam(width) => write!(f, "--beam {width}"),
        }
    }
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.steps {
            None => write!(f, "{}", self.kind),
            Some(steps) => write!(f, "{} --steps {steps}", self.kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn samplers_are_words_of_elf_sample() {
        let words = |sampler: Sampler| sampler.to_string();
        assert_eq!(words(PAPER_SDE.in_steps(32)), "--sampler sde --sde-gamma 1.5 --self-cond-cfg-scale 3 --steps 32");
        assert_eq!(
            words(GUIDED.in_steps(4)),
            format!(
                "--sampler ode --self-cond-cfg-scale 3 --guide-scale {GUIDE_SCALE} --decode-at {DECODED_AT} --steps 4"
            )
        );
        let blocks = |conditional, temperature| {
            words(Kind::Blocks { conditional, steps: 6, decode_at: 0.25, temperature }.alone())
        };
        assert_eq!(
            blocks(false, 0.9),
            "--sampler ode --self-cond-cfg-scale 1 --steps 6 --decode-at 0.25 --temperature 0.9"
        );
        assert_eq!(blocks(true, 0.0), "--sampler ode --cfg 1 --self-cond-cfg-scale 1 --steps 6 --decode-at 0.25");
        assert_eq!(words(Kind::Beam(4).alone()), "--beam 4");
        assert_eq!(words(Kind::Masked.in_steps(8)).trim(), "--steps 8");
        assert_eq!(words(Kind::Ancestral.alone()), "");
    }

    /// Models are exported with these files, and their cards have the figures of stages that these samplers draw for.
    #[test]
    fn samplers_of_blocks_are_those_of_the_files_beside_the_models() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for (task, sampler) in
            [("descriptions", BLOCKS), ("de-en", CONDITIONAL_BLOCKS), ("summaries", CONDITIONAL_BLOCKS)]
        {
            let path = root.join(format!("configs/sampling/mini-{task}-blocks.yml"));
            let text = std::fs::read_to_string(path).unwrap();
            let value = |key: &str| {
                let line = text.lines().find_map(|line| line.trim_start_matches(['-', ' ']).strip_prefix(key));
                line.map(|value| value.trim_matches([':', ' ', '[', ']']).to_owned())
            };
            let mut words = format!("--sampler {}", value("sampling_method").unwrap());
            for (key, flag, omitted) in [
                ("cfgs", "cfg", task == "descriptions"),
                ("self_cond_cfg_scales", "self-cond-cfg-scale", false),
                ("num_sampling_steps", "steps", false),
                ("decode_at", "decode-at", false),
                ("temperature", "temperature", value("temperature").is_none()),
            ] {
                if !omitted {
                    words.push_str(&format!(" --{flag} {}", value(key).unwrap()));
                }
            }
            assert_eq!(words, sampler.alone().to_string(), "{task}");
        }
    }

    #[test]
    fn guidance_costs_a_second_pass() {
        assert_eq!(PAPER_SDE.in_steps(10).passes(), 11.0);
        assert_eq!(GUIDED.in_steps(10).passes(), 21.0);
        assert!(GUIDED.in_steps(1).is_guided() && !PAPER_SDE.in_steps(1).is_guided());
        assert!(!Kind::Beam(1).alone().draws() && Kind::Ancestral.alone().draws());
    }
}
