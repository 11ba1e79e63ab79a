//! What sampling must know of a network's training.

use crate::{ElfObjective, FlowPath};

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
