//! Sizes of the network, and the paper's presets.

use elf_core::{Error, NetworkShape, Result};
use serde::{Deserialize, Serialize};

/// The sizes and options that determine the network's parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ElfConfig {
    /// C, channels of a latent: the text encoder's width.
    pub text_encoder_dim: i64,
    /// H, width of the blocks.
    pub hidden_size: i64,
    /// Number of blocks.
    pub depth: i64,
    /// Attention heads; H must be an even multiple of it.
    pub num_heads: i64,
    /// Width between the two linear layers that lift a latent to H.
    pub bottleneck_dim: i64,
    /// Prefix tokens that carry the time.
    pub num_time_tokens: i64,
    /// Prefix tokens that carry the self-conditioning guidance scale; 0 for a network without that input.
    pub num_self_cond_cfg_tokens: i64,
    /// Prefix tokens that say denoise or decode.
    pub num_model_mode_tokens: i64,
    /// V, entries of the vocabulary.
    pub vocab_size: i64,
    /// Inner width of the feed-forward layers as a multiple of H, of which SwiGLU takes two thirds.
    #[serde(default = "default_mlp_ratio")]
    pub mlp_ratio: f64,
    /// Dropout on attention's output and inside the feed-forward layer, in the middle half of the depth.
    #[serde(default)]
    pub proj_dropout: f64,
    /// Whether the network learns latents of its own, a table with one for each entry of the vocabulary, in place of a frozen encoder's.
    #[serde(default)]
    pub learned_latents: bool,
    /// Whether the tokens of a condition, and clean tokens before a block, have a learned vector for each word as a second input
    /// besides their latents.
    #[serde(default)]
    pub context_table: bool,
    /// Whether hidden states are normalised before the vocabulary head, as they are before the denoising head. They are not in the
    /// released model.
    #[serde(default)]
    pub vocab_head_norm: bool,
    /// K, principal axes of the latents along which the network's [`WordGuide`](crate::WordGuide) tells words apart; 0 for a network
    /// without one, as the released ones. The guide is stored with the network, which does not use it itself.
    #[serde(default)]
    pub word_guide_dims: i64,
}

fn default_mlp_ratio() -> f64 {
    4.0
}

/// The paper's model sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Preset {
    /// ELF-B: 12 blocks of width 768, about 105 million parameters.
    #[serde(rename = "ELF-B")]
    B,
    /// ELF-M: 24 blocks of width 1056.
    #[serde(rename = "ELF-M")]
    M,
    /// ELF-L: 32 blocks of width 1280.
    #[serde(rename = "ELF-L")]
    L,
}

