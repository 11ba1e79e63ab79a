//! GPT-2: the judge of generative perplexity and the autoregressive baseline.
//!
//! * [`Gpt2`] and [`Gpt2Config`]: the model, loaded from and saved to Hugging Face's files, or initialised from a seed.
//! * [`Gpt2Session`]: the model one token at a time, with cached keys and values; [`decoding`] generates texts with it,
//!   or with any other [`decoding::Incremental`].
//! * [`Gpt2Scorer`]: the model with its tokeniser as a judge of texts, an [`elf_eval::perplexity::Scorer`].
//!
//! This crate deliberately does not know ELF: its latents, flows, networks and checkpoints. `elf-eval` computes
//! perplexities from scores.

mod block;
mod config;
pub mod decoding;
mod error;
mod model;
mod scorer;
mod session;

pub use config::Gpt2Config;
pub use error::{Error, Result};
pub use model::Gpt2;
pub use scorer::{Gpt2Scorer, ScorerSettings};
pub use session::Gpt2Session;
