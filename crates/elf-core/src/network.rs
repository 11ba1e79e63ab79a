//! The interface of networks that flows, samplers and trainers use.

use std::cell::Cell;

use tch::{Kind, Tensor};

use crate::{Dropout, ParamSet, Result};

/// Sizes of a [`Network`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkShape {
    /// C, channels of a latent.
    pub latent_dim: i64,
    /// H, channels of the trunk's output.
    pub hidden_size: i64,
    /// V, entries of the vocabulary.
    pub vocab_size: i64,
    /// Whether the scale of self-conditioning guidance is an input (one pass); otherwise guidance takes two passes.
    pub guidance_input: bool,
    /// Whether two passes over the same rows can differ (dropout in training).
    pub stochastic: bool,
}

/// The finished part of texts that are written block by block: clean latents in addition to the noisy ones. A noisy token
/// sees the prefix, the clean tokens of earlier blocks, and the noisy tokens of its own block. A clean token sees the clean
/// tokens of its own and of earlier blocks only, so that its keys and values depend neither on the time nor on the mode.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Clean latents, `[B, K, C]`, of the positions 0 to K - 1.
    pub latents: &'a Tensor,
    /// Token ids of these positions, `[B, K]`, i64, on the latents' device; negative where there is none, as in a dropped
    /// condition.
    pub ids: &'a Tensor,
    /// The block of each of these positions, `[B, K]`, i64.
    pub blocks: &'a Tensor,
    /// The block of each noisy token, `[B, S]`, i64.
    pub noisy_blocks: &'a Tensor,
    /// The position of the first noisy token.
    pub first: i64,
    /// The network's keys and values of the context, computed earlier by [`Network::remember`]; `None` computes them in the
    /// pass.
    pub memory: Option<&'a Memory>,
}

/// A network's keys and values of a [`Context`], equal at all times and in both modes. Only the network that computed them
/// can use them.
#[derive(Debug)]
pub struct Memory {
    /// Keys and values of the clean tokens, layer by layer.
    pub layers: Vec<[Tensor; 2]>,
    /// The clean tokens that each noisy token sees.
    pub mask: Tensor,
    /// The position of the first noisy token of each row.
    pub first: Vec<i64>,
}

impl Memory {
    /// Another handle of the same tensors.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        let both = |[keys, values]: &[Tensor; 2]| [keys.shallow_clone(), values.shallow_clone()];
        let layers = self.layers.iter().map(both).collect();
        Self { layers, mask: self.mask.shallow_clone(), first: self.first.clone() }
    }
}

/// The trunk's input: one batch of rows.
#[derive(Debug, Clone, Copy)]
pub struct TrunkInput<'a> {
    /// Noisy latents, `[B, S, C]`.
    pub z: &'a Tensor,
    /// The previous clean estimate, `[B, S, C]`. `None` for a network trained without self-conditioning, which takes z alone.
    pub x_prev: Option<&'a Tensor>,
    /// Times in [0, 1], `[B]`: 0 is noise, 1 is data.
    pub t: &'a Tensor,
    /// Self-conditioning guidance scales, `[B]`; ignored by networks without such an input; `None` is 1 everywhere.
    pub guidance: Option<&'a Tensor>,
    /// 1 for rows in decode mode, 0 for rows in denoise mode, `[B]`. `None` is denoise everywhere.
    pub decode: Option<&'a Tensor>,
    /// The finished prefix, for networks that write block by block.
    pub context: Option<Context<'a>>,
    /// Token ids of the condition positions among those of z, `[B, S]`, i64, on the device of z: -1 at all others, and in rows whose
    /// condition is dropped; -2 where a word of a condition is dropped. `None` without a condition, and for networks that write block
    /// by block.
    pub words: Option<&'a Tensor>,
    /// Dropout masks; `None` switches dropout off.
    pub dropout: Option<&'a Dropout>,
}

