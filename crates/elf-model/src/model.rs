//! The whole network.

use std::cell::RefCell;
use std::sync::Arc;

use elf_core::device::upload;
use elf_core::layers::{Linear, RmsNorm};
use elf_core::{
    Context, CrossEntropy, Dropout, Error, Fans, Init, LearnedLatents, Memory, Network, NetworkShape, ParamBuilder,
    ParamSet, PrecisionPolicy, Result, TokenClasses, TrunkInput, Weight,
};
use tch::{Device, Kind, Tensor};

use crate::ElfConfig;
use crate::block::{Block, Pass, PassDropout};
use crate::context_table::{ContextTable, NO_WORD};
use crate::embed::{LatentProjection, ScalarEmbedder};
use crate::join::join;
use crate::rope::Rope;
use crate::seen::{additive, padding_mask, seen};
use crate::vocab_head::VocabHead;
use crate::word_guide::WordGuide;

/// The name of the parameter of learned latents; the released model has none.
pub(crate) const LATENT_TABLE: &str = "latent_table";

/// The positions of a sequence after its prefix: those of clean tokens, 0 to `context`, then `text` others from `first` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    prefix: i64,
    context: i64,
    first: i64,
    text: i64,
}

/// The ELF transformer. Time, guidance scale and mode are prefix tokens before the text; attention is full.
#[derive(Debug)]
pub struct Elf {
    config: ElfConfig,
    policy: PrecisionPolicy,
    params: ParamSet,
    latents: LatentProjection,
    time: ScalarEmbedder,
    time_tokens: Weight,
    guidance: Option<(ScalarEmbedder, Weight)>,
    mode_tokens: Weight,
    blocks: Vec<Block>,
    final_norm: RmsNorm,
    final_linear: Linear,
    vocab_head: VocabHead,
    /// Learned latents, `[1, V, C]`.
    latent_table: Option<Weight>,
    /// The table of given tokens: those of a condition, and clean ones before a block; `[V, H]`.
    context_table: Option<ContextTable>,
    word_guide: Option<WordGuide>,
    /// Whether blocks are computed again in the backward pass instead of keeping their intermediate results.
    recompute: bool,
    /// Rotary angles of the last layout.
    rope: RefCell<Option<(Layout, Rope)>>,
}

impl Elf {
    /// A network with parameters initialised as in the released code, drawn from `seed`.
    ///
    /// # Errors
    /// If no network is possible with the configuration, or libtorch fails (out of memory).
    pub fn new(config: ElfConfig, policy: PrecisionPolicy, seed: u64, device: Device) -> Result<Self> {
        Self::build(config, policy, ParamBuilder::seeded(seed, device))
    }

    /// A network whose parameters have no defined values yet; the caller loads all of them before use.
    ///
    /// # Errors
    /// As [`Elf::new`].
    pub fn unset(config: ElfConfig, policy: PrecisionPolicy, device: Device) -> Result<Self> {
        Self::build(config, policy, ParamBuilder::unset(device))
    }

    fn build(config: ElfConfig, policy: PrecisionPolicy, mut builder: ParamBuilder) -> Result<Self> {
        config.check()?;
        policy.settle(builder.device())?;
        let b = &mut builder;
        let (c, h) = (config.text_encoder_dim, config.hidden_size);
        let tokens = |b: &mut ParamBuilder, name: &str, n: i64| b.tensor(name, &[1, n, h], Init::Normal(0.02));
        let latents = LatentProjection::new(b, c, config.bottleneck_dim, h)?;
        let time = ScalarEmbedder::new(b, "t_embedder", h)?;
        let time_tokens = tokens(b, "t_emb_tokens", config.num_time_tokens)?;
        let guidance = match config.num_self_cond_cfg_tokens {
            0 => None,
            n => Some((ScalarEmbedder::new(b, "self_cond_cfg_embedder", h)?, tokens(b, "self_cond_cfg_tokens", n)?)),
        };
        let mode_tokens = tokens(b, "mode_tokens", config.num_model_mode_tokens)?;
        let blocks = crate::block::make(b, &config.blocks(), config.depth, policy)?;
        let final_norm = RmsNorm::new(b, "final_layer.norm_final", h, 1e-6)?;
        let final_linear =
            Linear::new(b, "final_layer.linear", Fans { fan_in: h, fan_out: c }, Init::Constant(0.0), true)?;
        let vocab_head = VocabHead::new(b, &config)?;
        // Of one dimension more than a matrix, so that Adam updates it and not Muon: most rows have no gradient in a step.
        let latent_table = match config.learned_latents {
            true => Some(b.tensor(LATENT_TABLE, &[1, config.vocab_size, c], Init::Normal(1.0))?),
            false => None,
        };
        let context_table = match config.context_table {
            true => Some(ContextTable::new(b, config.vocab_size, h)?),
            false => None,
        };
        let word_guide = match config.word_guide_dims {
            0 => None,
            _ => Some(WordGuide::new(b, &config, policy)?),
        };
        let params = builder.finish();
        let rope = RefCell::new(None);
        Ok(Self {
            config,
            policy,
            params,
            latents,
            time,
            time_tokens,
            guidance,
            mode_tokens,
            blocks,
            final_norm,
            final_linear,
            vocab_head,
            latent_table,
            context_table,
            word_guide,
            recompute: false,
            rope,
        })
    }

