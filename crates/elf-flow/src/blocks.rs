//! Texts that are generated in blocks: a flow from noise to the next few tokens, given all tokens before them.
//!
//! In the paper all tokens of a text go from noise to words together, and each word is chosen without knowing the others. With blocks
//! of a few tokens the words of a block are chosen given all tokens before it, as in autoregressive models, and the tokens of a block
//! together, as in the paper (after Arriola et al. 2025, arXiv 2503.09573, who do it for masked diffusion; not in ELF's paper). In
//! training the network gets every row twice, noisy and clean; the clean tokens before a block are its prefix, so that all blocks are
//! learned in one pass.
//!
//! Block k has the positions from k times the block size on; a row's condition belongs to no block, and all blocks see it.

use std::cell::OnceCell;
use std::ops::Range;

use elf_core::device::upload;
use elf_core::{Context, Memory, Network, Noise, Result as CoreResult, TrunkInput};
use tch::{Device, Kind, Tensor};

use crate::condition::NO_WORD;
use crate::{Condition, LatentBatch, Result};

/// The block number of a condition's positions.
const GIVEN: i64 = -1;

/// Turns the words of finished blocks into latents, from which the next block is generated. Implemented by users of this crate, which
/// has no text encoder.
pub trait Reencode {
    /// Clean latents `[B, N, C]`, normalised as in training, of the first N positions of `ids` `[B, S]`, i64, on the CPU, of which
    /// `known` have been decoded or belong to a condition. N is at least `known`; latents at further positions are not used. The
    /// ids of a condition are not in `ids`: the implementation must know them. Called after each block; known ids stay.
    ///
    /// # Errors
    /// If the ids cannot be encoded.
    fn latents(&self, ids: &Tensor, known: usize) -> Result<Tensor>;

    /// Whether known latents stay as they are when more positions become known. Then what a network has computed of them is kept.
    fn are_final(&self) -> bool {
        false
    }
}

/// The block number of each position, `[B, S]`, i64, on `device`; `given` `[B, S]`, bool, is true on condition positions.
fn block_numbers([b, s]: [i64; 2], size: i64, given: Option<&Tensor>, device: Device) -> Result<Tensor> {
    let positions = Tensor::f_arange(s, (Kind::Int64, device))?.f_unsqueeze(0)?;
    let blocks = positions.f_div_scalar_mode(size.max(1), "floor")?.f_expand([b, s], false)?;
    Ok(match given {
        Some(given) => blocks.f_masked_fill(given, GIVEN)?,
        None => blocks.f_contiguous()?,
    })
}

/// The rows of a training batch as their own prefix (teacher forcing): each block is learned given the true blocks before it, not
/// generated ones.
pub(crate) struct TeacherForcing {
    /// The prefix of all rows, up to the last noisy token.
    prefix: FinishedPrefix,
    /// Positions that have a noisy token: whole blocks, from the first to the last in which any row has loss. Positions before them
    /// belong to a condition in all rows; positions after them are seen by no position with loss.
    noisy: Range<i64>,
}

impl TeacherForcing {
    /// From the rows of a batch and their clean latents `x0` `[B, S, C]`; `rows` is the order of `x0`.
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
        let blocks = block_numbers([b, s], size, given.as_ref(), device)?;
        let counts: Vec<bool> = batch.loss_mask.f_ne(0.0)?.f_any_dim(0, false)?.try_into()?;
        let first = counts.iter().position(|&counts| counts).map_or(0, |at| at as i64 / size * size);
        let last = counts.iter().rposition(|&counts| counts).map_or(s, |at| (at as i64 / size + 1) * size).min(s);
        let prefix = FinishedPrefix {
            latents: x0.f_narrow(1, 0, last)?,
            ids: upload(&ids, device)?.f_narrow(1, 0, last)?,
            noisy_blocks: blocks.f_narrow(1, first, last - first)?,
            blocks: blocks.f_narrow(1, 0, last)?,
            first,
        };
        Ok(Self { prefix, noisy: first..last })
    }

    /// The part of `x` `[B, S, ..]` at positions that have a noisy token.
    pub(crate) fn learned(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_narrow(1, self.noisy.start, self.noisy.end - self.noisy.start)?)
    }

    /// The prefix of the first `rows` rows.
    pub(crate) fn of(&self, rows: i64) -> Result<FinishedPrefix> {
        let FinishedPrefix { latents, ids, blocks, noisy_blocks, first } = &self.prefix;
        let narrow = |x: &Tensor| x.f_narrow(0, 0, rows);
        Ok(FinishedPrefix {
            latents: narrow(latents)?,
            ids: narrow(ids)?,
            blocks: narrow(blocks)?,
            noisy_blocks: narrow(noisy_blocks)?,
            first: *first,
        })
    }
}

