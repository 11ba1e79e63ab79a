//! Encoders that are made without training.

use std::path::Path;

use elf_core::{ParamBuilder, Precision};
use elf_data::Tokenizer;
use elf_encoder::{FeedForward, T5Config, T5Encoder};
use elf_hub::What;
use tch::Device;

use super::folder::Destination;
use crate::{Host, Result};

/// The sizes of a T5 encoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncoderSizes {
    /// C, channels of a latent.
    pub d_model: i64,
    /// Channels of an attention head.
    pub d_kv: i64,
    /// Inner width of the feed-forward layers.
    pub d_ff: i64,
    /// Blocks.
    pub num_layers: i64,
    /// Attention heads.
    pub num_heads: i64,
    /// The kind of feed-forward layer.
    pub feed_forward: FeedForward,
}

impl std::fmt::Display for EncoderSizes {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { d_model, d_kv, d_ff, num_layers, num_heads, feed_forward } = self;
        write!(
            f,
            "{num_layers} blocks of width {d_model}, {num_heads} heads of {d_kv}, feed-forward {d_ff} ({})",
            feed_forward.name()
        )
    }
}

impl EncoderSizes {
    /// An encoder of these sizes for a tokenizer's ids.
    pub(super) fn config(&self, tokenizer: &Tokenizer) -> T5Config {
        T5Config {
            vocab_size: tokenizer.vocab_size() as i64,
            d_model: self.d_model,
            d_kv: self.d_kv,
            d_ff: self.d_ff,
            num_layers: self.num_layers,
            num_heads: self.num_heads,
            feed_forward_proj: self.feed_forward,
            ..T5Config::small()
        }
    }
}

/// Makes an encoder with random weights for the ids of `tokenizer`, a folder, file or Hugging Face id; returns its number of
/// parameters.
///
/// # Errors
/// If a size is impossible, the tokenizer cannot be read, or the destination cannot be written to.
pub fn init(sizes: &EncoderSizes, tokenizer: &Path, seed: u64, to: &Destination, host: &Host) -> Result<u64> {
    let tokenizer = Tokenizer::load(host.locate(tokenizer, What::Tokenizer)?)?;
    let config = sizes.config(&tokenizer);
    let encoder = T5Encoder::new(&config, ParamBuilder::seeded(seed, Device::Cpu), Precision::F32)?;
    to.write(&tokenizer, |folder| Ok(encoder.save(folder)?))?;
    Ok(encoder.params().numel())
}
