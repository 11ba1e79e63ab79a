//! Texts that are written block after block: a flow from noise to the next few tokens, given all tokens before them.
//!
//! In the paper all tokens of a text go from noise to words together, and each word is decided without knowing the others. With blocks of a
//! few tokens the words of a block are decided knowing all that stands before it, as in autoregressive models, and the tokens of a block
//! together, as in the paper (after Arriola et al. 2025, arXiv 2503.09573, who do it for masked diffusion; not in ELF's paper). In training every row is there twice: noisy, and clean as what stands before each
//! of its blocks, so that all blocks are learned from in one pass.
//!
//! Block k holds the positions from k times the block size on; a row's condition belongs to no block and is seen by all of them.

use std::cell::OnceCell;
use std::ops::Range;

use elf_core::device::upload;
use elf_core::{Context, Memory, Network, Noise, Result as CoreResult, TrunkInput};
use tch::{Device, Kind, Tensor};

use crate::{Condition, LatentBatch, Result};

/// The label of what is given.
const GIVEN: i64 = -1;

/// Stands for a word where there is none.
pub(crate) const NO_WORD: i64 = -1;

/// The latents of words that were read, which the blocks behind them are written from. What encodes text knows it; this crate does not.
pub trait Reencode {
    /// Clean latents `[B, S, C]`, normalised as in training, of rows of which the first `known` positions have been read or were given:
    /// `ids` `[B, S]`, i64, on the CPU. Latents at the other positions are not used; the ids of a condition are not in `ids`, the
    /// implementation knows them.
    ///
    /// # Errors
    /// If the ids cannot be encoded.
    fn latents(&self, ids: &Tensor, known: usize) -> Result<Tensor>;
}

/// The block of each position of `[B, S]`, i64, on `device`; `given` `[B, S]`, bool, says which positions are a condition's.
fn labels([b, s]: [i64; 2], size: i64, given: Option<&Tensor>, device: Device) -> Result<Tensor> {
    let positions = Tensor::f_arange(s, (Kind::Int64, device))?.f_unsqueeze(0)?;
    let blocks = positions.f_div_scalar_mode(size.max(1), "floor")?.f_expand([b, s], false)?;
    Ok(match given {
        Some(given) => blocks.f_masked_fill(given, GIVEN)?,
        None => blocks.f_contiguous()?,
    })
}

/// A training batch's rows as their own context: each block is learned behind the true ones before it, not behind those that were written.
pub(crate) struct TeacherForcing {
    /// Of all rows, what stands before the last noisy token.
    prefix: WrittenPrefix,
    /// The positions that are there as noisy tokens: whole blocks, from the first to the last in which any row has loss. What comes before is a condition
    /// in all rows, and what comes after is seen by none that counts.
    noisy: Range<i64>,
}

impl TeacherForcing {
    /// Of the rows' clean latents `x0` `[B, S, C]`, in the order `rows`.
    pub(crate) fn new(batch: &LatentBatch, size: i64, rows: &Tensor, x0: &Tensor) -> Result<Self> {
        let (b, s, _) = batch.sizes()?;
        let device = x0.device();
        let mut ids = batch.ids.f_index_select(0, rows)?;
        let given = match &batch.condition {
            Some(condition) => Some(condition.f_index_select(0, rows)?.f_eq(1.0)?),
            None => None,
        };
        if let (Some(given), true) = (&given, batch.dropped.contains(&true)) {
            let dropped = Tensor::f_from_slice(&batch.dropped)?.f_index_select(0, rows)?.f_unsqueeze(-1)?;
            ids = ids.f_masked_fill(&given.f_logical_and(&dropped)?, NO_WORD)?;
        }
        let given = given.map(|given| upload(&given, device)).transpose()?;
        let blocks = labels([b, s], size, given.as_ref(), device)?;
        let counts: Vec<bool> = batch.loss_mask.f_ne(0.0)?.f_any_dim(0, false)?.try_into()?;
        let first = counts.iter().position(|&counts| counts).map_or(0, |at| at as i64 / size * size);
        let last = counts.iter().rposition(|&counts| counts).map_or(s, |at| (at as i64 / size + 1) * size).min(s);
        let prefix = WrittenPrefix {
            latents: x0.f_narrow(1, 0, last)?,
            ids: upload(&ids, device)?.f_narrow(1, 0, last)?,
            noisy_blocks: blocks.f_narrow(1, first, last - first)?,
            blocks: blocks.f_narrow(1, 0, last)?,
            first,
        };
        Ok(Self { prefix, noisy: first..last })
    }

