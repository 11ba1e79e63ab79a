//! The order of rows in every epoch, and each rank's share of it.
//!
//! There is one global order per epoch. It depends on the seed, the epoch and the number of rows, not on the number of
//! ranks. An optimiser step takes the next `global_batch` rows of it; within each micro-batch, rank r takes the positions
//! r, r + world, r + 2 world and so on. A run may therefore continue with another number of ranks, and every step still
//! sees the same rows. The rows at an epoch's end that do not fill a global batch are dropped; every epoch is shuffled anew
//! and drops other rows.
//!
//! [`Order::grouped_by_length`] puts rows of similar or equal length into the same batch, for trainings that cut batches to
//! their longest row.

use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Settings of the global order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderConfig {
    /// Seed of the shuffle.
    pub seed: u64,
    /// Rows of the data set; fewer than 2^32.
    pub rows: usize,
    /// Rows of one optimiser step, summed over all ranks and accumulation steps.
    pub global_batch: usize,
}

/// A rank's share of the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// This rank, from 0.
    pub rank: usize,
    /// Number of ranks.
    pub world: usize,
    /// Rows that a rank processes at once. Each rank processes `global_batch / (world * micro_batch)` micro-batches per
    /// optimiser step.
    pub micro_batch: usize,
}

impl Share {
    /// The share of the only process.
    pub fn alone(micro_batch: usize) -> Self {
        Self { rank: 0, world: 1, micro_batch }
    }
}

/// A place in the global order: the next row. Checkpoints store it, and [`Order::next`] continues from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// The epoch, from 0.
    pub epoch: u64,
    /// Rows of this epoch's global order that were used, over all ranks.
    pub position: u64,
}

/// The global order of one epoch: row numbers, 4 bytes each.
pub type EpochOrder = Arc<[u32]>;

/// The rows of one rank, micro-batch by micro-batch.
#[derive(Clone, Debug)]
pub struct Order {
    config: OrderConfig,
    share: Share,
    // The permutation of the current epoch, 4 bytes per row (40 MB for ten million rows), kept so that it is computed once.
    current: Option<(u64, EpochOrder)>,
    grouping: Option<(Grouping, Arc<[u32]>)>,
}

/// The similarity of the lengths of a batch's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grouping {
    /// Similar: the rows of every 64 batches are sorted by length. The composition of batches is mostly random.
    Similar,
    /// Equal, except for one batch at each change of length: the rows of the whole epoch are sorted by length.
    Equal,
}

/// Number of global batches whose rows are sorted by length together: enough for rows of similar length in each batch, few
/// enough to leave the composition of batches mostly to chance.
const GROUPED_BATCHES: usize = 64;

impl Order {
    /// Checks that rows, batch sizes and ranks fit together.
    ///
    /// # Errors
    /// If there are too few or too many rows, or the global batch does not divide evenly.
    pub fn new(config: OrderConfig, share: Share) -> Result<Self> {
        let refuse = |message: String| Err(Error::Config(message));
        let OrderConfig { rows, global_batch, .. } = config;
        let Share { rank, world, micro_batch } = share;
        if global_batch == 0 || micro_batch == 0 || world == 0 {
            return refuse("batch sizes and the number of ranks must be at least 1".to_owned());
        }
        if rank >= world {
            return refuse(format!("rank {rank} does not exist among {world} ranks (they count from 0)"));
        }
        if u32::try_from(rows).is_err() {
            return refuse(format!(
                "{rows} rows are too many to shuffle (limit 4294967295): pack the data, or split it"
            ));
        }
        if rows < global_batch {
            return refuse(format!(
                "{rows} rows do not fill a global batch of {global_batch}: lower the batch size, or use more data"
            ));
        }
        if world.checked_mul(micro_batch).is_none_or(|at_once| global_batch % at_once != 0) {
            return refuse(format!(
                "a global batch of {global_batch} cannot be shared evenly by {world} ranks with micro-batches of {micro_batch}"
            ));
        }
        Ok(Self { config, share, current: None, grouping: None })
    }

    /// Puts rows of similar or equal length into the same global batch: parts of the shuffled order, or all of it, are sorted by
    /// length, and then the global batches are shuffled. Each epoch still takes the same rows, each once.
    ///
    /// # Errors
    /// If `lengths` does not have one length per row.
    pub fn grouped_by_length(self, grouping: Grouping, lengths: Arc<[u32]>) -> Result<Self> {
        if lengths.len() != self.config.rows {
            return Err(Error::Config(format!(
                "there are {} lengths for the {} rows of the data",
                lengths.len(),
                self.config.rows
            )));
        }
        Ok(Self { grouping: Some((grouping, lengths)), current: None, ..self })
    }

    /// The settings.
    pub fn config(&self) -> OrderConfig {
        self.config
    }

