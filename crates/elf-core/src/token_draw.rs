//! From logits to one token each.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{Error, Result};

/// Settings of drawing a token from a model's distribution.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TokenDraw {
    /// Divisor of the logits; 1 keeps the model's distribution, 0 takes the likeliest token.
    pub temperature: f64,
    /// Probability of the likeliest tokens that are drawn among (nucleus sampling; Holtzman et al. 2020); 1 is all tokens.
    pub top_p: f64,
}

impl Default for TokenDraw {
    /// The model's own distribution.
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 1.0 }
    }
}

impl TokenDraw {
    /// The likeliest token; draws are not used.
    pub const LIKELIEST: Self = Self { temperature: 0.0, top_p: 1.0 };

    /// Whether the likeliest token is always taken.
    pub fn is_likeliest(&self) -> bool {
        self.temperature == 0.0
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// If a setting is out of range or has no effect; the message names it.
    pub fn check(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::Config(format!("temperature: {} is not a number from 0 up", self.temperature)));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::Config(format!("top_p: {} is not in (0, 1]", self.top_p)));
        }
        if self.is_likeliest() && self.top_p < 1.0 {
            let reason =
                "has no effect at temperature 0, which takes the likeliest: raise the temperature, or leave it out";
            return Err(Error::Config(format!("top_p: {} {reason}", self.top_p)));
        }
        Ok(())
    }

    /// A token for each row of `logits` `[N, V]`, i64 `[N]` on their device, by inversion: the first one up to which the sum of
    /// probabilities exceeds the row's draw, one of `draws` `[N]` in [0, 1).
    ///
    /// # Errors
    /// If a shape does not fit.
    pub fn tokens(&self, logits: &Tensor, draws: &Tensor) -> Result<Tensor> {
        if self.is_likeliest() {
            return Ok(logits.f_argmax(-1, false)?);
        }
        let draws = draws.f_to_device(logits.device())?.f_to_kind(Kind::Double)?.f_unsqueeze(-1)?;
        // Relative to the highest logit, so that temperatures near 0 leave the likeliest token.
        let below = logits.f_sub(&logits.f_amax([-1], true)?)?.f_to_kind(Kind::Double)?;
        let p = below.f_div_scalar(self.temperature)?.f_softmax(-1, Kind::Double)?;
        let place = |p: &Tensor| -> Result<Tensor> {
            let sums = p.f_cumsum(-1, Kind::Double)?;
            let last = sums.size2()?.1 - 1;
            // Scaled by the last sum, so that rounding leaves no draw beyond it.
            let draws = draws.f_mul(&sums.f_narrow(1, last, 1)?)?;
            Ok(sums.f_le_tensor(&draws)?.f_sum_dim_intlist(-1, true, Kind::Int64)?.f_clamp_max(last)?)
        };
        let tokens = if self.top_p < 1.0 {
            let (kept, order) = self.nucleus(&p)?;
            order.f_gather(1, &place(&kept)?, false)?
        } else {
            place(&p)?
        };
        Ok(tokens.f_squeeze_dim(1)?)
    }

    /// The likeliest tokens of `probabilities` `[N, V]` that together have `top_p`: probabilities from the highest down, 0 for all other tokens,
    /// and the tokens in that order, both `[N, V]`.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn nucleus(&self, probabilities: &Tensor) -> Result<(Tensor, Tensor)> {
        let (p, order) = probabilities.f_sort(-1, true)?;
        // A token stays while the likelier ones together have less than `top_p`; the likeliest always stays.
        let before = p.f_cumsum(-1, Kind::Double)?.f_sub(&p)?;
        Ok((p.f_masked_fill(&before.f_ge(self.top_p)?, 0.0)?, order))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tch::Device;

    /// What a token's probabilities come to before it and with it, of those that are kept.
    fn bounds(probabilities: &[f64], kept: &[usize], token: usize) -> (f64, f64) {
        let all: f64 = kept.iter().map(|&i| probabilities[i]).sum();
        let before: f64 = kept.iter().take_while(|&&i| i != token).map(|&i| probabilities[i]).sum();
        (before / all, (before + probabilities[token]) / all)
    }

    proptest! {
        /// Each row has its own draw, and its token is the one in whose share of the probability the draw lies.
        #[test]
        fn tokens_are_drawn_by_inversion(
            rows in proptest::collection::vec((proptest::collection::vec(-4.0f64..4.0, 7), 0.0f64..1.0), 1..5),
            temperature in 0.2f64..3.0,
            top_p in prop_oneof![Just(1.0), 0.05f64..1.0],
        ) {
            let flat: Vec<f64> = rows.iter().flat_map(|(logits, _)| logits.clone()).collect();
            let draws: Vec<f64> = rows.iter().map(|(_, draw)| *draw).collect();
            let logits = Tensor::from_slice(&flat).view([rows.len() as i64, 7]);
            let found = TokenDraw { temperature, top_p }.tokens(&logits, &Tensor::from_slice(&draws)).unwrap();
            for ((logits, draw), token) in rows.iter().zip(Vec::<i64>::try_from(found).unwrap()) {
                let weights: Vec<f64> = logits.iter().map(|x| (x / temperature).exp()).collect();
                let sum: f64 = weights.iter().sum();
                let p: Vec<f64> = weights.iter().map(|w| w / sum).collect();
                let mut order: Vec<usize> = (0..7).collect();
                if top_p < 1.0 {
                    order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
                }
                let mut before = 0.0;
                let kept: Vec<usize> = order.into_iter().filter(|&i| {
                    let stays = top_p == 1.0 || before < top_p - 1e-12;
                    before += p[i];
                    stays
                }).collect();
                prop_assert!(kept.contains(&(token as usize)), "{token} of {kept:?}");
                let (from, to) = bounds(&p, &kept, token as usize);
                prop_assert!((from - 1e-9..to + 1e-9).contains(draw), "{draw} in {from}..{to}");
            }
        }
    }

    #[test]
    fn without_a_temperature_and_near_it_draws_do_not_matter() {
        let logits = Tensor::from_slice(&[0.0f32, 2.0, 1.0, 3.0, -1.0, 2.5]).view([2, 3]);
        for draw in [0.0, 0.5, 0.999] {
            let draws = Tensor::full([2], draw, (Kind::Double, Device::Cpu));
            for temperature in [0.0, 1e-310, 1e-3] {
                let tokens = TokenDraw { temperature, top_p: 1.0 }.tokens(&logits, &draws).unwrap();
                assert_eq!(Vec::<i64>::try_from(tokens).unwrap(), [1, 0], "{temperature}");
            }
        }
    }

    #[test]
    fn impossible_settings_are_named() {
        let message = |temperature, top_p| TokenDraw { temperature, top_p }.check().unwrap_err().to_string();
        for temperature in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(message(temperature, 1.0).contains("temperature"));
        }
        for top_p in [0.0, 1.5, f64::NAN] {
            assert!(message(1.0, top_p).contains("top_p"));
        }
        assert!(message(0.0, 0.9).contains("no effect"));
        assert!(TokenDraw::LIKELIEST.check().is_ok() && TokenDraw::default().check().is_ok());
    }
}