    /// Of `x` `[B, S, ..]` the positions that are there as noisy tokens.
    pub(crate) fn learned(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_narrow(1, self.noisy.start, self.noisy.end - self.noisy.start)?)
    }

    /// Of the first `rows` rows.
    pub(crate) fn of(&self, rows: i64) -> Result<WrittenPrefix> {
        let WrittenPrefix { latents, ids, blocks, noisy_blocks, first } = &self.prefix;
        let narrow = |x: &Tensor| x.f_narrow(0, 0, rows);
        Ok(WrittenPrefix {
            latents: narrow(latents)?,
            ids: narrow(ids)?,
            blocks: narrow(blocks)?,
            noisy_blocks: narrow(noisy_blocks)?,
            first: *first,
        })
    }
}

/// What stands when something is written: the clean tokens before it, rows beside one another.
#[derive(Debug)]
pub(crate) struct WrittenPrefix {
    /// `[B, K, C]`.
    latents: Tensor,
    /// `[B, K]`.
    ids: Tensor,
    /// `[B, K]`.
    blocks: Tensor,
    /// `[B, width]`.
    noisy_blocks: Tensor,
    first: i64,
}

impl WrittenPrefix {
    /// What a network is told of it.
    pub(crate) fn context(&self) -> Context<'_> {
        let Self { latents, ids, blocks, noisy_blocks, first } = self;
        Context { latents, ids, blocks, noisy_blocks, first: *first, memory: None }
    }

    /// The same rows twice; the second time without what is given.
    fn with_and_without_condition(&self) -> Result<Self> {
        let Self { latents, ids, blocks, noisy_blocks, first } = self;
        let given = blocks.f_eq(GIVEN)?;
        let without = latents.f_masked_fill(&given.f_unsqueeze(-1)?, 0.0)?;
        Ok(Self {
            latents: Tensor::f_cat(&[latents, &without], 0)?,
            ids: Tensor::f_cat(&[ids, &ids.f_masked_fill(&given, NO_WORD)?], 0)?,
            blocks: blocks.f_repeat([2, 1])?,
            noisy_blocks: noisy_blocks.f_repeat([2, 1])?,
            first: *first,
        })
    }
}

/// What stands, for the passes of one network. What it makes of that is worked out when it is first needed, and then kept for all passes of the block.
pub(crate) struct PrefixContext<'a> {
    prefix: &'a WrittenPrefix,
    memory: OnceCell<Option<Memory>>,
    /// The same with and without the condition.
    twice: OnceCell<(WrittenPrefix, Option<Memory>)>,
}

impl<'a> PrefixContext<'a> {
    pub(crate) fn new(prefix: &'a WrittenPrefix) -> Self {
        Self { prefix, memory: OnceCell::new(), twice: OnceCell::new() }
    }

    /// Passes of B rows over what stands that were made so far to remember it: of twice as many rows, two.
    pub(crate) fn passes(&self) -> u64 {
        let once = matches!(self.memory.get(), Some(Some(_)));
        let twice = matches!(self.twice.get(), Some((_, Some(_))));
        u64::from(once) + 2 * u64::from(twice)
    }

    /// What a pass is told: one of B rows, or of twice as many, the second half of which does without the condition.
    fn context(&self, net: &dyn Network, input: &TrunkInput) -> Result<Context<'_>> {
        let remember = |prefix: &WrittenPrefix| match prefix.latents.size3()?.1 {
            0 => Ok(None),
            _ => net.remember(&prefix.context(), input.x_prev.is_some()),
        };
        let (prefix, memory) = if input.z.size3()?.0 == self.prefix.latents.size3()?.0 {
            (self.prefix, kept(&self.memory, || Ok(remember(self.prefix)?))?)
        } else {
            let (prefix, memory) = kept(&self.twice, || {
                let prefix = self.prefix.with_and_without_condition()?;
                let memory = remember(&prefix)?;
                Ok((prefix, memory))
            })?;
            (prefix, memory)
        };
        Ok(Context { memory: memory.as_ref(), ..prefix.context() })
    }
}

/// What a cell holds, made now if it holds nothing yet.
fn kept<T>(cell: &OnceCell<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    match cell.get() {
        Some(value) => Ok(value),
        None => {
            let value = make()?;
            Ok(cell.get_or_init(|| value))
        }
    }
}

/// A pass through the trunk, behind what stands already if anything does.
pub(crate) fn trunk(net: &dyn Network, behind: Option<&PrefixContext>, input: TrunkInput) -> Result<Tensor> {
    let context = behind.map(|behind| behind.context(net, &input)).transpose()?;
    Ok(net.trunk(&TrunkInput { context, ..input })?)
}

