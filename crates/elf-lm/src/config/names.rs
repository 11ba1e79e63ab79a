//! Enumerations in a training configuration.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a run trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ObjectiveName {
    /// An embedded language flow.
    Elf,
    /// An autoregressive language model: a GPT-2 on the run's own tokens.
    Gpt2,
    /// Masked diffusion.
    Mdlm,
}

/// How rows are padded, and whether the padding is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PadTokenName {
    /// `<pad>`, without loss.
    Pad,
    /// `</s>`, with loss.
    Eos,
}

/// A distribution of times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TimeScheduleName {
    /// Logit-normal.
    LogitNormal,
    /// Uniform.
    Uniform,
}

/// A learning-rate schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleName {
    /// Constant after warm-up.
    Constant,
    /// Cosine to `min_lr` after warm-up.
    Cosine,
    /// Warmup-stable-decay: constant, and linear to `min_lr` in the last `lr_decay_share` of the steps.
    Wsd,
}

/// An optimiser.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    /// Muon for matrices, Nesterov-Adam for the rest.
    Muon,
    /// AdamW.
    Adamw,
}