/// The finished prefix of each row, while its next block is generated.
#[derive(Debug)]
pub struct FinishedPrefix {
    /// Clean latents, `[B, K, C]`.
    latents: Tensor,
    /// Token ids, `[B, K]`.
    ids: Tensor,
    /// Block numbers, `[B, K]`.
    blocks: Tensor,
    /// Block numbers of the noisy tokens, `[B, width]`.
    noisy_blocks: Tensor,
    /// The position of the first noisy token.
    first: i64,
}

/// The block number of a position that no other one sees.
const UNSEEN: i64 = i64::MAX;

impl FinishedPrefix {
    /// A prefix of K positions with clean latents `[B, K, C]` and token ids `[B, K]`, i64, on one device, which is followed by
    /// `width` noisy tokens. `given` and `lengths`, one number per row, are the tokens of the row's condition, and of the row
    /// itself with its condition; what comes after them is filling, which no token sees. `size` is the tokens of a block.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn new(latents: &Tensor, ids: &Tensor, [given, lengths]: [&[usize]; 2], size: i64, width: i64) -> Result<Self> {
        let (b, k, _) = latents.size3()?;
        let device = latents.device();
        let column = |counts: &[usize]| -> Result<Tensor> {
            let counts: Vec<i64> = counts.iter().map(|&n| n as i64).collect();
            Ok(upload(&Tensor::f_from_slice(&counts)?, device)?.f_unsqueeze(-1)?)
        };
        let positions = Tensor::f_arange(k + width, (Kind::Int64, device))?.f_unsqueeze(0)?;
        let is_given = positions.f_lt_tensor(&column(given)?)?;
        let all = block_numbers([b, k + width], size, Some(&is_given), device)?;
        let filling = positions.f_narrow(1, 0, k)?.f_ge_tensor(&column(lengths)?)?;
        Ok(Self {
            latents: latents.shallow_clone(),
            ids: ids.shallow_clone(),
            blocks: all.f_narrow(1, 0, k)?.f_masked_fill(&filling, UNSEEN)?,
            noisy_blocks: all.f_narrow(1, k, width)?,
            first: k,
        })
    }

    /// The prefix as input of a network.
    pub fn context(&self) -> Context<'_> {
        let Self { latents, ids, blocks, noisy_blocks, first } = self;
        Context { latents, ids, blocks, noisy_blocks, first: *first, memory: None }
    }

    /// The same rows twice, the second time without their condition.
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

/// One network's keys and values of a prefix, and those of its rows with and without their condition.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    once: Option<Memory>,
    twice: Option<Memory>,
}

/// The prefix plus one network's cached keys and values, computed on first use and kept for all passes of the block.
pub struct PrefixContext<'a> {
    prefix: &'a FinishedPrefix,
    /// Those of its first tokens, computed for an earlier block.
    earlier: Remembered,
    memory: OnceCell<Option<Memory>>,
    /// The prefix with and without the condition, and its keys and values.
    twice: OnceCell<(FinishedPrefix, Option<Memory>)>,
}

impl<'a> PrefixContext<'a> {
    /// Wraps a prefix, for passes of one network.
    pub fn of(prefix: &'a FinishedPrefix) -> Self {
        Self::new(prefix, Remembered::default())
    }

    pub(crate) fn new(prefix: &'a FinishedPrefix, earlier: Remembered) -> Self {
        Self { prefix, earlier, memory: OnceCell::new(), twice: OnceCell::new() }
    }

    /// What was computed.
    pub(crate) fn into_remembered(self) -> Remembered {
        let twice = self.twice.into_inner().and_then(|(_, memory)| memory);
        Remembered { once: self.memory.into_inner().flatten(), twice }
    }

    /// Passes of B rows made so far over the prefix; one of 2B rows counts as two.
    pub(crate) fn passes(&self) -> u64 {
        let once = matches!(self.memory.get(), Some(Some(_)));
        let twice = matches!(self.twice.get(), Some((_, Some(_))));
        u64::from(once) + 2 * u64::from(twice)
    }

    /// The context of a pass of B rows, or of 2B rows of which the second half has no condition.
    fn context(&self, net: &dyn Network, input: &TrunkInput) -> Result<Context<'_>> {
        let remember = |prefix: &FinishedPrefix, earlier: &Option<Memory>| match prefix.latents.size3()?.1 {
            0 => Ok(None),
            _ => net.remember(&Context { memory: earlier.as_ref(), ..prefix.context() }, input.x_prev.is_some()),
        };
        let (prefix, memory) = if input.z.size3()?.0 == self.prefix.latents.size3()?.0 {
            (self.prefix, get_or_make(&self.memory, || Ok(remember(self.prefix, &self.earlier.once)?))?)
        } else {
            let (prefix, memory) = get_or_make(&self.twice, || {
                let prefix = self.prefix.with_and_without_condition()?;
                let memory = remember(&prefix, &self.earlier.twice)?;
                Ok((prefix, memory))
            })?;
            (prefix, memory)
        };
        Ok(Context { memory: memory.as_ref(), ..prefix.context() })
    }
}

