//! What a trained flow knows at each time: how near its estimates are to the truth, and how many words can be read from them.
//!
//! A text goes wrong where the flow does not find the latents, or where the network cannot read words from latents that were
//! found. Errors of single passes over true texts tell these apart, which samples and perplexities do not.

use elf_core::Noise;
use tch::{Kind, Tensor};

use crate::blocks::NO_WORD;
use crate::{Condition, Conditioned, Decoder, Field, LatentBatch, NetworkField, Result, Trained};

/// Sums over the positions that were looked at; those of several batches are added.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Knowledge {
    /// Positions.
    pub positions: f64,
    /// Over positions, the squared error of the clean estimate, a mean over channels. Latents have about unit variance: 1 is
    /// what is wrong with an estimate that is always the mean.
    pub squared_error: f64,
    /// Positions whose word is read rightly from the estimate.
    pub right: f64,
}

impl Knowledge {
    /// The mean squared error of a channel.
    pub fn error(&self) -> f64 {
        self.squared_error / self.positions.max(1.0)
    }

    /// The share of words that are read rightly.
    pub fn accuracy(&self) -> f64 {
        self.right / self.positions.max(1.0)
    }
}

impl std::ops::AddAssign for Knowledge {
    fn add_assign(&mut self, other: Self) {
        self.positions += other.positions;
        self.squared_error += other.squared_error;
        self.right += other.right;
    }
}

/// Looks at a network through true texts.
#[derive(Debug)]
pub struct Probe<'a> {
    field: NetworkField<'a>,
    decoder: Decoder<'a>,
    trained: Trained,
}

impl<'a> Probe<'a> {
    /// Of a network; `guidance` is the self-conditioning guidance scale w for networks with such an input.
    pub fn new(net: &'a dyn elf_core::Network, trained: Trained, guidance: f64) -> Self {
        Self {
            field: NetworkField::new(net, trained, guidance),
            decoder: Decoder::new(net, trained, guidance),
            trained,
        }
    }

    /// What is known at time `t` of texts that are noisy to that degree: of the estimate that sampling would go on with there,
    /// the second one of self-conditioned networks.
    ///
    /// `counted` `[B, S]`, on the CPU, is 1 at the positions to look at. `with_condition` says whether the network is given the
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
    ) -> Result<Knowledge> {
        tch::no_grad(|| {
            let (b, s, c) = batch.sizes()?;
            let condition = Self::condition(batch, with_condition)?;
            let eps = noise.normal("noise", &[b, s, c])?;
            let time = Tensor::f_full([1], t, (Kind::Float, batch.latents.device()))?;
            let z = self.trained.path.interpolate(&batch.latents, &eps, &time);
            let field: Box<dyn Field + '_> = match &condition {
                Some(condition) => Box::new(Conditioned::new(&self.field, condition)),
                None => Box::new(&self.field),
            };
            let mut x = field.eval(&z, t, None)?.x;
            if self.trained.self_conditioned {
                x = field.eval(&z, t, Some(&x))?.x;
            }
            self.knowledge(batch, counted, &x, condition.as_ref())
        })
    }

    /// What can be read from the clean latents themselves: no sampler can write better than that.
    ///
    /// # Errors
    /// If tensors do not fit together, or the network fails.
    pub fn of_clean_latents(&self, batch: &LatentBatch, counted: &Tensor) -> Result<Knowledge> {
        let condition = Self::condition(batch, true)?;
        tch::no_grad(|| self.knowledge(batch, counted, &batch.latents, condition.as_ref()))
    }

    fn condition(batch: &LatentBatch, given: bool) -> Result<Option<Condition>> {
        let of_mask = |mask: &Tensor| match given {
            true => Condition::new(&batch.latents, &batch.ids, mask),
            false => Condition::new(&batch.latents.f_zeros_like()?, &batch.ids.f_full_like(NO_WORD)?, mask),
        };
        batch.condition.as_ref().map(of_mask).transpose()
    }

    fn knowledge(
        &self,
        batch: &LatentBatch,
        counted: &Tensor,
        x: &Tensor,
        condition: Option<&Condition>,
    ) -> Result<Knowledge> {
        let device = x.device();
        let sum = |t: Tensor| -> Result<f64> { Ok(t.f_sum(Kind::Double)?.f_double_value(&[])?) };
        let mask = counted.f_to_device(device)?.f_to_kind(Kind::Float)?;
        let error = (x - &batch.latents).f_square()?.f_mean_dim(-1, false, Kind::Float)?;
        let ids = self.decoder.ids(x, condition)?;
        let right = ids.f_eq_tensor(&batch.ids.f_to_device(device)?)?.f_to_kind(Kind::Float)?;
        Ok(Knowledge {
            positions: sum(mask.shallow_clone())?,
            squared_error: sum(error * &mask)?,
            right: sum(right * &mask)?,
        })
    }
}
