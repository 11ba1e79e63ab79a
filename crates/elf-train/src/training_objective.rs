//! The interface between a trainer and losses over batches of any kind.

use elf_core::{LearnedLatents, Network, Noise, ParamSet, TokenNetwork};
use elf_flow::tokens::{TokenBatch, TokenObjective};
use elf_flow::{LatentBatch, Loss, Objective};
use tch::{Device, Tensor};

use crate::Result;

/// A micro-batch of a training step.
pub trait TrainingBatch {
    /// Rows and positions of a row, padding included.
    ///
    /// # Errors
    /// If the batch's parts do not fit together.
    fn sizes(&self) -> Result<(u64, u64)>;

    /// The device on which its noise is drawn.
    fn device(&self) -> Device;
}

impl TrainingBatch for LatentBatch {
    fn sizes(&self) -> Result<(u64, u64)> {
        let (b, s, _) = LatentBatch::sizes(self)?;
        Ok((b as u64, s as u64))
    }

    fn device(&self) -> Device {
        self.latents.device()
    }
}

impl TrainingBatch for TokenBatch {
    fn sizes(&self) -> Result<(u64, u64)> {
        let (b, s) = TokenBatch::sizes(self)?;
        Ok((b as u64, s as u64))
    }

    fn device(&self) -> Device {
        self.ids.device()
    }
}

/// The loss of a network of type `N` on batches of type [`TrainingObjective::Batch`]. Every [`Objective`] is a training
/// objective of every [`Network`]; [`OverTokens`] makes a [`TokenObjective`] one of every [`TokenNetwork`];
/// [`EndToEnd`] trains the latents as well.
pub trait TrainingObjective<N: ?Sized> {
    /// The type of batches.
    type Batch: TrainingBatch;

    /// The network's parameters by name.
    fn params<'n>(&self, net: &'n N) -> &'n ParamSet;

    /// The loss of one batch, with dropout if the network has any and `noise` allows it. All randomness comes from
    /// `noise`.
    ///
    /// # Errors
    /// If tensors do not fit together, or the network or the noise fails.
    fn training_loss(&self, net: &N, batch: &Self::Batch, noise: &mut dyn Noise) -> Result<Loss>;
}

impl<N: Network, O: Objective + ?Sized> TrainingObjective<N> for O {
    type Batch = LatentBatch;

    fn params<'n>(&self, net: &'n N) -> &'n ParamSet {
        net.params()
    }

    fn training_loss(&self, net: &N, batch: &LatentBatch, noise: &mut dyn Noise) -> Result<Loss> {
        Ok(self.loss(net, batch, noise)?)
    }
}

/// An [`Objective`] whose latents are the network's own, trained by the same loss; the latents of the batch are
/// ignored.
///
/// The loss has gradients with respect to the latents: its cross-entropy moves the latents of different tokens apart,
/// its velocity error makes them easy to tell from noise. Latents are normalised, so that the velocity error cannot
/// shrink them to 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndToEnd<O>(pub O);

impl<O> EndToEnd<O> {
    fn batch<N: LearnedLatents>(net: &N, batch: &LatentBatch) -> Result<LatentBatch> {
        Ok(LatentBatch {
            latents: net.latents(&batch.ids)?,
            ids: batch.ids.shallow_clone(),
            loss_mask: batch.loss_mask.shallow_clone(),
            condition: batch.condition.as_ref().map(Tensor::shallow_clone),
            dropped: batch.dropped.clone(),
        })
    }
}

impl<N: LearnedLatents, O: Objective> TrainingObjective<N> for EndToEnd<O> {
    type Batch = LatentBatch;

    fn params<'n>(&self, net: &'n N) -> &'n ParamSet {
        net.params()
    }

    fn training_loss(&self, net: &N, batch: &LatentBatch, noise: &mut dyn Noise) -> Result<Loss> {
        Ok(self.0.loss(net, &Self::batch(net, batch)?, noise)?)
    }
}

/// A [`TokenObjective`] as a [`TrainingObjective`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverTokens<O>(pub O);

impl<N: TokenNetwork, O: TokenObjective> TrainingObjective<N> for OverTokens<O> {
    type Batch = TokenBatch;

    fn params<'n>(&self, net: &'n N) -> &'n ParamSet {
        net.params()
    }

    fn training_loss(&self, net: &N, batch: &TokenBatch, noise: &mut dyn Noise) -> Result<Loss> {
        Ok(self.0.loss(net, batch, noise)?)
    }
}