    /// The network's sizes.
    pub fn config(&self) -> &ElfConfig {
        &self.config
    }

    /// The precision of each part.
    pub fn policy(&self) -> PrecisionPolicy {
        self.policy
    }

    /// Switches gradient checkpointing on or off: whether blocks keep only their input and are computed again in the backward pass. The
    /// result is the same; a training step takes about a third more arithmetic in the blocks, and a fraction of the memory.
    pub fn set_recompute(&mut self, recompute: bool) {
        self.recompute = recompute;
    }

    /// The guide that knows words and no context, if the network has one.
    pub fn word_guide(&self) -> Option<&WordGuide> {
        self.word_guide.as_ref()
    }

    /// Makes the word guide of these classes; `noise_scale` is the standard deviation of the noise at t = 0. The guide of a network that
    /// is loaded comes with its parameters.
    ///
    /// # Errors
    /// If the network has no word guide (`word_guide_dims` is 0), a shape does not fit, or libtorch fails.
    pub fn start_word_guide(&self, classes: &TokenClasses, noise_scale: f64) -> Result<()> {
        match &self.word_guide {
            Some(guide) => guide.start(classes, noise_scale)?,
            None => return Err(Error::Config("this network has no word guide: word_guide_dims is 0".to_owned())),
        }
        self.params.changed();
        Ok(())
    }

    fn rope(&self, layout: Layout, device: Device) -> Result<Rope> {
        let mut kept = self.rope.borrow_mut();
        match &*kept {
            Some((of, rope)) if *of == layout => Ok(rope.shallow_clone()),
            _ => {
                let rope = tch::no_grad(|| -> Result<Rope> {
                    let wide = (Kind::Double, Device::Cpu);
                    let context = Tensor::f_arange(layout.context, wide)?;
                    let text = Tensor::f_arange_start(layout.first, layout.first + layout.text, wide)?;
                    let positions = Tensor::f_cat(&[context, text], 0)?;
                    Rope::at(layout.prefix, &positions, self.config.head_dim(), device)
                })?;
                *kept = Some((layout, rope.shallow_clone()));
                Ok(rope)
            }
        }
    }

    /// Angles of rows that begin with a condition, whose positions are those of `words` `[B, S]` that are not -1: what follows a condition counts
    /// its positions from 0 again, so that a source token and the target token of the same place are always equally far apart.
    pub(crate) fn rope_behind(&self, words: &Tensor) -> Result<Rope> {
        let ((b, s), device) = (words.size2()?, words.device());
        let free = words.f_eq(NO_WORD)?.f_to_kind(Kind::Int64)?;
        let given = s - free.f_sum_dim_intlist([1i64].as_slice(), true, Kind::Int64)?;
        let positions = Tensor::f_arange(s, (Kind::Int64, device))? - given * free;
        // A token of the prefix is not rotated, as one at position 0 is not.
        let prefix = Tensor::f_zeros([b, self.config.prefix_len()], (Kind::Int64, device))?;
        let places = Tensor::f_cat(&[prefix, positions], 1)?.f_flatten(0, 1)?;
        self.rope(Layout { prefix: 0, context: 0, first: 0, text: s }, device)?.picked(&places)
    }

