//! Texts from a model that says what comes next: by drawing, or by search.
//!
//! Both work on any [`Incremental`], so a model of your own, or a table for a test, fits as well as
//! [`Gpt2Session`](crate::Gpt2Session).

mod beam;
mod sampling;

pub use beam::{BeamSearch, Hypothesis};
pub use sampling::Sampling;

use tch::Tensor;

use crate::{Error, Result};

/// A model that reads texts token by token and says what comes next in each.
pub trait Incremental {
    /// Reads prompts, at least one token each, and gives the next token's logits after each, `[rows, V]`.
    ///
    /// # Errors
    /// If a prompt is too long, or the model fails.
    fn begin(&mut self, prompts: &[Vec<i64>]) -> Result<Tensor>;

    /// Goes on: row i becomes what row `parents[i]` was, followed by `tokens[i]`. Gives the next token's logits, `[rows, V]`.
    ///
    /// # Errors
    /// If a text becomes too long, or the model fails.
    fn advance(&mut self, parents: &[i64], tokens: &[i64]) -> Result<Tensor>;
}

/// When texts end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// The token that ends a text.
    pub eos: i64,
    /// Most tokens of a text, EOS included.
    pub most: usize,
}

impl Ending {
    fn check(&self) -> Result<()> {
        match self.most {
            0 => Err(Error::Setting { setting: "most", reason: "a text needs room for at least one token".into() }),
            _ => Ok(()),
        }
    }
}
