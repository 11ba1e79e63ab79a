//! GPT-2: the judge of generative perplexity and the autoregressive baseline.
//!
//! * [`Gpt2`] and [`Gpt2Config`]: the model, from and to Hugging Face's files, or new from a seed and trainable.
//! * [`Gpt2Scorer`]: the model with its tokeniser as a judge of texts, an [`elf_eval::perplexity::Scorer`].
//!
//! It deliberately does not know ELF: not its latents, flows, networks or checkpoints. What a perplexity is made of the
//! scores is `elf-eval`'s business.

mod config;
mod error;
mod model;
mod scorer;

pub use config::Gpt2Config;
pub use error::{Error, Result};
pub use model::Gpt2;
pub use scorer::{Gpt2Scorer, ScorerSettings};
