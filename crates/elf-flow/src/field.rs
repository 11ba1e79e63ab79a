//! Velocity fields over latents, which samplers integrate.

use std::cell::Cell;

use elf_core::{Network, TrunkInput};
use tch::{Kind, Tensor};

use crate::blocks::{self, PrefixContext};
use crate::{ElfObjective, FlowPath, Result};

/// A field's prediction at a point. `v` and `x` are two forms of the same prediction: either follows from the other and the point.
#[derive(Debug)]
pub struct Prediction {
    /// Velocity dz/dt, `[B, S, C]`; 0 on condition positions.
    pub v: Tensor,
    /// The estimate of the clean latents at t = 1, `[B, S, C]`.
    pub x: Tensor,
}

/// A velocity field over latents. Guidance wraps a field and is itself a field; samplers know nothing but this trait.
pub trait Field {
    /// The prediction at `z` `[B, S, C]` and time `t` in [0, 1].
    ///
    /// `hint` `[B, S, C]` is an earlier clean estimate of the same rows, which self-conditioned networks take as a second
    /// input; `None` is no estimate yet.
    ///
    /// # Errors
    /// If a shape does not fit or the network fails.
    fn eval(&self, z: &Tensor, t: f64, hint: Option<&Tensor>) -> Result<Prediction>;

    /// Puts the clean condition back in its positions. A sampler calls this after any change of `z` that is not along `v`.
    ///
    /// # Errors
    /// If libtorch fails.
    fn pin(&self, z: Tensor) -> Result<Tensor> {
        Ok(z)
    }

    /// sigma, the standard deviation of the latents at t = 0: samplers that add noise scale it by this.
    fn noise_scale(&self) -> f64;
}

impl<F: Field + ?Sized> Field for &F {
    fn eval(&self, z: &Tensor, t: f64, hint: Option<&Tensor>) -> Result<Prediction> {
        (**self).eval(z, t, hint)
    }

    fn pin(&self, z: Tensor) -> Result<Tensor> {
        (**self).pin(z)
    }

    fn noise_scale(&self) -> f64 {
        (**self).noise_scale()
    }
}

impl<F: Field + ?Sized> Field for Box<F> {
    fn eval(&self, z: &Tensor, t: f64, hint: Option<&Tensor>) -> Result<Prediction> {
        (**self).eval(z, t, hint)
    }

    fn pin(&self, z: Tensor) -> Result<Tensor> {
        (**self).pin(z)
    }

    fn noise_scale(&self) -> f64 {
        (**self).noise_scale()
    }
}

/// How a network was trained, as far as sampling depends on it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainedFlow {
    /// The path between noise and data.
    pub path: FlowPath,
    /// Whether the network takes an earlier clean estimate as a second input. One trained with `self_cond_prob` 0 does not: it takes
    /// z alone in training, sampling and decoding, and self-conditioning guidance has nothing to strengthen.
    pub self_conditioned: bool,
    /// Tokens of a block, for networks that generate block after block; `None` for all tokens together, as in the paper.
    pub block_size: Option<i64>,
}

impl From<&ElfObjective> for TrainedFlow {
    fn from(objective: &ElfObjective) -> Self {
        Self { path: objective.path, self_conditioned: objective.self_conditioned(), block_size: objective.block_size }
    }
}

/// A network in denoise mode as a field: one pass per evaluation.
///
/// It does not know conditions; see [`Conditioned`](crate::Conditioned).
pub struct NetworkField<'a> {
    net: &'a dyn Network,
    trained: TrainedFlow,
    guidance: f64,
    prefix: Option<&'a PrefixContext<'a>>,
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
        Self { net, trained, guidance, prefix: None, rows: Cell::new(0) }
    }

    /// Conditions this field on a finished prefix.
    pub(crate) fn with_prefix(self, prefix: Option<&'a PrefixContext<'a>>) -> Self {
        Self { prefix, ..self }
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
        let input = TrunkInput { x_prev: x_prev.as_ref(), guidance: Some(&w), ..TrunkInput::new(z, &times) };
        let head = self.net.clean(&blocks::trunk(self.net, self.prefix, input)?)?;
        self.rows.set(self.rows.get() + b as u64);
        Ok(self.trained.path.resolve_at(head, z, t))
    }

    fn noise_scale(&self) -> f64 {
        self.trained.path.noise_scale
    }
}
