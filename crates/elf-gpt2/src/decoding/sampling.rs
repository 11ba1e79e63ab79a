//! Texts by drawing each token from what the model says.

use elf_core::{Noise, Seeded};
use tch::{Device, Kind, Tensor};

use super::{Ending, Incremental};
use crate::{Error, Result};

/// How tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// What logits are divided by; 1 leaves the model's distribution as it is, 0 takes the likeliest token.
    pub temperature: f64,
    /// Draws among the likeliest tokens that together have this probability (nucleus sampling; Holtzman et al. 2020); 1 is all.
    pub top_p: f64,
}

impl Default for Sampling {
    /// The model's own distribution.
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 1.0 }
    }
}

impl Sampling {
    /// Checks the settings.
    ///
    /// # Errors
    /// Names the one that is out of its range.
    pub fn check(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::Setting {
                setting: "temperature",
                reason: format!("{} is not a number from 0 up", self.temperature),
            });
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::Setting { setting: "top_p", reason: format!("{} is not in (0, 1]", self.top_p) });
        }
        Ok(())
    }

    /// One text after each prompt, EOS included if it was reached. Draws are a function of each row's seed.
    ///
    /// # Errors
    /// If a setting is out of its range, there is not one seed a prompt, or the model fails.
    pub fn texts(
        &self,
        model: &mut dyn Incremental,
        prompts: &[Vec<i64>],
        seeds: &[u64],
        ending: Ending,
    ) -> Result<Vec<Vec<i64>>> {
        self.check()?;
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
            let draws = noise.coins("token", prompts.len())?;
            let tokens = tch::no_grad(|| self.draw(&logits, &draws))?;
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

    /// A token for each row of `logits` `[N, V]` by inversion, for draws in [0, 1).
    fn draw(&self, logits: &Tensor, draws: &[f64]) -> Result<Vec<i64>> {
        if self.temperature == 0.0 {
            return Ok(Vec::try_from(logits.f_argmax(-1, false)?.f_to_device(Device::Cpu)?)?);
        }
        let draws = Tensor::f_from_slice(draws)?.f_to_device(logits.device())?.f_unsqueeze(-1)?;
        let p = logits.f_to_kind(Kind::Double)?.f_div_scalar(self.temperature)?.f_softmax(-1, Kind::Double)?;
        // The place at which the sum of probabilities exceeds the draw.
        let place = |p: &Tensor| -> Result<Tensor> {
            let sums = p.f_cumsum(-1, Kind::Double)?;
            let last = sums.size2()?.1 - 1;
            let draws = draws.f_mul(&sums.f_narrow(1, last, 1)?)?;
            Ok(sums.f_le_tensor(&draws)?.f_sum_dim_intlist(-1, true, Kind::Int64)?.f_clamp_max(last)?)
        };
        let tokens = if self.top_p < 1.0 {
            let (p, order) = p.f_sort(-1, true)?;
            // Tokens stay whose likelier ones have not yet that probability: the likeliest always does.
            let before = p.f_cumsum(-1, Kind::Double)?.f_sub(&p)?;
            let kept = p.f_masked_fill(&before.f_ge(self.top_p)?, 0.0)?;
            order.f_gather(1, &place(&kept)?, false)?
        } else {
            place(&p)?
        };
        Ok(Vec::try_from(tokens.f_squeeze_dim(1)?.f_to_device(Device::Cpu)?)?)
    }
}