/// The value of a cell, made now if the cell is empty.
fn get_or_make<T>(cell: &OnceCell<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    match cell.get() {
        Some(value) => Ok(value),
        None => {
            let value = make()?;
            Ok(cell.get_or_init(|| value))
        }
    }
}

/// The words of a condition for a pass of `rows` rows; in blocks they are part of the prefix.
pub(crate) fn words(
    prefix: Option<&PrefixContext>,
    condition: Option<&Condition>,
    rows: i64,
) -> Result<Option<Tensor>> {
    condition.filter(|_| prefix.is_none()).map(|condition| condition.words(rows)).transpose()
}

/// A pass through the trunk, given the finished prefix if there is one.
pub(crate) fn trunk(net: &dyn Network, prefix: Option<&PrefixContext>, input: TrunkInput) -> Result<Tensor> {
    let context = prefix.map(|prefix| prefix.context(net, &input)).transpose()?;
    Ok(net.trunk(&TrunkInput { context, ..input })?)
}

/// The finished blocks of a batch that is generated in blocks.
pub(crate) struct BlockBatch {
    size: i64,
    /// Block numbers, `[B, S]`.
    blocks: Tensor,
    /// Clean latents of the condition and of the finished blocks, `[B, S, C]`.
    clean: Tensor,
    /// Their token ids, `[B, S]`.
    ids: Tensor,
    /// Condition positions at the start of each row.
    given: Vec<usize>,
}

impl BlockBatch {
    /// A batch of the shape `[B, S, C]` that has its condition and no finished block.
    pub(crate) fn new(shape: [i64; 3], size: i64, condition: Option<&Condition>, device: Device) -> Result<Self> {
        let [b, s, _] = shape;
        let clean = Tensor::f_zeros(shape, (Kind::Float, device))?;
        let given = condition.map_or(vec![0; b as usize], |condition| condition.lengths().to_vec());
        let is_given = condition.map(Condition::given).transpose()?;
        let blocks = block_numbers([b, s], size, is_given.as_ref(), device)?;
        let ids = Tensor::f_full([b, s], NO_WORD, (Kind::Int64, device))?;
        let (clean, ids) = match condition {
            Some(condition) => (condition.pin(&clean)?, condition.pin_ids(&ids)?),
            None => (clean, ids),
        };
        Ok(Self { size, blocks, clean, ids, given })
    }

    /// First position and width of each block that is not within the condition of all rows.
    pub(crate) fn spans(&self, positions: i64) -> impl Iterator<Item = (i64, i64)> + use<> {
        let given = self.given.iter().min().map_or(0, |&n| n as i64);
        let size = self.size.max(1);
        (0..positions)
            .step_by(size as usize)
            .map(move |first| (first, size.min(positions - first)))
            .filter(move |(first, width)| first + width > given)
    }

    /// The prefix of the block at `first`. It includes the block's own positions where a condition reaches into them.
    pub(crate) fn prefix(&self, first: i64, width: i64) -> Result<FinishedPrefix> {
        let known = if self.given.iter().any(|&n| n as i64 > first) { first + width } else { first };
        Ok(FinishedPrefix {
            latents: self.clean.f_narrow(1, 0, known)?,
            ids: self.ids.f_narrow(1, 0, known)?,
            blocks: self.blocks.f_narrow(1, 0, known)?,
            noisy_blocks: self.blocks.f_narrow(1, first, width)?,
            first,
        })
    }

    /// Whether the prefix of the block at `first` is a part of the prefixes of later blocks, whose further tokens it does not see. In a
    /// batch with conditions that depends on the other rows: there it never counts, so that a row is computed as without them.
    pub(crate) fn is_lasting(&self, first: i64) -> bool {
        match &self.given[..] {
            [given] => *given as i64 <= first,
            given => given.iter().all(|&given| given == 0),
        }
    }

    /// True where a position of the block at `first` is generated rather than given, `[B, width]`, bool, on the CPU.
    pub(crate) fn generated(&self, first: i64, width: i64) -> Result<Tensor> {
        Ok(self.blocks.f_narrow(1, first, width)?.f_to_device(Device::Cpu)?.f_ne(GIVEN)?)
    }

    /// Takes over the first `known` positions, now all finished, of ids `[B, S]` and of their latents `[B, N, C]`.
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

/// Noise whose draws are named by the block: the draws of a block do not depend on how many blocks were generated before it.
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
