//! The ELF transformer: reads noisy latents, predicts clean ones, and reads words off nearly clean ones.
//!
//! [`Elf`] implements [`elf_core::Network`]; [`ElfConfig`] holds its sizes and the paper's presets. Parameters carry the
//! interchange names of the released checkpoints, and [`Elf::load`] needs nothing but their safetensors file, since the
//! shapes give the architecture.
//!
//! [`MaskedTransformer`] is the same stack of blocks over token ids: the backbone of the masked diffusion that ELF is held against.
//!
//! It deliberately does not know how it is trained or sampled, what a latent stands for, or any text.

mod attention;
mod block;
mod config;
mod embed;
mod file;
mod flops;
mod masked;
mod memory;
mod model;
mod rope;
mod vocab_head;

#[cfg(test)]
mod tests;

pub use config::{ElfConfig, Preset};
pub use embed::sinusoidal_features;
pub use masked::{MaskedConfig, MaskedTransformer};
pub use model::Elf;
pub use rope::Rope;