    /// Dropout of a pass over the prefix, `context` clean tokens and `text` noisy ones from `first` on. Masks are drawn for whole rows,
    /// which have all positions twice if there are clean tokens; a pass uses the part that it computes.
    fn dropout_of(&self, dropout: &Dropout, context: i64, first: i64, text: i64) -> Arc<PassDropout> {
        let (p, length) = (self.config.prefix_len(), dropout.length());
        let (of, held) = match context {
            0 => (p + length, vec![[0, p], [p + first, p + first + text]]),
            _ => (p + 2 * length, vec![[0, p + context], [p + length + first, p + length + first + text]]),
        };
        Arc::new(PassDropout { dropout: dropout.clone(), of, held })
    }

    /// The prefix, `[B, P, H]`, fp32.
    fn prefix(&self, input: &TrunkInput, batch: i64) -> Result<Tensor> {
        let device = input.z.device();
        let mut parts = vec![self.time_tokens.master() + self.time.forward(input.t)];
        if let Some((embedder, tokens)) = &self.guidance {
            let one = Tensor::f_ones([batch], (Kind::Float, device))?;
            parts.push(tokens.master() + embedder.forward(input.guidance.unwrap_or(&one)));
        }
        let gate = match input.decode {
            Some(gate) => gate.to_kind(Kind::Float).f_view([batch, 1, 1])?,
            None => Tensor::f_zeros([batch, 1, 1], (Kind::Float, device))?,
        };
        parts.push(self.mode_tokens.master() * gate);
        Ok(Tensor::f_cat(&parts, 1)?)
    }

    fn check_input(&self, input: &TrunkInput) -> Result<(i64, i64)> {
        let c = self.config.text_encoder_dim;
        let wrong = |what: &str, found: &Tensor, expected: String| Error::Shape {
            what: what.to_owned(),
            found: found.size(),
            expected,
        };
        let (b, s) = match input.z.size()[..] {
            [b, s, channels] if channels == c => (b, s),
            _ => return Err(wrong("z", input.z, format!("[B, S, {c}]"))),
        };
        if let Some(x) = input.x_prev.filter(|x| x.size() != [b, s, c]) {
            return Err(wrong("x_prev", x, format!("[{b}, {s}, {c}]")));
        }
        if let Some(words) = input.words.filter(|words| words.size() != [b, s]) {
            return Err(wrong("words", words, format!("[{b}, {s}]")));
        }
        for (what, rows) in [("t", Some(input.t)), ("guidance", input.guidance), ("decode", input.decode)] {
            if let Some(rows) = rows.filter(|r| r.size() != [b]) {
                return Err(wrong(what, rows, format!("[{b}]")));
            }
        }
        if let Some(Context { latents, ids, blocks, noisy_blocks, memory, .. }) = input.context {
            let k = match latents.size()[..] {
                [rows, k, channels] if (rows, channels) == (b, c) => k,
                _ => return Err(wrong("context latents", latents, format!("[{b}, K, {c}]"))),
            };
            for (what, found, n) in
                [("context ids", ids, k), ("context blocks", blocks, k), ("noisy blocks", noisy_blocks, s)]
            {
                if found.size() != [b, n] {
                    return Err(wrong(what, found, format!("[{b}, {n}]")));
                }
            }
            let behind = self.config.prefix_len() + s;
            if let Some(memory) = memory.filter(|memory| memory.mask.size() != [b, 1, behind, k + behind]) {
                return Err(wrong("the context's memory", &memory.mask, format!("[{b}, 1, {behind}, {}]", k + behind)));
            }
        }
        Ok((b, s))
    }

    /// Lifted latents `[B, N, H]`, whose first K tokens are clean and have these `ids` `[B, K]`, with what the network's table adds to them.
    fn on_clean(&self, lifted: Tensor, ids: &Tensor) -> Result<Tensor> {
        match &self.context_table {
            Some(table) => table.on_clean(&lifted, ids),
            None => Ok(lifted),
        }
    }

    /// Does the same as [`Network::trunk`] with an attention mask over text positions, `[B, S]`, 1 where a position is seen. The released
    /// code has such a mask, but its models are trained and sampled without.
    ///
    /// # Errors
    /// As [`Network::trunk`], or if the input has a context too.
    pub fn trunk_with_mask(&self, input: &TrunkInput, mask: &Tensor) -> Result<Tensor> {
        let (b, s) = self.check_input(input)?;
        if mask.size() != [b, s] {
            return Err(Error::Shape { what: "mask".into(), found: mask.size(), expected: format!("[{b}, {s}]") });
        }
        match input.context {
            Some(_) => Err(Error::Config("a mask and a context cannot be used together".to_owned())),
            None => self.pass(input, Some(mask)),
        }
    }

