//! Generation with a model that predicts the next token: sampling and beam search.
//!
//! Both work on any [`Incremental`]: [`Gpt2Session`](crate::Gpt2Session), another model, or a table for a test.

mod beam;
mod token_sampling;

pub use beam::{BeamSearch, Hypothesis};
pub use token_sampling::TokenSampling;

use tch::Tensor;

use crate::{Error, Result};

/// A model that reads texts token by token and predicts the next token of each.
pub trait Incremental {
    /// Reads prompts, at least one token each, and returns the logits of the next token after each, `[rows, V]`.
    ///
    /// # Errors
    /// If a prompt is too long, or the model fails.
    fn begin(&mut self, prompts: &[Vec<i64>]) -> Result<Tensor>;

    /// Appends a token to each row: row i becomes the old row `parents[i]` followed by `tokens[i]`. Returns the logits
    /// of the next token, `[rows, V]`.
    ///
    /// # Errors
    /// If a text becomes too long, or the model fails.
    fn advance(&mut self, parents: &[i64], tokens: &[i64]) -> Result<Tensor>;
}

/// A model that never writes some tokens.
pub struct Without<'a> {
    /// The model.
    pub model: &'a mut dyn Incremental,
    /// The tokens.
    pub barred: &'a [i64],
}

impl Without<'_> {
    fn bar(&self, logits: Tensor) -> Result<Tensor> {
        let barred = Tensor::f_from_slice(self.barred)?.f_to_device(logits.device())?;
        Ok(logits.f_index_fill(1, &barred, f64::NEG_INFINITY)?)
    }
}

impl Incremental for Without<'_> {
    fn begin(&mut self, prompts: &[Vec<i64>]) -> Result<Tensor> {
        let logits = self.model.begin(prompts)?;
        self.bar(logits)
    }

    fn advance(&mut self, parents: &[i64], tokens: &[i64]) -> Result<Tensor> {
        let logits = self.model.advance(parents, tokens)?;
        self.bar(logits)
    }
}

/// When texts end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// The token that ends a text.
    pub eos: i64,
    /// The largest number of tokens of a text, EOS included.
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