    /// The rank's share.
    pub fn share(&self) -> Share {
        self.share
    }

    /// Optimiser steps per epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        (self.config.rows / self.config.global_batch) as u64
    }

    /// Micro-batches of each rank per optimiser step.
    pub fn micro_batches_per_step(&self) -> usize {
        self.config.global_batch / self.rows_at_once()
    }

    /// The place before optimiser step `step` (from 0).
    pub fn cursor_at_step(&self, step: u64) -> Cursor {
        let steps = self.steps_per_epoch();
        Cursor { epoch: step / steps, position: step % steps * self.config.global_batch as u64 }
    }

    /// The global order of `epoch`: a permutation of all rows, the same on every rank. The last `rows % global_batch` are
    /// not used.
    pub fn epoch_order(&mut self, epoch: u64) -> EpochOrder {
        match &self.current {
            Some((of, order)) if *of == epoch => order.clone(),
            _ => {
                let OrderConfig { seed, rows, global_batch } = self.config;
                let mut order = permutation(seed, epoch, rows);
                if let Some((grouping, lengths)) = &self.grouping {
                    let at_once = match grouping {
                        Grouping::Similar => GROUPED_BATCHES.saturating_mul(global_batch),
                        Grouping::Equal => rows,
                    };
                    sort_by_length(&mut order[..rows / global_batch * global_batch], lengths, at_once);
                    shuffle_batches(&mut order, global_batch, &mut generator(seed, epoch, Purpose::GroupedBatches));
                }
                let order: EpochOrder = order.into();
                self.current = Some((epoch, order.clone()));
                order
            }
        }
    }

    /// This rank's next micro-batch: `(position in the global order, row)` of each of its rows, and the cursor after it.
    ///
    /// # Errors
    /// If no micro-batch begins at `at`.
    pub fn next(&mut self, at: Cursor) -> Result<(Vec<(u64, usize)>, Cursor)> {
        let used = self.steps_per_epoch() * self.config.global_batch as u64;
        let at_once = self.rows_at_once() as u64;
        let refuse = |reason: String| Err(Error::BadCursor { epoch: at.epoch, position: at.position, reason });
        if at.position >= used {
            return refuse(format!("an epoch has {used} positions: is it the cursor of another data set?"));
        }
        if !at.position.is_multiple_of(at_once) {
            return refuse(format!(
                "batches of {at_once} rows begin at its multiples: go on from the start of an optimiser step"
            ));
        }
        let order = self.epoch_order(at.epoch);
        let positions = (at.position + self.share.rank as u64..at.position + at_once).step_by(self.share.world);
        let rows = positions.map(|position| (position, order[position as usize] as usize)).collect();
        let position = at.position + at_once;
        let after = if position == used {
            Cursor { epoch: at.epoch + 1, position: 0 }
        } else {
            Cursor { epoch: at.epoch, position }
        };
        Ok((rows, after))
    }

    fn rows_at_once(&self) -> usize {
        self.share.world * self.share.micro_batch
    }
}

/// A Fisher-Yates shuffle with ChaCha8. Written out here rather than taken from a library: libraries change their shuffles
/// between versions, and a checkpoint must continue with the same order after an update.
fn permutation(seed: u64, epoch: u64, rows: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..rows as u32).collect();
    shuffle(&mut order, &mut generator(seed, epoch, Purpose::Rows));
    order
}

/// What is shuffled. Each purpose has its own stream of random numbers.
#[derive(Clone, Copy)]
enum Purpose {
    Rows = 0,
    GroupedBatches = 1,
}

fn generator(seed: u64, epoch: u64, purpose: Purpose) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8] = purpose as u8;
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(epoch);
    rng
}

fn shuffle<T>(items: &mut [T], rng: &mut ChaCha8Rng) {
    for i in (1..items.len()).rev() {
        // The high half of a 64-bit product maps a random number to 0..=i; the bias is below 2^-32.
        let j = (u128::from(rng.next_u64()) * (i as u128 + 1)) >> 64;
        items.swap(i, j as usize);
    }
}

/// Sorts every `at_once` rows of an order by length.
fn sort_by_length(order: &mut [u32], lengths: &[u32], at_once: usize) {
    for window in order.chunks_mut(at_once) {
        // A stable sort: rows of equal length stay in the order of the shuffle.
        window.sort_by_key(|&row| lengths[row as usize]);
    }
}

/// Shuffles whole global batches. Rows that do not fill one stay at the end.
fn shuffle_batches(order: &mut Vec<u32>, global_batch: usize, rng: &mut ChaCha8Rng) {
    let left = order.split_off(order.len() / global_batch * global_batch);
    let mut batches: Vec<&[u32]> = order.chunks(global_batch).collect();
    shuffle(&mut batches, rng);
    *order = batches.concat();
    order.extend(left);
}