impl Preset {
    /// All presets with the names that configuration files use.
    pub const ALL: [(&'static str, Self); 3] = [("ELF-B", Self::B), ("ELF-M", Self::M), ("ELF-L", Self::L)];

    /// The preset's network for latents of `text_encoder_dim` channels and a vocabulary of `vocab_size`.
    pub fn config(self, text_encoder_dim: i64, vocab_size: i64) -> ElfConfig {
        let (depth, hidden_size, num_heads) = match self {
            Self::B => (12, 768, 12),
            Self::M => (24, 1056, 16),
            Self::L => (32, 1280, 16),
        };
        ElfConfig {
            text_encoder_dim,
            hidden_size,
            depth,
            num_heads,
            bottleneck_dim: 128,
            num_time_tokens: 4,
            num_self_cond_cfg_tokens: 4,
            num_model_mode_tokens: 4,
            vocab_size,
            mlp_ratio: default_mlp_ratio(),
            proj_dropout: 0.0,
            learned_latents: false,
            context_table: false,
            vocab_head_norm: false,
            word_guide_dims: 0,
        }
    }
}

impl ElfConfig {
    /// Checks that a network of these sizes is possible.
    ///
    /// # Errors
    /// Names the first size that is out of its range.
    pub fn check(&self) -> Result<()> {
        check_sizes([
            ("text_encoder_dim", self.text_encoder_dim),
            ("bottleneck_dim", self.bottleneck_dim),
            ("num_time_tokens", self.num_time_tokens),
            ("num_model_mode_tokens", self.num_model_mode_tokens),
            ("vocab_size", self.vocab_size),
        ])?;
        if !(0..=1 << 16).contains(&self.num_self_cond_cfg_tokens) {
            return Err(Error::Config(format!(
                "num_self_cond_cfg_tokens is {}: it must be 0 or a small number",
                self.num_self_cond_cfg_tokens
            )));
        }
        if !(0..=self.text_encoder_dim).contains(&self.word_guide_dims) {
            return Err(Error::Config(format!(
                "word_guide_dims is {}: it must be 0 (none) or at most the {} channels of a latent",
                self.word_guide_dims, self.text_encoder_dim
            )));
        }
        self.blocks().check()
    }

    /// The sizes that callers of a network of this configuration depend on.
    pub fn network_shape(&self) -> NetworkShape {
        NetworkShape {
            latent_dim: self.text_encoder_dim,
            hidden_size: self.hidden_size,
            vocab_size: self.vocab_size,
            guidance_input: self.num_self_cond_cfg_tokens > 0,
            stochastic: self.proj_dropout > 0.0,
        }
    }

    /// The sizes of the blocks.
    pub(crate) fn blocks(&self) -> BlockSizes {
        BlockSizes {
            hidden_size: self.hidden_size,
            depth: self.depth,
            num_heads: self.num_heads,
            mlp_ratio: self.mlp_ratio,
            proj_dropout: self.proj_dropout,
        }
    }

    /// Channels of one attention head.
    pub fn head_dim(&self) -> i64 {
        self.blocks().head_dim()
    }

    /// Inner width of SwiGLU: two thirds of `mlp_ratio` times H, so that its three matrices cost what two would.
    pub fn mlp_hidden(&self) -> i64 {
        self.blocks().mlp_hidden()
    }

    /// The number of numbers in all parameters, by formula.
    pub fn parameter_count(&self) -> u64 {
        let size = |n: i64| n.max(0) as u64;
        let (c, h, v) = (size(self.text_encoder_dim), size(self.hidden_size), size(self.vocab_size));
        let bottleneck = size(self.bottleneck_dim);
        let latents = linear(2 * c, c) + c * bottleneck + linear(bottleneck, h);
        let embedder = linear(crate::embed::FEATURES as u64, h) + linear(h, h);
        let embedders = if self.num_self_cond_cfg_tokens > 0 { 2 * embedder } else { embedder };
        let heads = h + linear(h, c) + linear(h, c) + linear(c, v);
        let with = |chosen: bool, numbers: u64| if chosen { numbers } else { 0 };
        let chosen =
            with(self.learned_latents, v * c) + with(self.context_table, v * h) + with(self.vocab_head_norm, h);
        let dims = size(self.word_guide_dims);
        let chosen = chosen + with(dims > 0, c * c + v * dims + c + v + 1);
        latents + embedders + size(self.prefix_len()) * h + self.blocks().parameter_count() + heads + chosen
    }

    /// Prefix tokens before the text.
    pub fn prefix_len(&self) -> i64 {
        self.num_time_tokens + self.num_self_cond_cfg_tokens + self.num_model_mode_tokens
    }
}

/// The sizes of a stack of blocks, by the names of [`ElfConfig`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockSizes {
    pub(crate) hidden_size: i64,
    pub(crate) depth: i64,
    pub(crate) num_heads: i64,
    pub(crate) mlp_ratio: f64,
    pub(crate) proj_dropout: f64,
}

impl BlockSizes {
    /// Names the first size that is out of its range.
    pub(crate) fn check(&self) -> Result<()> {
        check_sizes([("hidden_size", self.hidden_size), ("depth", self.depth), ("num_heads", self.num_heads)])?;
        if self.hidden_size % self.num_heads != 0 || self.head_dim() % 2 != 0 {
            return Err(Error::Config(format!(
                "hidden_size {} over num_heads {} must give an even whole number, since rotary embedding turns pairs of channels",
                self.hidden_size, self.num_heads
            )));
        }
        if !(self.mlp_ratio > 0.0 && self.mlp_ratio.is_finite()) || self.mlp_hidden() < 1 {
            return Err(Error::Config(format!(
                "mlp_ratio {} leaves the feed-forward layer without width",
                self.mlp_ratio
            )));
        }
        if !(0.0..1.0).contains(&self.proj_dropout) {
            return Err(Error::Config(format!("proj_dropout {} is not in [0, 1)", self.proj_dropout)));
        }
        Ok(())
    }

    pub(crate) fn head_dim(&self) -> i64 {
        self.hidden_size / self.num_heads
    }

    pub(crate) fn mlp_hidden(&self) -> i64 {
        let full = (self.hidden_size as f64 * self.mlp_ratio).floor();
        (full * 2.0 / 3.0).floor() as i64
    }

    /// The number of numbers in the parameters of all blocks.
    pub(crate) fn parameter_count(&self) -> u64 {
        let size = |n: i64| n.max(0) as u64;
        let (h, inner, head) = (size(self.hidden_size), size(self.mlp_hidden()), size(self.head_dim()));
        let block = linear(h, 3 * h) + linear(h, h) + linear(h, 2 * inner) + linear(inner, h) + 2 * h + 2 * head;
        size(self.depth) * block
    }

    /// The dropout of block `index`: in the middle half of the depth only, as in the released code.
    pub(crate) fn dropout_in(&self, index: i64) -> f64 {
        let quarter = self.depth / 4;
        if (quarter..quarter * 3).contains(&index) { self.proj_dropout } else { 0.0 }
    }
}

/// Checks sizes, each with its name. The upper bound keeps products of two far from overflow.
pub(crate) fn check_sizes(sizes: impl IntoIterator<Item = (&'static str, i64)>) -> Result<()> {
    for (name, size) in sizes {
        if !(1..=1 << 24).contains(&size) {
            return Err(Error::Config(format!("{name} is {size}: it must be between 1 and 16777216")));
        }
    }
    Ok(())
}

/// The number of numbers in a linear layer, its bias included.
fn linear(fan_in: u64, fan_out: u64) -> u64 {
    fan_in * fan_out + fan_out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_head_sizes_are_refused() {
        let config = ElfConfig { hidden_size: 36, num_heads: 4, ..Preset::B.config(16, 50) };
        let message = config.check().unwrap_err().to_string();
        assert!(message.contains("hidden_size 36") && message.contains("num_heads 4"), "{message}");
        for (_, preset) in Preset::ALL {
            preset.config(512, 32100).check().unwrap();
        }
    }

    #[test]
    fn swiglu_takes_two_thirds_rounded_down_twice() {
        assert_eq!(Preset::B.config(512, 32100).mlp_hidden(), 2048);
        assert_eq!(ElfConfig { hidden_size: 40, ..Preset::B.config(512, 32100) }.mlp_hidden(), 106);
    }
}
