//! From latents to words, at the end of a run.

use elf_core::device::{at_a_time, upload};
use elf_core::{Network, TokenDraw, TrunkInput};
use tch::{Device, Kind, Tensor};

use crate::blocks::{self, PrefixContext};
use crate::{Condition, Lexicon, Result, TrainedFlow};

/// A chunk of logits takes 32 MiB at most on a CPU (unless one position takes more), where larger chunks are slower.
const LOGITS_PER_CHUNK: i64 = 1 << 23;

/// The positions of a chunk.
pub(crate) fn positions_per_chunk(net: &dyn Network) -> i64 {
    let device = net.params().iter().next().map_or(Device::Cpu, |(_, p)| p.tensor.device());
    (at_a_time(device, LOGITS_PER_CHUNK) / net.shape().vocab_size.max(1)).max(1)
}

/// Words decoded from latents.
#[derive(Debug)]
pub struct Reading {
    /// The token of each position, `[B, S]`, i64: the likeliest, or a drawn one.
    pub ids: Tensor,
    /// Its natural log-probability, `[B, S]`, fp32: how sure the network is of it.
    pub log_probs: Tensor,
}

/// A network in decode mode: the likeliest token at each position, or one drawn from the network's prediction.
pub struct Decoder<'a> {
    net: &'a dyn Network,
    trained: TrainedFlow,
    guidance: f64,
    positions_per_chunk: i64,
    prefix: Option<&'a PrefixContext<'a>>,
    lexicon: Option<&'a Lexicon>,
}

impl std::fmt::Debug for Decoder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Decoder")
            .field("trained", &self.trained)
            .field("guidance", &self.guidance)
            .finish_non_exhaustive()
    }
}

impl<'a> Decoder<'a> {
    /// Makes a decoder of a network. `guidance` is the self-conditioning guidance scale w, for networks with such an input.
    pub fn new(net: &'a dyn Network, trained: TrainedFlow, guidance: f64) -> Self {
        Self { net, trained, guidance, positions_per_chunk: positions_per_chunk(net), prefix: None, lexicon: None }
    }

    /// Turns at most `positions` positions into logits at a time.
    pub fn in_chunks_of(self, positions: i64) -> Self {
        Self { positions_per_chunk: positions.max(1), ..self }
    }

    /// Decodes the block after a finished prefix.
    pub fn with_prefix(self, prefix: Option<&'a PrefixContext<'a>>) -> Self {
        Self { prefix, ..self }
    }

    /// Reads texts that are sequences of a lexicon's words, in [`Decoder::read`] and [`Decoder::drawn`].
    pub fn with_lexicon(self, lexicon: Option<&'a Lexicon>) -> Self {
        Self { lexicon, ..self }
    }

    /// Token ids `[B, S]`, i64, on the latents' device, of latents `z` `[B, S, C]`, in one pass at t = 1 (at which all decode rows are
    /// trained, however noisy) without an earlier estimate. The condition is clean here, although training corrupts it in decode rows
    /// like everything else.
    ///
    /// The `[B, S, V]` logits never exist as a whole.
    ///
    /// # Errors
    /// If a shape does not fit or the network fails.
    pub fn ids(&self, z: &Tensor, condition: Option<&Condition>) -> Result<Tensor> {
        let ids = self.chunks(z, condition, |_, logits| Ok(logits.f_argmax(-1, false)?))?;
        joined(&ids, z, Kind::Int64)
    }

    /// Does the same as [`Decoder::ids`], and returns log-probabilities too.
    ///
    /// # Errors
    /// As [`Decoder::ids`].
    pub fn read(&self, z: &Tensor, condition: Option<&Condition>) -> Result<Reading> {
        self.choose(z, condition, None)
    }

    /// Does the same as [`Decoder::read`] with tokens drawn as `how` says, by `draws` `[B, S]` in [0, 1). Positions are drawn
    /// independently, given their latents.
    ///
    /// # Errors
    /// As [`Decoder::ids`].
    pub fn drawn(&self, z: &Tensor, condition: Option<&Condition>, how: &TokenDraw, draws: &Tensor) -> Result<Reading> {
        self.choose(z, condition, Some((how, &draws.f_reshape([-1])?)))
    }

    /// Natural log-probabilities `[B, S]`, fp32, of given token ids `[B, S]`, each by itself, read from latents `z` `[B, S, C]`.
    ///
    /// # Errors
    /// As [`Decoder::ids`].
    pub fn log_probs(&self, z: &Tensor, condition: Option<&Condition>, ids: &Tensor) -> Result<Tensor> {
        let ids = upload(&ids.f_reshape([-1])?, z.device())?;
        let given = |from, logits: &Tensor| Ok(ids.f_narrow(0, from, logits.size2()?.0)?);
        Ok(self.reading(z, condition, given)?.log_probs)
    }

