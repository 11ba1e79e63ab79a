//! The words that all ELF crates share.
//!
//! * [`Network`]: a trunk whose rows may each be in denoise or in decode mode, with one head for clean latents and one
//!   for logits. Flows, training and distillation are written against it, so a network of your own fits everywhere.
//! * [`TokenNetwork`]: its counterpart for models that read words instead of latents; [`Unembedding`]: the way back to words.
//! * [`ParamSet`] and [`ParamBuilder`]: parameters by name, with their fan-in and fan-out, strict loading and saving.
//! * [`Noise`]: the only source of randomness; seeded per row, so that a request gives the same result whatever else is
//!   in its batch, and replayable, so that recorded draws can be held against reference numbers.
//! * [`Dropout`]: masks that are each row's own.
//! * [`TokenDraw`]: how a token is drawn from logits.
//! * [`Precision`] and [`device`]: which parts run in bf16, and where.
//! * [`layers`]: the layers that T5, GPT-2 and ELF have in common.
//! * [`tensorfile`]: safetensors files, read without trusting a single size in them, written aside and renamed.
//! * [`pytorch`]: PyTorch checkpoints, read without running anything that is in them, and written.
//! * [`weights`]: parameters by name out of any of these files, one or many.
//!
//! It deliberately does not know any model, text, or training.

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
mod token_draw;
mod token_network;
mod unembedding;
pub mod weights;

pub use dropout::Dropout;
pub use error::{Error, Result};
pub use network::{Context, Counting, LearnedLatents, Memory, Network, NetworkShape, PassCount, TrunkInput};
pub use noise::{Noise, Replay, Seeded, key_of};
pub use param::{Fans, Init, Param, ParamBuilder, ParamSet, Weight};
pub use precision::{Precision, PrecisionPolicy};
pub use timed::Timed;
pub use token_draw::TokenDraw;
pub use token_network::{TokenNetwork, id_outside};
pub use unembedding::Unembedding;
