//! The types that all ELF crates share.
//!
//! * [`Network`]: a trunk whose rows may each be in denoise or in decode mode, a head for clean latents and one for logits. Flows,
//!   training and distillation use this trait, and so work with any network.
//! * [`TokenNetwork`]: its counterpart for models that read token ids; [`Unembedding`]: from features to logits.
//! * [`ParamSet`] and [`ParamBuilder`]: parameters by name, with their fan-in and fan-out, strict loading and saving.
//! * [`Noise`]: the only source of random tensors. It is seeded per row, so that a row's result does not depend on its batch, and
//!   replayable, so that recorded draws can be compared with reference numbers.
//! * [`Dropout`]: masks per row.
//! * [`TokenDraw`]: drawing a token from logits.
//! * [`Precision`] and [`device`]: the parts that run in bf16, and the device.
//! * [`layers`]: the layers that T5, GPT-2 and ELF have in common.
//! * [`tensorfile`]: safetensors files. No size in a file is trusted before it is checked; files are written whole or not at all.
//! * [`pytorch`]: PyTorch checkpoints, read without running their code, and written.
//! * [`weights`]: parameters by name, from one or several of these files.
//!
//! The crate deliberately does not know models, text or training.

pub mod device;
mod dropout;
mod error;
pub mod layers;
mod network;
mod noise;
mod param;
mod precision;
pub mod pytorch;
pub mod tensorfile;
mod timed;
mod token_classes;
mod token_draw;
mod token_network;
mod unembedding;
pub mod weights;

pub use dropout::Dropout;
pub use error::{Error, Result};
pub use network::{
    Context, Counting, CrossEntropy, LearnedLatents, Memory, Network, NetworkShape, PassCount, TrunkInput,
};
pub use noise::{Noise, Replay, Seeded, key_of};
pub use param::{Fans, Init, Param, ParamBuilder, ParamSet, Weight};
pub use precision::{Precision, PrecisionPolicy};
pub use timed::Timed;
pub use token_classes::{TokenClasses, WORD_GUIDE};
pub use token_draw::TokenDraw;
pub use token_network::{TokenNetwork, id_outside};
pub use unembedding::Unembedding;