    /// Latents and their previous estimate lifted to the width of the blocks, behind the clean tokens of a context, with what the network's
    /// table adds to those or to the words of a condition: `[B, K + S, H]`.
    fn lifted(
        &self,
        z: &Tensor,
        x_prev: Option<&Tensor>,
        context: Option<&Context>,
        by_words: Option<(&Tensor, &ContextTable)>,
    ) -> Result<Tensor> {
        let maps = self.policy.latent_maps.kind();
        let Some(Context { latents, ids, .. }) = context else {
            let lifted = self.latents.forward(z, x_prev, maps);
            return by_words.map_or(Ok(lifted.shallow_clone()), |(words, table)| table.on_condition(&lifted, words));
        };
        // The previous estimate of clean tokens is the tokens themselves, as on condition positions.
        let with_context = |text: &Tensor| Tensor::f_cat(&[*latents, text], 1);
        let x_prev = x_prev.map(with_context).transpose()?;
        self.on_clean(self.latents.forward(&with_context(z)?, x_prev.as_ref(), maps), ids)
    }

    /// A pass of the trunk; `mask` is over text positions, `[B, S]`.
    fn pass(&self, input: &TrunkInput, mask: Option<&Tensor>) -> Result<Tensor> {
        let (b, s) = self.check_input(input)?;
        let kind = self.policy.blocks.kind();
        let memory = input.context.and_then(|context| context.memory);
        let firsts = memory.map_or(&[][..], |memory| &memory.first);
        let first = firsts.first().copied().or(input.context.map(|context| context.first)).unwrap_or(0);
        // Clean tokens that this pass computes: none if their keys and values are cached.
        let context = input.context.filter(|_| memory.is_none());
        let k = context.map_or(0, |context| context.latents.size()[1]);
        let (prefix, device) = (self.config.prefix_len(), input.z.device());
        let mask = match (memory, &context) {
            (Some(memory), _) => Some(memory.mask.shallow_clone()),
            (None, Some(context)) => Some(additive(&seen(prefix, context)?, kind)?.f_unsqueeze(1)?),
            (None, None) => mask.map(|mask| padding_mask(prefix, mask, kind)).transpose()?,
        };
        let by_words = input.words.filter(|_| input.context.is_none()).zip(self.context_table.as_ref());
        let words = by_words.map(|(words, _)| words);
        let rope = match words {
            Some(words) => self.rope_behind(words)?,
            _ if firsts.iter().all(|&other| other == first) => {
                self.rope(Layout { prefix, context: k, first, text: s }, device)?
            }
            _ => Rope::of_rows(prefix, firsts, s, self.config.head_dim(), device)?,
        };
        let pass = Pass {
            rope,
            mask,
            dropout: input.dropout.map(|dropout| self.dropout_of(dropout, k, first, s)),
            recompute: self.recompute,
        };
        let text = self.lifted(input.z, input.x_prev, context.as_ref(), by_words)?.to_kind(kind);
        let x = Tensor::f_cat(&[self.prefix(input, b)?.to_kind(kind), text], 1)?;
        let known = memory.map(|memory| &memory.layers[..]);
        let x = crate::block::all(&self.blocks, &self.params, x, &pass, known)?;
        Ok(x.f_narrow(1, self.config.prefix_len() + k, s)?)
    }
}

impl Network for Elf {
    fn shape(&self) -> NetworkShape {
        self.config.network_shape()
    }

    fn params(&self) -> &ParamSet {
        &self.params
    }

    fn rows_stand_alone(&self) -> bool {
        self.params.iter().all(|(_, p)| p.tensor.device() == Device::Cpu) && self.policy.rows_stand_alone()
    }

    fn guide(&self) -> Option<&dyn Network> {
        self.word_guide.as_ref().map(|guide| guide as &dyn Network)
    }

    fn seen_directions(&self, self_conditioned: bool) -> Result<Option<Tensor>> {
        self.latents.seen_directions(self_conditioned).map(Some)
    }

