//! A network as a velocity field.

use std::cell::Cell;

use elf_core::{Network, TrunkInput};
use tch::{Kind, Tensor};

use crate::blocks::{self, PrefixContext};
use crate::{Condition, Field, Prediction, Result, TrainedFlow};

/// A network in denoise mode as a field: one pass per evaluation.
///
/// Of a condition it knows the words; its latents are put in place by [`Conditioned`](crate::Conditioned).
pub struct NetworkField<'a> {
    net: &'a dyn Network,
    trained: TrainedFlow,
    guidance: f64,
    prefix: Option<&'a PrefixContext<'a>>,
    condition: Option<&'a Condition>,
    rows: Cell<u64>,
}

impl std::fmt::Debug for NetworkField<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("NetworkField")
            .field("trained", &self.trained)
            .field("guidance", &self.guidance)
            .finish_non_exhaustive()
    }
}

impl<'a> NetworkField<'a> {
    /// Makes a field of a network. `guidance` is the self-conditioning guidance scale w, for networks with such an input.
    pub fn new(net: &'a dyn Network, trained: TrainedFlow, guidance: f64) -> Self {
        Self { net, trained, guidance, prefix: None, condition: None, rows: Cell::new(0) }
    }

    /// Conditions this field on a finished prefix.
    pub(crate) fn with_prefix(self, prefix: Option<&'a PrefixContext<'a>>) -> Self {
        Self { prefix, ..self }
    }

    /// Tells the network the words of a condition, which has one row for each row of a pass, or for each of its first half.
    pub(crate) fn with_condition(self, condition: Option<&'a Condition>) -> Self {
        Self { condition, ..self }
    }

    /// Rows sent through the network so far. Divided by the batch's rows this is the number of passes.
    pub fn rows(&self) -> u64 {
        self.rows.get()
    }
}

impl Field for NetworkField<'_> {
    fn eval(&self, z: &Tensor, t: f64, hint: Option<&Tensor>) -> Result<Prediction> {
        let (b, ..) = z.size3()?;
        let options = (Kind::Float, z.device());
        let times = Tensor::f_full([b], t, options)?;
        let w = Tensor::f_full([b], self.guidance, options)?;
        let x_prev = match (self.trained.self_conditioned, hint) {
            (false, _) => None,
            (true, Some(hint)) => Some(hint.shallow_clone()),
            (true, None) => Some(z.f_zeros_like()?),
        };
        let words = blocks::words(self.prefix, self.condition, b)?;
        let input = TrunkInput {
            x_prev: x_prev.as_ref(),
            guidance: Some(&w),
            words: words.as_ref(),
            ..TrunkInput::new(z, &times)
        };
        let head = self.net.clean(&blocks::trunk(self.net, self.prefix, input)?)?;
        self.rows.set(self.rows.get() + b as u64);
        Ok(self.trained.path.resolve_at(head, z, t))
    }

    fn noise_scale(&self) -> f64 {
        self.trained.path.noise_scale
    }
}