impl<'a> TrunkInput<'a> {
    /// A denoise-mode input without self-conditioning, guidance, context, condition or dropout.
    pub fn new(z: &'a Tensor, t: &'a Tensor) -> Self {
        Self { z, x_prev: None, t, guidance: None, decode: None, context: None, words: None, dropout: None }
    }
}

/// A network that predicts clean latents from noisy ones, and tokens from nearly clean ones.
///
/// The trunk runs once on any mixture of denoise and decode rows. Each head then runs only on the rows and positions that
/// need it.
pub trait Network {
    /// The network's sizes.
    fn shape(&self) -> NetworkShape;

    /// The parameters by name.
    fn params(&self) -> &ParamSet;

    /// Whether the results of a row depend neither on the other rows of its batch nor on how many there are, to the last bit; see
    /// [`PrecisionPolicy::rows_stand_alone`](crate::PrecisionPolicy::rows_stand_alone). The default promises nothing.
    fn rows_stand_alone(&self) -> bool {
        false
    }

    /// A weaker network of the same latents that is kept with this one, for autoguidance away from it. It estimates clean latents from
    /// noisy ones alone. The default has none.
    fn guide(&self) -> Option<&dyn Network> {
        None
    }

    /// An orthonormal basis `[C, R]`, fp32, of the directions of a noisy latent that the network sees; a latent's other components change
    /// nothing. `self_conditioned` states whether passes have an `x_prev`. The default, `None`, is all directions.
    ///
    /// # Errors
    /// If libtorch fails.
    fn seen_directions(&self, _self_conditioned: bool) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// Runs the trunk: `[B, S, C]` (and `x_prev`) to hidden states `[B, S, H]` of the text positions, in fp32 or bf16.
    ///
    /// # Errors
    /// If a shape does not fit, or libtorch fails.
    fn trunk(&self, input: &TrunkInput) -> Result<Tensor>;

    /// Keys and values of a context for later passes, computed without gradients. `self_conditioned` states whether these
    /// passes will have an `x_prev`. If the context has a memory of its first tokens, none of which sees a later one, only those
    /// of the others are computed. The default computes none.
    ///
    /// # Errors
    /// If a shape does not fit, or libtorch fails.
    fn remember(&self, _context: &Context, _self_conditioned: bool) -> Result<Option<Memory>> {
        Ok(None)
    }

    /// The memories of several batches as the memory of one batch that has the rows of all of them, each at its own position and
    /// with its own number of clean tokens. In a pass with it, the context's other tensors have the sizes of the longest row and
    /// stand for nothing. The default joins none, so that such rows go through the network one batch after another.
    ///
    /// # Errors
    /// If the memories are of networks of other sizes, or libtorch fails.
    fn join(&self, _memories: &[&Memory]) -> Result<Option<Memory>> {
        Ok(None)
    }

    /// Clean latents: `[.., H]` to `[.., C]`, fp32.
    ///
    /// # Errors
    /// If libtorch fails.
    fn clean(&self, hidden: &Tensor) -> Result<Tensor>;

    /// Vocabulary logits: `[N, H]` to `[N, V]`, fp32. Memory grows with N times V: pass chunks.
    ///
    /// # Errors
    /// If libtorch fails.
    fn logits(&self, hidden: &Tensor) -> Result<Tensor>;

    /// Cross-entropies of `hidden` `[N, H]` against `ids` `[N]`. `weights` `[N]` scales each position; `None` is 1 everywhere.
    ///
    /// The default materialises all N x V logits; a network may do better.
    ///
    /// # Errors
    /// If libtorch fails.
    fn cross_entropy(&self, hidden: &Tensor, ids: &Tensor, weights: Option<&Tensor>) -> Result<CrossEntropy> {
        let nll = self.logits(hidden)?.f_cross_entropy_loss(ids, None::<&Tensor>, tch::Reduction::None, -100, 0.0)?;
        let each = match weights {
            Some(w) => nll * w,
            None => nll,
        };
        Ok(CrossEntropy { sum: each.f_sum(Kind::Float)?, each: each.f_detach()? })
    }
}

