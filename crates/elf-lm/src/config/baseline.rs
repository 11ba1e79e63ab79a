//! Baselines to compare ELF with.

use crate::Result;
use crate::error::fail;
use elf_flow::tokens::MaskedDiffusion;
use elf_gpt2::Gpt2Config;
use elf_model::{ElfConfig, MaskedConfig};
use serde::{Deserialize, Serialize};

use super::{ObjectiveName, RunConfig};

/// A baseline's network, with the depth, width and heads that the configuration gives ELF.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BaselinePlan {
    /// An autoregressive language model.
    Gpt2(Gpt2Config),
    /// Masked diffusion.
    Mdlm {
        /// The network.
        network: MaskedConfig,
        /// The loss.
        objective: MaskedDiffusion,
    },
}

impl BaselinePlan {
    /// The baseline that a configuration names, or `None` for ELF; `elf` has the sizes to use.
    ///
    /// # Errors
    /// If a setting is not available for the baseline; the message names it.
    pub fn new(config: &RunConfig, elf: &ElfConfig) -> Result<Option<Self>> {
        Ok(match config.objective {
            ObjectiveName::Elf => None,
            ObjectiveName::Gpt2 => {
                if config.compute.gradient_checkpointing {
                    fail!(
                        setting("gradient_checkpointing"),
                        "gradient_checkpointing is not available with objective gpt2: set it to false"
                    );
                }
                // The input is EOS and all tokens of the row but the last, which is only predicted. What is written into gaps follows the
                // row, in which a mark stands for it.
                let fills = !config.given.shares().is_none();
                let positions = config.data.max_length as i64 * if fills { 2 } else { 1 };
                let words = elf.vocab_size + i64::from(fills);
                let sizes = Gpt2Config::like(words, positions, elf.hidden_size, elf.depth, elf.num_heads);
                sizes.check()?;
                Some(Self::Gpt2(sizes))
            }
            ObjectiveName::Mdlm => {
                let network = MaskedConfig::with_blocks_of(elf);
                network.check()?;
                Some(Self::Mdlm { network, objective: MaskedDiffusion::default() })
            }
        })
    }

    /// Its name in a configuration.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Gpt2(_) => "gpt2",
            Self::Mdlm { .. } => "mdlm",
        }
    }

    /// Its description in messages.
    pub fn describe(&self) -> &'static str {
        match self {
            Self::Gpt2(_) => "an autoregressive language model (gpt2)",
            Self::Mdlm { .. } => "a masked diffusion model (mdlm)",
        }
    }

    /// Number of parameters.
    pub fn parameter_count(&self) -> u64 {
        match self {
            Self::Gpt2(sizes) => sizes.parameter_count().max(0) as u64,
            Self::Mdlm { network, .. } => network.parameter_count(),
        }
    }
}