    /// The likeliest tokens, or those drawn by draws `[B * S]`; as whole words where there is a lexicon.
    fn choose(
        &self,
        z: &Tensor,
        condition: Option<&Condition>,
        drawn: Option<(&TokenDraw, &Tensor)>,
    ) -> Result<Reading> {
        let (b, s, _) = z.size3()?;
        let skipped = match condition.filter(|_| self.lexicon.is_some()) {
            Some(condition) => condition.skipped()?,
            None => vec![false; (b * s) as usize],
        };
        self.reading(z, condition, |from, logits| {
            let positions = logits.size2()?.0;
            let draws = drawn.map(|(_, draws)| draws.f_narrow(0, from, positions)).transpose()?;
            let drawn = drawn.zip(draws.as_ref()).map(|((how, _), draws)| (how, draws));
            match (self.lexicon, drawn) {
                (Some(lexicon), _) => {
                    lexicon.tokens(logits, s as usize, &skipped[from as usize..(from + positions) as usize], drawn)
                }
                (None, Some((how, draws))) => Ok(how.tokens(logits, draws)?),
                (None, None) => Ok(logits.f_argmax(-1, false)?),
            }
        })
    }

    /// The tokens that `choose` picks from the fp32 logits of a chunk of positions, and their log-probabilities. Its first argument is
    /// the number of the chunk's first position.
    fn reading(
        &self,
        z: &Tensor,
        condition: Option<&Condition>,
        choose: impl Fn(i64, &Tensor) -> Result<Tensor>,
    ) -> Result<Reading> {
        let read = self.chunks(z, condition, |from, logits| {
            let logits = logits.f_to_kind(Kind::Float)?;
            let logits = match condition {
                Some(condition) => condition.allowed(&logits, from)?,
                None => logits,
            };
            let ids = choose(from, &logits)?;
            let chosen = logits.f_gather(1, &ids.f_unsqueeze(-1)?, false)?.f_squeeze_dim(1)?;
            Ok((ids, chosen - logits.f_logsumexp([-1], false)?))
        })?;
        let (ids, log_probs): (Vec<Tensor>, Vec<Tensor>) = read.into_iter().unzip();
        Ok(Reading { ids: joined(&ids, z, Kind::Int64)?, log_probs: joined(&log_probs, z, Kind::Float)? })
    }

    /// The results of `of` for each chunk of the `B * S` positions: called with the number of its first position and its logits,
    /// `[positions, V]`.
    fn chunks<T>(
        &self,
        z: &Tensor,
        condition: Option<&Condition>,
        of: impl Fn(i64, &Tensor) -> Result<T>,
    ) -> Result<Vec<T>> {
        let (b, s, _) = z.size3()?;
        let z = match condition {
            Some(condition) => condition.pin(z)?,
            None => z.shallow_clone(),
        };
        let ones = Tensor::f_ones([b], (Kind::Float, z.device()))?;
        let w = &ones * self.guidance;
        let x_prev = self.trained.self_conditioned.then(|| z.f_zeros_like()).transpose()?;
        let words = blocks::words(self.prefix, condition, b)?;
        let input = TrunkInput {
            x_prev: x_prev.as_ref(),
            guidance: Some(&w),
            decode: Some(&ones),
            words: words.as_ref(),
            ..TrunkInput::new(&z, &ones)
        };
        let hidden = blocks::trunk(self.net, self.prefix, input)?.f_flatten(0, 1)?;
        let positions = b * s;
        let at_a_time = match self.lexicon {
            // Whole rows.
            Some(_) => (self.positions_per_chunk / s.max(1)).max(1) * s.max(1),
            None => self.positions_per_chunk,
        };
        let read = (0..positions).step_by(at_a_time as usize).map(|from| {
            let chunk = hidden.f_narrow(0, from, at_a_time.min(positions - from))?;
            of(from, &self.net.logits(&chunk)?)
        });
        read.collect()
    }
}

/// Results for the chunks of the positions of `z` `[B, S, C]`, as one tensor `[B, S]`; without positions there are no chunks.
fn joined(chunks: &[Tensor], z: &Tensor, kind: Kind) -> Result<Tensor> {
    let (b, s, _) = z.size3()?;
    match chunks.is_empty() {
        true => Ok(Tensor::f_zeros([b, s], (kind, z.device()))?),
        false => Ok(Tensor::f_cat(chunks, 0)?.f_view([b, s])?),
    }
}
