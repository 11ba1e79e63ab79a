//! Errors of a trained flow at each time: the distance of its estimates from the true latents, and the share of words that can be
//! decoded from them.
//!
//! A text goes wrong where the flow misses the latents, or where the network cannot decode words from the right latents. Errors of
//! single passes over true texts tell these apart, which samples and perplexities do not.

use elf_core::Noise;
use tch::{Kind, Tensor};

use crate::condition::NO_WORD;
use crate::{Condition, Conditioned, Decoder, Field, LatentBatch, NetworkField, Reading, Result, TrainedFlow};

/// Errors summed over positions; sums of several batches can be added.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct EstimateErrors {
    /// The number of positions.
    pub positions: f64,
    /// The squared error of the clean estimate, a mean over channels. Latents have about unit variance, so an estimate that is always
    /// the mean has an error of about 1.
    pub squared_error: f64,
    /// The number of positions whose word is decoded correctly from the estimate.
    pub right: f64,
}

impl EstimateErrors {
    /// The mean squared error per channel.
    pub fn error(&self) -> f64 {
        self.squared_error / self.positions.max(1.0)
    }

    /// The share of words that are decoded correctly.
    pub fn accuracy(&self) -> f64 {
        self.right / self.positions.max(1.0)
    }
}

impl std::ops::AddAssign for EstimateErrors {
    fn add_assign(&mut self, other: Self) {
        self.positions += other.positions;
        self.squared_error += other.squared_error;
        self.right += other.right;
    }
}

/// What a network expects at each position of a text of which only a condition is known.
#[derive(Debug)]
pub struct Foretold {
    /// Natural log-probabilities `[B, S]`, fp32, of the text's own tokens.
    pub log_probs: Tensor,
    /// The likeliest tokens.
    pub likeliest: Reading,
}

/// Measures the errors of a network on true texts.
pub struct Probe<'a> {
    net: &'a dyn elf_core::Network,
    trained: TrainedFlow,
    guidance: f64,
}

impl std::fmt::Debug for Probe<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Probe")
            .field("trained", &self.trained)
            .field("guidance", &self.guidance)
            .finish_non_exhaustive()
    }
}

impl<'a> Probe<'a> {
    /// Makes a probe of a network; `guidance` is the self-conditioning guidance scale w, for networks with such an input.
    pub fn new(net: &'a dyn elf_core::Network, trained: TrainedFlow, guidance: f64) -> Self {
        Self { net, trained, guidance }
    }

    /// The errors at time `t` of texts that are noisy to that degree. The estimate is the one that sampling would use: for
    /// self-conditioned networks, that of a second pass which has the first estimate as its hint.
    ///
    /// `counted` `[B, S]`, on the CPU, is 1 at the positions to measure. `with_condition` says whether the network is given the
    /// batch's conditions, or zeros in their place as in rows whose condition is dropped in training.
    /// Draws `noise` `[B, S, C]`.
    ///
    /// # Errors
    /// If tensors do not fit together, or the network or the noise fails.
    pub fn at(
        &self,
        batch: &LatentBatch,
        counted: &Tensor,
        t: f64,
        with_condition: bool,
        noise: &mut dyn Noise,
    ) -> Result<EstimateErrors> {
        tch::no_grad(|| {
            let (b, s, c) = batch.sizes()?;
            let condition = Self::condition(batch, with_condition)?;
            let eps = noise.normal("noise", &[b, s, c])?;
            let time = Tensor::f_full([1], t, (Kind::Float, batch.latents.device()))?;
            let z = self.trained.path.interpolate(&batch.latents, &eps, &time);
            let x = self.estimate(&z, t, condition.as_ref())?;
            self.errors(batch, counted, &x, condition.as_ref())
        })
    }

    /// What the network expects of texts with the token ids `ids` `[B, S]` from their `condition` alone: the first estimate of
    /// sampling, at t = 0, read as words. Draws `noise` `[B, S, C]`.
    ///
    /// # Errors
    /// If tensors do not fit together, or the network or the noise fails.
    pub fn foretold(&self, condition: &Condition, ids: &Tensor, noise: &mut dyn Noise) -> Result<Foretold> {
        tch::no_grad(|| {
            let (b, s, c) = condition.sizes()?;
            let z = noise.normal("noise", &[b, s, c])? * self.trained.path.noise_scale;
            let x = self.estimate(&z, 0.0, Some(condition))?;
            let decoder = Decoder::new(self.net, self.trained, self.guidance);
            Ok(Foretold {
                log_probs: decoder.log_probs(&x, Some(condition), ids)?,
                likeliest: decoder.read(&x, Some(condition))?,
            })
        })
    }

    /// The clean estimate of noisy latents `z` `[B, S, C]` at time `t` that sampling would use.
    fn estimate(&self, z: &Tensor, t: f64, condition: Option<&Condition>) -> Result<Tensor> {
        let network = NetworkField::new(self.net, self.trained, self.guidance).with_condition(condition);
        let field: Box<dyn Field + '_> = match condition {
            Some(condition) => Box::new(Conditioned::new(network, condition)),
            None => Box::new(network),
        };
        let x = field.eval(z, t, None)?.x;
        match self.trained.self_conditioned {
            true => Ok(field.eval(z, t, Some(&x))?.x),
            false => Ok(x),
        }
    }

    /// The errors of decoding the clean latents themselves, which no sampler can undercut.
    ///
    /// # Errors
    /// If tensors do not fit together, or the network fails.
    pub fn of_clean_latents(&self, batch: &LatentBatch, counted: &Tensor) -> Result<EstimateErrors> {
        let condition = Self::condition(batch, true)?;
        tch::no_grad(|| self.errors(batch, counted, &batch.latents, condition.as_ref()))
    }

    fn condition(batch: &LatentBatch, given: bool) -> Result<Option<Condition>> {
        let of_mask = |mask: &Tensor| match given {
            true => Condition::new(&batch.latents, &batch.ids, mask),
            false => Condition::new(&batch.latents.f_zeros_like()?, &batch.ids.f_full_like(NO_WORD)?, mask),
        };
        batch.condition.as_ref().map(of_mask).transpose()
    }

    /// The errors of the estimate `x` `[B, S, C]`.
    fn errors(
        &self,
        batch: &LatentBatch,
        counted: &Tensor,
        x: &Tensor,
        condition: Option<&Condition>,
    ) -> Result<EstimateErrors> {
        let device = x.device();
        let sum = |t: Tensor| -> Result<f64> { Ok(t.f_sum(Kind::Double)?.f_double_value(&[])?) };
        let mask = counted.f_to_device(device)?.f_to_kind(Kind::Float)?;
        let error = (x - &batch.latents).f_square()?.f_mean_dim(-1, false, Kind::Float)?;
        let ids = Decoder::new(self.net, self.trained, self.guidance).ids(x, condition)?;
        let right = ids.f_eq_tensor(&batch.ids.f_to_device(device)?)?.f_to_kind(Kind::Float)?;
        Ok(EstimateErrors {
            positions: sum(mask.shallow_clone())?,
            squared_error: sum(error * &mask)?,
            right: sum(right * &mask)?,
        })
    }
}
