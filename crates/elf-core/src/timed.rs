//! The time that each part of a network takes.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use tch::{Device, Tensor};

use crate::{Context, CrossEntropy, Memory, Network, NetworkShape, ParamSet, Result, TrunkInput, device};

/// A network that measures the time of each of its parts, waiting for the device before and after. Backward passes are not
/// measured.
#[derive(Debug)]
pub struct Timed<N> {
    inner: N,
    device: Device,
    spent: RefCell<Vec<(&'static str, Duration)>>,
}

impl<N: Network> Timed<N> {
    /// A wrapper whose times are zero.
    pub fn new(inner: N) -> Self {
        let device = inner.params().iter().next().map_or(Device::Cpu, |(_, p)| p.tensor.device());
        Self { inner, device, spent: RefCell::default() }
    }

    /// Time since the last call, by part in the order of first use. Resets all times.
    pub fn take(&self) -> Vec<(&'static str, Duration)> {
        self.spent.take()
    }

    /// The network itself.
    pub fn inner(&self) -> &N {
        &self.inner
    }

    fn time<R>(&self, part: impl FnOnce(&R) -> &'static str, f: impl FnOnce() -> Result<R>) -> Result<R> {
        device::wait(self.device);
        let begun = Instant::now();
        let result = f()?;
        device::wait(self.device);
        let (part, elapsed) = (part(&result), begun.elapsed());
        let mut spent = self.spent.borrow_mut();
        match spent.iter_mut().find(|(name, _)| *name == part) {
            Some((_, sum)) => *sum += elapsed,
            None => spent.push((part, elapsed)),
        }
        Ok(result)
    }
}

impl<N: Network> Network for Timed<N> {
    fn shape(&self) -> NetworkShape {
        self.inner.shape()
    }

    fn params(&self) -> &ParamSet {
        self.inner.params()
    }

    fn guide(&self) -> Option<&dyn Network> {
        self.inner.guide()
    }

    fn trunk(&self, input: &TrunkInput) -> Result<Tensor> {
        let part = |hidden: &Tensor| match hidden.requires_grad() {
            true => "trunk, forward",
            false => "trunk, without gradients",
        };
        self.time(part, || self.inner.trunk(input))
    }

    fn remember(&self, context: &Context, self_conditioned: bool) -> Result<Option<Memory>> {
        self.time(|_| "trunk, without gradients", || self.inner.remember(context, self_conditioned))
    }

    fn join(&self, memories: &[&Memory]) -> Result<Option<Memory>> {
        self.time(|_| "trunk, without gradients", || self.inner.join(memories))
    }

    fn clean(&self, hidden: &Tensor) -> Result<Tensor> {
        self.time(|_| "clean head", || self.inner.clean(hidden))
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.time(|_| "vocabulary head", || self.inner.logits(hidden))
    }

    fn cross_entropy(&self, hidden: &Tensor, ids: &Tensor, weights: Option<&Tensor>) -> Result<CrossEntropy> {
        self.time(|_| "vocabulary head", || self.inner.cross_entropy(hidden, ids, weights))
    }
}
