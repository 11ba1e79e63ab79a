//! What a batch is sampled from, and what comes out.

use elf_core::Network;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::{Condition, Reencode, TrainedFlow};

/// A weaker version of a network, which autoguidance leads away from. See [`AutoGuidance`](crate::AutoGuidance).
#[derive(Clone, Copy)]
pub struct Guide<'a> {
    /// The network, of the same latents.
    pub net: &'a dyn Network,
    /// How it was trained.
    pub trained: TrainedFlow,
    /// s; 1 is none, anything else doubles the cost of a step.
    pub scale: f64,
    /// The time in (0, 1] from which on it does not guide, and costs nothing.
    pub until: f64,
}

/// One batch of texts to sample.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// One seed per row.
    pub seeds: &'a [u64],
    /// S, positions of a row, condition included.
    pub length: i64,
    /// The condition, one row per seed.
    pub condition: Option<&'a Condition>,
    /// Encodes the words read so far, for networks that write in blocks.
    pub reencoding: Option<&'a dyn Reencode>,
    /// The token that ends a text. In a network that writes in blocks, no block is begun once all rows have it; positions of blocks that
    /// were not begun hold it.
    pub end: Option<i64>,
    /// Times in [0, 1] at which the text so far is shown ([`SamplingObserver::frame`](crate::SamplingObserver::frame)), in its likeliest words until the
    /// last; empty for none. Where texts are written in blocks, shares of the row's positions.
    pub trace: &'a [f64],
}

impl<'a> Request<'a> {
    /// Unconditional rows without a trace.
    pub fn new(seeds: &'a [u64], length: i64) -> Self {
        Self { seeds, length, condition: None, reencoding: None, end: None, trace: &[] }
    }
}

impl std::fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Request")
            .field("seeds", &self.seeds)
            .field("length", &self.length)
            .field("condition", &self.condition)
            .field("end", &self.end)
            .field("trace", &self.trace)
            .finish_non_exhaustive()
    }
}

/// What a batch cost. One pass is every row of the (filled-up) batch once through the network, or through a guide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Rows of the batch, those that fill it up included.
    pub rows: u64,
    /// Passes of the sampler and the last one, which decodes: N + 1 with a sampler of one evaluation per step, 2N + 1 with
    /// condition guidance or autoguidance, 4N + 1 with both; in blocks, all this for each block that is written, over the positions
    /// of that block. A batch of 2B rows is two passes.
    pub passes: u64,
    /// Passes over the finished prefix of a block, to compute its keys and values: 0 where texts are written all at once.
    pub context_passes: u64,
    /// Passes that only frames needed.
    pub trace_passes: u64,
    /// Positions written, over all rows, without those of blocks that were not begun because all texts had ended.
    pub positions: u64,
}

/// A sampled batch.
#[derive(Debug)]
pub struct Generated {
    /// The latents that were decoded, `[B, S, C]`, on the network's device: clean ones unless `decode_at` is below 1.
    pub z: Tensor,
    /// Token ids of each row, all S positions; [`Trim`](crate::Trim) cuts them to texts.
    pub ids: Vec<Vec<i64>>,
    /// The natural log-probability of each token: how sure the network is of it.
    pub log_probs: Vec<Vec<f32>>,
    /// What the batch cost.
    pub cost: Cost,
}