/// A batch that is written block after block.
pub(crate) struct BlockBatch {
    size: i64,
    /// `[B, S]`.
    blocks: Tensor,
    /// What is given and what was written so far, `[B, S, C]`.
    clean: Tensor,
    /// The words of that, `[B, S]`.
    ids: Tensor,
    given: Vec<usize>,
}

impl BlockBatch {
    /// An empty batch of rows of the shape `[B, S, C]`, with what is given.
    pub(crate) fn new(shape: [i64; 3], size: i64, condition: Option<&Condition>, device: Device) -> Result<Self> {
        let [b, s, _] = shape;
        let clean = Tensor::f_zeros(shape, (Kind::Float, device))?;
        let given = condition.map_or(vec![0; b as usize], |condition| condition.lengths().to_vec());
        let is_given = condition.map(Condition::given).transpose()?;
        let blocks = labels([b, s], size, is_given.as_ref(), device)?;
        let ids = Tensor::f_full([b, s], NO_WORD, (Kind::Int64, device))?;
        let (clean, ids) = match condition {
            Some(condition) => (condition.pin(&clean)?, condition.pin_ids(&ids)?),
            None => (clean, ids),
        };
        Ok(Self { size, blocks, clean, ids, given })
    }

    /// First position and width of each block that is not given as a whole.
    pub(crate) fn spans(&self, positions: i64) -> impl Iterator<Item = (i64, i64)> + use<> {
        let given = self.given.iter().min().map_or(0, |&n| n as i64);
        let size = self.size.max(1);
        (0..positions)
            .step_by(size as usize)
            .map(move |first| (first, size.min(positions - first)))
            .filter(move |(first, width)| first + width > given)
    }

    /// What stands when the positions from `first` on are written. A condition may reach into them.
    pub(crate) fn prefix(&self, first: i64, width: i64) -> Result<WrittenPrefix> {
        let known = if self.given.iter().any(|&n| n as i64 > first) { first + width } else { first };
        Ok(WrittenPrefix {
            latents: self.clean.f_narrow(1, 0, known)?,
            ids: self.ids.f_narrow(1, 0, known)?,
            blocks: self.blocks.f_narrow(1, 0, known)?,
            noisy_blocks: self.blocks.f_narrow(1, first, width)?,
            first,
        })
    }

    /// Which of the positions from `first` on are no condition's, `[B, width]`, bool, on the CPU.
    pub(crate) fn written(&self, first: i64, width: i64) -> Result<Tensor> {
        Ok(self.blocks.f_narrow(1, first, width)?.f_to_device(Device::Cpu)?.f_ne(GIVEN)?)
    }

    /// Takes over the first `known` positions of ids `[B, S]` and of their latents `[B, S, C]`, all of which stand now.
    pub(crate) fn write(
        &mut self,
        ids: &Tensor,
        latents: &Tensor,
        known: i64,
        condition: Option<&Condition>,
    ) -> Result<()> {
        self.clean.f_narrow(1, 0, known)?.f_copy_(&latents.f_narrow(1, 0, known)?)?;
        self.ids.f_narrow(1, 0, known)?.f_copy_(&ids.f_narrow(1, 0, known)?)?;
        if let Some(condition) = condition {
            self.clean = condition.pin(&self.clean)?;
            self.ids = condition.pin_ids(&self.ids)?;
        }
        Ok(())
    }
}

/// Noise whose draws are a block's own: what one block draws does not hang on how many were written before it.
pub(crate) struct BlockNoise<'a> {
    pub(crate) inner: &'a mut dyn Noise,
    pub(crate) first: i64,
}

impl BlockNoise<'_> {
    fn name(&self, name: &str) -> String {
        format!("{name}@{}", self.first)
    }
}

impl Noise for BlockNoise<'_> {
    fn normal(&mut self, name: &str, shape: &[i64]) -> CoreResult<Tensor> {
        let name = self.name(name);
        self.inner.normal(&name, shape)
    }

    fn uniform(&mut self, name: &str, shape: &[i64]) -> CoreResult<Tensor> {
        let name = self.name(name);
        self.inner.uniform(&name, shape)
    }

    fn coins(&mut self, name: &str, rows: usize) -> CoreResult<Vec<f64>> {
        let name = self.name(name);
        self.inner.coins(&name, rows)
    }

    fn dropout(&mut self, rows: usize) -> CoreResult<Option<Vec<f64>>> {
        self.inner.dropout(rows)
    }
}
