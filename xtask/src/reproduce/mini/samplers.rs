//! Samplers of the preset `mini`.

use std::fmt;

use super::settings::{BLOCK_STEPS, DECODED_AT, DRAWN_AT, DRAWN_TEMPERATURE, GUIDE_SCALE, LIKELIEST_AT};

/// A way to draw texts from a trained model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// The kind of model, and how it is sampled.
    pub kind: Kind,
    /// The number of steps, if the kind has any besides those of its own.
    pub steps: Option<u64>,
}

/// The kind of model, and how it is sampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// ELF with the SDE.
    Sde {
        /// How much noise each step renews.
        gamma: f64,
        /// Self-conditioning guidance.
        scale: f64,
        /// Steps evenly in time.
        uniform_grid: bool,
    },
    /// ELF with the ODE.
    Ode,
    /// ELF with the ODE, guided by a less trained version of itself.
    Guided {
        /// Scale of the guidance, away from the less trained version.
        scale: f64,
        /// The time at which the text is decoded.
        decode_at: f64,
    },
    /// ELF with the ODE, block after block, without any guidance.
    Blocks {
        /// Whether there is a condition; its guidance is switched off as well.
        conditional: bool,
        /// Steps of each block.
        steps: u64,
        /// The time at which a block is decoded.
        decode_at: f64,
        /// Temperature at which its tokens are drawn; 0 takes the likeliest.
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

/// The paper's SDE: the sampler of all stages that do not compare samplers.
pub const PAPER_SDE: Kind = Kind::Sde { gamma: GAMMA, scale: SELF_GUIDANCE, uniform_grid: false };
/// The sampler of students and their teacher: the paper's for few steps.
pub const FEW_STEPS: Kind = Kind::Sde { gamma: GAMMA, scale: 2.5, uniform_grid: false };
/// The sampler of guided texts.
pub const GUIDED: Kind = Kind::Guided { scale: GUIDE_SCALE, decode_at: DECODED_AT };
/// The sampler of models that write token by token.
pub const BLOCKS: Kind =
    Kind::Blocks { conditional: false, steps: BLOCK_STEPS, decode_at: DRAWN_AT, temperature: DRAWN_TEMPERATURE };
/// The same for conditional tasks.
pub const CONDITIONAL_BLOCKS: Kind =
    Kind::Blocks { conditional: true, steps: BLOCK_STEPS, decode_at: LIKELIEST_AT, temperature: 0.0 };
/// The sampler of conditional tasks: the paper's.
pub const CONDITIONAL: Kind = Kind::Conditional { scale: 2.0 };

impl Kind {
    /// With a number of steps.
    pub fn in_steps(self, steps: u64) -> Sampler {
        Sampler { kind: self, steps: Some(steps) }
    }

    /// Without a number of steps.
    pub fn alone(self) -> Sampler {
        Sampler { kind: self, steps: None }
    }
}

impl Sampler {
    /// Whether it needs a second network, as a guide.
    pub fn is_guided(&self) -> bool {
        matches!(self.kind, Kind::Guided { .. })
    }

    /// Whether texts depend on the seed. Those of beam search do not.
    pub fn draws(&self) -> bool {
        !matches!(self.kind, Kind::Beam(_))
    }

    /// Passes through a network for each text, for estimates.
    pub fn passes(&self) -> f64 {
        let steps = self.steps.unwrap_or(0) as f64;
        match self.kind {
            Kind::Sde { .. } | Kind::Ode => steps + 1.0,
            Kind::Guided { .. } | Kind::Conditional { .. } => 2.0 * steps + 1.0,
            // The passes of each block cover that block alone: together they cost this many over the whole text.
            Kind::Blocks { conditional: false, steps, .. } => 3.0 * (steps + 1) as f64,
            Kind::Blocks { conditional: true, steps, .. } => 2.0 * (steps + 1) as f64,
            Kind::Masked => steps,
            Kind::Ancestral => 3.0,
            Kind::Beam(_) => 4.0,
        }
    }
}

impl Kind {
    /// Words for `elf sample`, the steps aside.
    fn words(self) -> Vec<String> {
        let flags: Vec<(&str, String)> = match self {
            Self::Sde { gamma, scale, .. } => vec![
                ("--sampler", "sde".to_owned()),
                ("--sde-gamma", gamma.to_string()),
                ("--self-cond-cfg-scale", scale.to_string()),
            ],
            Self::Ode => vec![("--sampler", "ode".to_owned()), ("--self-cond-cfg-scale", SELF_GUIDANCE.to_string())],
            Self::Guided { scale, decode_at } => vec![
                ("--sampler", "ode".to_owned()),
                ("--self-cond-cfg-scale", SELF_GUIDANCE.to_string()),
                ("--guide-scale", scale.to_string()),
                ("--decode-at", decode_at.to_string()),
            ],
            Self::Blocks { conditional, steps, decode_at, temperature } => {
                let mut flags = vec![("--sampler", "ode".to_owned())];
                flags.extend(conditional.then(|| ("--cfg", "1".to_owned())));
                flags.extend([
                    ("--self-cond-cfg-scale", "1".to_owned()),
                    ("--steps", steps.to_string()),
                    ("--decode-at", decode_at.to_string()),
                ]);
                flags.extend((temperature > 0.0).then(|| ("--temperature", temperature.to_string())));
                flags
            }
            Self::Conditional { scale } => vec![
                ("--sampler", "ode".to_owned()),
                ("--cfg", scale.to_string()),
                ("--self-cond-cfg-scale", "1".to_owned()),
            ],
            Self::Masked | Self::Ancestral => Vec::new(),
            Self::Beam(width) => vec![("--beam", width.to_string())],
        };
        let mut words: Vec<String> = flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect();
        words.extend(matches!(self, Self::Sde { uniform_grid: true, .. }).then(|| "--uniform-grid".to_owned()));
        words
    }
}

impl Sampler {
    /// Words for `elf sample`.
    pub fn words(&self) -> Vec<String> {
        let mut words = self.kind.words();
        words.extend(self.steps.into_iter().flat_map(|steps| ["--steps".to_owned(), steps.to_string()]));
        words
    }
}

/// The words for `elf sample`, for a reader.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.words().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn samplers_are_words_of_elf_sample() {
        let words = |sampler: Sampler| sampler.words().join(" ");
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
        assert_eq!(words(Kind::Masked.in_steps(8)), "--steps 8");
        assert_eq!(words(Kind::Ancestral.alone()), "");
    }

    /// Models are exported with these files, and their cards show the figures of stages that use these samplers.
    #[test]
    fn samplers_of_blocks_are_those_of_the_exported_models() {
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
            assert_eq!(words, sampler.alone().words().join(" "), "{task}");
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
