//! The ELF transformer: predicts clean latents from noisy ones, and words from nearly clean ones.
//!
//! [`Elf`] implements [`elf_core::Network`]; [`ElfConfig`] holds its sizes and the paper's presets. Parameters have the
//! interchange names of the released checkpoints, and [`Elf::load`] needs only their safetensors file, since the architecture follows
//! from the shapes.
//!
//! [`MaskedTransformer`] is the same stack of blocks over token ids: the backbone of the masked diffusion that ELF is compared with.
//!
//! It deliberately does not know how it is trained or sampled, what a latent means, or any text.

mod attention;
mod block;
mod config;
mod context_table;
mod embed;
mod file;
mod flops;
mod join;
mod masked;
mod memory;
mod model;
mod rope;
mod seen;
mod vocab_head;
mod word_guide;

#[cfg(test)]
mod tests;

pub use config::{ElfConfig, Preset};
pub use embed::sinusoidal_features;
pub use masked::{MaskedConfig, MaskedTransformer};
pub use model::Elf;
pub use rope::Rope;
pub use word_guide::WordGuide;
