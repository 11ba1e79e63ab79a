//! What sampling must know of a network's training.

use crate::{ElfObjective, FlowPath, PredictionTarget};

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

impl TrainedFlow {
    /// The same flow for a network that estimates clean latents, and takes no earlier estimate.
    #[must_use]
    pub fn of_clean_estimates(self) -> Self {
        let path = FlowPath { prediction: PredictionTarget::Clean, ..self.path };
        Self { path, self_conditioned: false, ..self }
    }
}

impl From<&ElfObjective> for TrainedFlow {
    fn from(objective: &ElfObjective) -> Self {
        Self { path: objective.path, self_conditioned: objective.self_conditioned(), block_size: objective.block_size }
    }
}
