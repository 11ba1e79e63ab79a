//! A network whose passes are shared with other runs.

use std::panic::resume_unwind;

use corosensei::Yielder;
use elf_core::{Context, Memory, Network, NetworkShape, ParamSet, Result, TrunkInput};
use tch::Tensor;

use super::call::{Call, Reply};

/// A network as a run of a [`RunPool`](super::RunPool) sees it: it computes the same, together with the calls of other runs.
pub struct SharedNetwork<'r, 'a> {
    net: &'a dyn Network,
    yielder: &'r Yielder<Option<Reply>, Call<'a>>,
}

impl<'r, 'a> SharedNetwork<'r, 'a> {
    pub(super) fn new(net: &'a dyn Network, yielder: &'r Yielder<Option<Reply>, Call<'a>>) -> Self {
        Self { net, yielder }
    }

    /// Waits for the result of a call.
    fn wait(&self, call: Call<'a>) -> Result<Tensor> {
        match self.yielder.suspend(call) {
            Some(Ok(result)) => result,
            Some(Err(panic)) => resume_unwind(panic),
            None => unreachable!("the pool resumes a run that waits with the result of its call"),
        }
    }
}

impl Network for SharedNetwork<'_, '_> {
    fn shape(&self) -> NetworkShape {
        self.net.shape()
    }

    fn params(&self) -> &ParamSet {
        self.net.params()
    }

    fn rows_stand_alone(&self) -> bool {
        self.net.rows_stand_alone()
    }

    fn trunk(&self, input: &TrunkInput) -> Result<Tensor> {
        match input.dropout {
            None => self.wait(Call::trunk(self.net, input)),
            // Masks are of training, in which no runs share a network.
            Some(_) => self.net.trunk(input),
        }
    }

    /// Computed alone: the tokens of one row are many enough.
    fn remember(&self, context: &Context, self_conditioned: bool) -> Result<Option<Memory>> {
        self.net.remember(context, self_conditioned)
    }

    fn join(&self, memories: &[&Memory]) -> Result<Option<Memory>> {
        self.net.join(memories)
    }

    fn clean(&self, hidden: &Tensor) -> Result<Tensor> {
        self.wait(Call::clean(self.net, hidden))
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.wait(Call::logits(self.net, hidden))
    }
}