/// Cross-entropies of N positions.
#[derive(Debug)]
pub struct CrossEntropy {
    /// Their weighted sum, a differentiable fp32 scalar.
    pub sum: Tensor,
    /// Each position's, times its weight: `[N]`, fp32, without gradient.
    pub each: Tensor,
}

/// A network that learns its own latents instead of those of a frozen encoder.
pub trait LearnedLatents: Network {
    /// The latents of `ids` `[B, S]`, each of mean square 1: `[B, S, C]`, fp32, with gradients to the network's parameters.
    ///
    /// # Errors
    /// If the network has none, an id is outside its vocabulary, or libtorch fails.
    fn latents(&self, ids: &Tensor) -> Result<Tensor>;
}

/// Numbers of passes of a [`Counting`] network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PassCount {
    /// Trunk passes.
    pub passes: u64,
    /// Rows over all trunk passes.
    pub rows: u64,
    /// Rows of trunk passes that recorded a graph for the backward pass.
    pub rows_with_grad: u64,
    /// Positions turned into logits.
    pub logit_positions: u64,
    /// Rows over all calls of [`Network::remember`], which the other numbers do not include.
    pub context_rows: u64,
}

/// A network that counts its passes, the unit of sampling and training cost.
#[derive(Debug)]
pub struct Counting<N> {
    inner: N,
    count: Cell<PassCount>,
}

impl<N: Network> Counting<N> {
    /// Starts counting at zero.
    pub fn new(inner: N) -> Self {
        Self { inner, count: Cell::default() }
    }

    /// What was asked since the start or the last [`Counting::reset`].
    pub fn count(&self) -> PassCount {
        self.count.get()
    }

    /// Back to zero.
    pub fn reset(&self) {
        self.count.set(PassCount::default());
    }

    /// The network itself.
    pub fn inner(&self) -> &N {
        &self.inner
    }

    fn add_logits(&self, hidden: &Tensor) {
        let mut c = self.count.get();
        c.logit_positions += hidden.size().first().copied().unwrap_or(0) as u64;
        self.count.set(c);
    }
}

impl<N: Network> Network for Counting<N> {
    fn shape(&self) -> NetworkShape {
        self.inner.shape()
    }

    fn params(&self) -> &ParamSet {
        self.inner.params()
    }

    fn rows_stand_alone(&self) -> bool {
        self.inner.rows_stand_alone()
    }

    fn guide(&self) -> Option<&dyn Network> {
        self.inner.guide()
    }

    fn trunk(&self, input: &TrunkInput) -> Result<Tensor> {
        let hidden = self.inner.trunk(input)?;
        let rows = input.z.size().first().copied().unwrap_or(0) as u64;
        let mut c = self.count.get();
        c.passes += 1;
        c.rows += rows;
        c.rows_with_grad += if hidden.requires_grad() { rows } else { 0 };
        self.count.set(c);
        Ok(hidden)
    }

    fn remember(&self, context: &Context, self_conditioned: bool) -> Result<Option<Memory>> {
        let memory = self.inner.remember(context, self_conditioned)?;
        if memory.is_some() {
            let mut c = self.count.get();
            c.context_rows += context.latents.size().first().copied().unwrap_or(0) as u64;
            self.count.set(c);
        }
        Ok(memory)
    }

    fn join(&self, memories: &[&Memory]) -> Result<Option<Memory>> {
        self.inner.join(memories)
    }

    fn clean(&self, hidden: &Tensor) -> Result<Tensor> {
        self.inner.clean(hidden)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.add_logits(hidden);
        self.inner.logits(hidden)
    }

    fn cross_entropy(&self, hidden: &Tensor, ids: &Tensor, weights: Option<&Tensor>) -> Result<CrossEntropy> {
        self.add_logits(hidden);
        self.inner.cross_entropy(hidden, ids, weights)
    }
}
