//! How an encoder is trained.

use serde::Serialize;

/// Optimiser for the weight matrices of the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// Muon for the matrices of the blocks, AdamW for the rest.
    Muon,
    /// AdamW for everything.
    Adamw,
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Rule::Muon => "muon",
            Rule::Adamw => "adamw",
        })
    }
}

/// How an encoder is trained.
#[derive(Debug, Clone, Serialize)]
pub struct Recipe {
    /// Minutes of training in all, across interruptions; the learning rate decays to 0 over them.
    pub minutes: Option<f64>,
    /// Steps of training. With minutes, whichever comes first ends training.
    pub steps: Option<u64>,
    /// Tokens of text per step.
    pub batch_tokens: usize,
    /// Optimiser for the weight matrices of the blocks.
    pub optimizer: Rule,
    /// Peak learning rate of the blocks' weight matrices; by default 0.01 with Muon, 0.002 with AdamW.
    pub lr: Option<f64>,
    /// Peak learning rate of the token embedding table, whose rows are initialised at scale 1.
    pub embedding_lr: f64,
    /// Peak learning rate of everything else: norms, position biases, the decoder's head.
    pub other_lr: f64,
    /// Maximum gradient norm; larger gradients are clipped to it.
    pub clip: f64,
    /// Seed of the weights, the text order and the spans.
    pub seed: u64,
    /// Steps between two lines about progress.
    pub log_every: u64,
    /// Minutes between two checkpoints.
    pub save_minutes: f64,
}

impl Recipe {
    /// The highest learning rate of the matrices of the blocks.
    pub fn lr(&self) -> f64 {
        self.lr.unwrap_or(match self.optimizer {
            Rule::Muon => 0.01,
            Rule::Adamw => 0.002,
        })
    }
}
