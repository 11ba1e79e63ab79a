//! Checkpoints of the network alone, under the interchange names.

use std::collections::HashMap;
use std::path::Path;

use elf_core::tensorfile;
use elf_core::weights::{ParamKind, Weights};
use elf_core::{Error, Network, PrecisionPolicy, Result};
use tch::Device;

use crate::context_table::CONTEXT_TABLE;
use crate::model::LATENT_TABLE;
use crate::vocab_head::VOCAB_HEAD_NORM;
use crate::word_guide::WORD_MEANS;
use crate::{Elf, ElfConfig};

impl ElfConfig {
    /// The architecture that follows from the shapes of a checkpoint.
    ///
    /// # Errors
    /// If a parameter that every ELF has is missing or has an impossible shape.
    pub fn of_checkpoint(file: &Weights) -> Result<Self> {
        let shape = |name: &str, dims: usize| -> Result<Vec<i64>> {
            let found = file.shape(name).ok_or_else(|| {
                Error::Config(format!("{} is no ELF checkpoint: it has no tensor {name}", file.path().display()))
            })?;
            match found.len() == dims && found.iter().all(|&n| n > 0) {
                true => Ok(found),
                false => Err(Error::Shape {
                    what: format!("{name} in {}", file.path().display()),
                    found,
                    expected: format!("{dims} dimensions"),
                }),
            }
        };
        let unembed = shape("unembed_kernel", 2)?;
        let bottleneck = shape("text_proj.proj1.weight", 2)?;
        let time = shape("t_emb_tokens", 3)?;
        let mode = shape("mode_tokens", 3)?;
        let head_dim = shape("blocks.0.attn.q_norm.weight", 1)?[0];
        let depth = (0..).take_while(|i| file.shape(&format!("blocks.{i}.norm1.weight")).is_some()).count();
        let hidden_size = time[2];
        let config = Self {
            text_encoder_dim: unembed[0],
            hidden_size,
            depth: depth as i64,
            num_heads: hidden_size / head_dim,
            bottleneck_dim: bottleneck[0],
            num_time_tokens: time[1],
            num_self_cond_cfg_tokens: file.shape("self_cond_cfg_tokens").and_then(|s| s.get(1).copied()).unwrap_or(0),
            num_model_mode_tokens: mode[1],
            vocab_size: unembed[1],
            mlp_ratio: 4.0,
            proj_dropout: 0.0,
            learned_latents: file.shape(LATENT_TABLE).is_some(),
            context_table: file.shape(CONTEXT_TABLE).is_some(),
            vocab_head_norm: file.shape(&format!("{VOCAB_HEAD_NORM}.weight")).is_some(),
            word_guide_dims: file.shape(WORD_MEANS).and_then(|s| s.get(1).copied()).unwrap_or(0),
        };
        config.check()?;
        Ok(config)
    }
}

/// The released model's parts in the order of its definition: own parameters, then modules.
const RELEASED_ORDER: [&str; 13] = [
    "t_emb_tokens",
    "self_cond_cfg_tokens",
    "mode_tokens",
    "proj_kernel",
    "proj_bias",
    "unembed_kernel",
    "unembed_bias",
    "self_cond_proj",
    "text_proj",
    "t_embedder",
    "self_cond_cfg_embedder",
    "blocks",
    "final_layer",
];

impl ElfConfig {
    /// All parameters' names but those of a word guide, in the order of the released model's `state_dict`, by which its optimisers number
    /// them.
    ///
    /// # Errors
    /// If no network is possible with the configuration, or it has parameters that the released model does not have.
    pub fn released_order(&self) -> Result<Vec<String>> {
        let net = Elf::unset(self.clone(), PrecisionPolicy::F32, Device::Cpu)?;
        let known = net.params().trained();
        let mut names: Vec<String> = known.iter().map(|(name, _)| name.to_owned()).collect();
        let rank = |name: &str| {
            let part = name.split('.').next().unwrap_or(name);
            RELEASED_ORDER.iter().position(|known| *known == part)
        };
        let others: Vec<&str> = names.iter().filter(|name| rank(name).is_none()).map(String::as_str).collect();
        if !others.is_empty() {
            let reason = "the released code has no such parameters, so this network cannot be written for it; write .safetensors instead";
            return Err(Error::Config(format!("{}: {reason}", others.join(", "))));
        }
        // Within a module our order is the released one, which a stable sort keeps.
        names.sort_by_key(|name| rank(name));
        Ok(names)
    }
}

impl Elf {
    /// Reads a network from a file or folder that [`Weights::open`] accepts, with averaged parameters if there are any. The
    /// architecture follows from the shapes.
    ///
    /// # Errors
    /// If the file is missing, damaged, or not an ELF checkpoint; every parameter that does not fit is named.
    pub fn load(path: &Path, policy: PrecisionPolicy, device: Device) -> Result<Self> {
        Self::of_weights(&Weights::open(path, ParamKind::Averaged)?, policy, device)
    }

    /// A network with the parameters of `weights`, from whose shapes the architecture follows.
    ///
    /// # Errors
    /// As [`Elf::load`].
    pub fn of_weights(weights: &Weights, policy: PrecisionPolicy, device: Device) -> Result<Self> {
        let net = Self::unset(ElfConfig::of_checkpoint(weights)?, policy, device)?;
        net.params().load_from(weights)?;
        Ok(net)
    }

    /// Writes all parameters in fp32, under another name first, then renames the file.
    ///
    /// # Errors
    /// If the file cannot be written; then an older one is kept.
    pub fn save(&self, path: &Path) -> Result<()> {
        tensorfile::write(path, self.params().iter().map(|(n, p)| (n, &p.tensor)), HashMap::new())
    }
}