    fn trunk(&self, input: &TrunkInput) -> Result<Tensor> {
        self.pass(input, None)
    }

    fn remember(&self, context: &Context, self_conditioned: bool) -> Result<Option<Memory>> {
        let (kind, device) = (self.policy.blocks.kind(), context.latents.device());
        let ((b, k, _), s) = (context.latents.size3()?, context.noisy_blocks.size2()?.1);
        let p = self.config.prefix_len();
        let earlier = context.memory.map_or(&[][..], |memory| &memory.layers);
        let known = earlier.first().map_or(0, |[keys, _]| keys.size()[1]);
        let new = |x: &Tensor| x.f_narrow(1, known, k - known);
        tch::no_grad(|| {
            let seen = seen(self.config.prefix_len(), context)?;
            // In a pass that uses this memory, the keys of the context come before those of the prefix.
            let range = |from: i64, until: i64| Tensor::f_arange_start(from, until, (Kind::Int64, device));
            let (clean, prefix, text) = (range(p, p + k)?, range(0, p)?, range(p + k, p + k + s)?);
            let queries = Tensor::f_cat(&[&prefix, &text], 0)?;
            let keys = Tensor::f_cat(&[&clean, &prefix, &text], 0)?;
            let behind = additive(&seen.f_index_select(1, &queries)?.f_index_select(2, &keys)?, kind)?;
            let own = additive(&seen.f_narrow(1, p + known, k - known)?.f_narrow(2, p, k)?, kind)?;

            let rope = self.rope(Layout { prefix: 0, context: 0, first: known, text: k - known }, device)?;
            let pass = Pass { rope, mask: Some(own.f_unsqueeze(1)?), dropout: None, recompute: false };
            let latents = new(context.latents)?;
            let lifted =
                self.latents.forward(&latents, self_conditioned.then_some(&latents), self.policy.latent_maps.kind());
            let mut x = self.on_clean(lifted, &new(context.ids)?)?.to_kind(kind);
            let mut layers = Vec::with_capacity(self.blocks.len());
            for (i, block) in self.blocks.iter().enumerate() {
                let earlier = earlier.get(i);
                let (next, [keys, values]) = block.forward_with(&x, &pass, earlier)?;
                x = next;
                layers.push(match earlier {
                    Some([k, v]) => [Tensor::f_cat(&[k, &keys], 1)?, Tensor::f_cat(&[v, &values], 1)?],
                    None => [keys, values],
                });
            }
            Ok(Some(Memory { layers, mask: behind.f_unsqueeze(1)?, first: vec![context.first; b as usize] }))
        })
    }

    fn join(&self, memories: &[&Memory]) -> Result<Option<Memory>> {
        Ok(Some(join(memories)?))
    }

    fn clean(&self, hidden: &Tensor) -> Result<Tensor> {
        let normalised = self.final_norm.forward_to(hidden, self.policy.latent_maps.kind());
        Ok(self.final_linear.forward(&normalised).f_to_kind(Kind::Float)?)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.vocab_head.logits(hidden, self.policy.vocab_head)
    }

    fn cross_entropy(&self, hidden: &Tensor, ids: &Tensor, weights: Option<&Tensor>) -> Result<CrossEntropy> {
        self.vocab_head.cross_entropy(hidden, ids, weights, self.policy.vocab_head)
    }
}

impl LearnedLatents for Elf {
    fn latents(&self, ids: &Tensor) -> Result<Tensor> {
        let Some(table) = &self.latent_table else {
            return Err(Error::Config("this network has no latents of its own: learned_latents is false".to_owned()));
        };
        let (b, s) = ids.size2()?;
        let v = self.config.vocab_size;
        if ids.numel() > 0 && (i64::try_from(ids.f_min()?)? < 0 || i64::try_from(ids.f_max()?)? >= v) {
            return Err(Error::Config(format!("a token is not among the {v} entries of the vocabulary")));
        }
        let table = table.master().f_squeeze_dim(0)?;
        let ids = upload(&ids.f_reshape([-1])?, table.device())?;
        let rows = table.f_index_select(0, &ids)?.f_view([b, s, -1])?;
        let mean_square = rows.square().f_mean_dim(-1, true, Kind::Float)?;
        Ok(rows * (mean_square + 1e-6).f_rsqrt()?)
    }
}
