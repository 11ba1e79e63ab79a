//! What a flow, a sampler and a trainer need of a network, and nothing more.

use std::cell::Cell;

use tch::{Kind, Tensor};

use crate::{Dropout, ParamSet, Result};

/// The sizes that a [`Network`]'s callers depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkShape {
    /// C, channels of a latent.
    pub latent_dim: i64,
    /// H, channels of the trunk's output.
    pub hidden_size: i64,
    /// V, entries of the vocabulary.
    pub vocab_size: i64,
    /// Whether the self-conditioning guidance scale is an input (one pass) or must be done with two passes.
    pub guidance_input: bool,
    /// Whether two passes over the same rows can differ (dropout in training).
    pub stochastic: bool,
}

/// Clean latents beside noisy ones, for texts that are written block after block. A noisy token sees the prefix, the clean tokens of the
/// blocks before its own, and the noisy tokens of its own block; a clean one sees the clean tokens of its own block and of those
/// before it, and nothing else, so that what is computed for it depends neither on the time nor on the mode.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Clean latents, `[B, K, C]`, of the positions 0 to K - 1.
    pub latents: &'a Tensor,
    /// The words that they are latents of, `[B, K]`, i64, on the latents' device; less than 0 where there is none, as in a condition that was
    /// dropped.
    pub ids: &'a Tensor,
    /// The block of each of them, `[B, K]`, i64.
    pub blocks: &'a Tensor,
    /// The block of each noisy token, `[B, S]`, i64.
    pub noisy_blocks: &'a Tensor,
    /// The position of the first noisy token.
    pub first: i64,
    /// What the network makes of all this, if it was asked before ([`Network::remember`]); `None` lets it work it out in the pass.
    pub memory: Option<&'a Memory>,
}

/// What a network makes of a [`Context`], which is the same at all times and in both modes. Only the network that made it can read it.
#[derive(Debug)]
pub struct Memory {
    /// Keys and values of the clean tokens, layer by layer.
    pub layers: Vec<[Tensor; 2]>,
    /// Which of them each noisy token sees.
    pub mask: Tensor,
}

/// One batch of rows on its way into the trunk.
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
    /// The clean tokens before the noisy ones, for networks that write in blocks.
    pub context: Option<Context<'a>>,
    /// Which numbers are dropped; `None` switches dropout off.
    pub dropout: Option<&'a Dropout>,
}

impl<'a> TrunkInput<'a> {
    /// A denoise-mode input without self-conditioning, guidance, context or dropout.
    pub fn new(z: &'a Tensor, t: &'a Tensor) -> Self {
        Self { z, x_prev: None, t, guidance: None, decode: None, context: None, dropout: None }
    }
}

/// A network that predicts clean latents from noisy ones, and words from nearly clean ones.
///
/// The trunk is run once for any mixture of denoise and decode rows; each head is then applied to just the rows and
/// positions that need it, so that an unused head costs nothing.
pub trait Network {
    /// The sizes callers depend on.
    fn shape(&self) -> NetworkShape;

    /// The parameters by name.
    fn params(&self) -> &ParamSet;

    /// Runs the trunk: `[B, S, C]` (and `x_prev`) to hidden states `[B, S, H]` of the text positions, in fp32 or bf16.
    ///
    /// # Errors
    /// If a shape does not fit, or libtorch fails.
    fn trunk(&self, input: &TrunkInput) -> Result<Tensor>;

    /// What the trunk makes of a context, so that passes behind it need not do it again; `self_conditioned` says whether they will come
    /// with an `x_prev`. Without gradients. The default remembers nothing.
    ///
    /// # Errors
    /// If a shape does not fit, or libtorch fails.
    fn remember(&self, _context: &Context, _self_conditioned: bool) -> Result<Option<Memory>> {
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

    /// The weighted sum of cross-entropies of `hidden` `[N, H]` against `ids` `[N]`, a differentiable fp32 scalar.
    /// `weights` `[N]` scales each position; `None` is 1 everywhere.
    ///
    /// The default materialises all N x V logits; a network may do better.
    ///
    /// # Errors
    /// If libtorch fails.
    fn cross_entropy_sum(&self, hidden: &Tensor, ids: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
        let nll = self.logits(hidden)?.f_cross_entropy_loss(ids, None::<&Tensor>, tch::Reduction::None, -100, 0.0)?;
        Ok(match weights {
            Some(w) => (nll * w).f_sum(Kind::Float)?,
            None => nll.f_sum(Kind::Float)?,
        })
    }
}

/// A network with latents of its own, learned with it in place of a frozen encoder's.
pub trait LearnedLatents: Network {
    /// The latents of `ids` `[B, S]`, each of mean square 1: `[B, S, C]`, fp32, with gradients to the network's parameters.
    ///
    /// # Errors
    /// If the network was made without them, an id is none of its vocabulary, or libtorch fails.
    fn latents(&self, ids: &Tensor) -> Result<Tensor>;
}

/// What a [`Counting`] network has been asked to do.
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
    /// Rows over all passes over contexts that are to be remembered ([`Network::remember`]); they are among no others.
    pub context_rows: u64,
}

/// Wraps a network and counts its passes: the honest unit of sampling and training cost.
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

    fn clean(&self, hidden: &Tensor) -> Result<Tensor> {
        self.inner.clean(hidden)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.add_logits(hidden);
        self.inner.logits(hidden)
    }

    fn cross_entropy_sum(&self, hidden: &Tensor, ids: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
        self.add_logits(hidden);
        self.inner.cross_entropy_sum(hidden, ids, weights)
    }
}
