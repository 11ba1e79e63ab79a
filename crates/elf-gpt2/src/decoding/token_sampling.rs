//! Sampling of texts token by token.

use elf_core::{Noise, Seeded, TokenDraw};
use tch::{Device, Tensor};

use super::{Ending, Incremental};
use crate::{Error, Result};

/// Draws each token by a [`TokenDraw`] until the text ends.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TokenSampling(pub TokenDraw);

impl TokenSampling {
    /// One text after each prompt, EOS included if it was reached. Draws are a function of each row's seed.
    ///
    /// # Errors
    /// If a setting is out of its range, the number of seeds is not that of the prompts, or the model fails.
    pub fn texts(
        &self,
        model: &mut dyn Incremental,
        prompts: &[Vec<i64>],
        seeds: &[u64],
        ending: Ending,
    ) -> Result<Vec<Vec<i64>>> {
        self.0.check()?;
        ending.check()?;
        if seeds.len() != prompts.len() {
            return Err(Error::Setting {
                setting: "seeds",
                reason: format!("{} prompts need one each, not {}", prompts.len(), seeds.len()),
            });
        }
        let mut noise = Seeded::new(seeds.to_vec(), Device::Cpu);
        let mut texts: Vec<Vec<i64>> = vec![Vec::new(); prompts.len()];
        let same: Vec<i64> = (0..prompts.len() as i64).collect();
        let mut logits = model.begin(prompts)?;
        for place in 1..=ending.most {
            let draws = Tensor::f_from_slice(&noise.coins("token", prompts.len())?)?;
            let tokens = tch::no_grad(|| self.0.tokens(&logits, &draws))?;
            let tokens = Vec::<i64>::try_from(tokens.f_to_device(Device::Cpu)?)?;
            let is_over = |text: &Vec<i64>| text.last() == Some(&ending.eos);
            for (text, &token) in texts.iter_mut().zip(&tokens) {
                if !is_over(text) {
                    text.push(token);
                }
            }
            if place == ending.most || texts.iter().all(is_over) {
                break;
            }
            logits = model.advance(&same, &tokens)?;
        }
        Ok(texts)
    }
}
