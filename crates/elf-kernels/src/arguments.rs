//! What operations take and give that is more than one tensor.

use tch::Tensor;

/// Settings of the queries and keys between a joint projection and attention.
#[derive(Debug)]
pub struct Heads<'a> {
    /// Weight of the queries' normalisation, `[dim]`, fp32.
    pub q_weight: &'a Tensor,
    /// Weight of the keys' normalisation, `[dim]`, fp32.
    pub k_weight: &'a Tensor,
    /// Cosines of the rotation, `[N, dim / 2]`, fp32.
    pub cos: &'a Tensor,
    /// Sines of the rotation, `[N, dim / 2]`, fp32.
    pub sin: &'a Tensor,
    /// Constant added to the mean square before its root.
    pub eps: f64,
    /// Factor of the queries: `1 / sqrt(dim)` saves a pass over the scores.
    pub q_scale: f64,
}

/// Queries, keys and values by head, each `[B * heads, N, dim]`, contiguous.
#[derive(Debug)]
pub struct Turned {
    /// Queries: normalised, rotated, scaled.
    pub q: Tensor,
    /// Keys: normalised, rotated.
    pub k: Tensor,
    /// Values, unchanged.
    pub v: Tensor,
}

/// Constants of one step of momentum.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MomentumStep {
    /// Decay of the momentum.
    pub decay: f64,
    /// The new momentum's share in the update.
    pub ahead: f64,
    /// The gradient's share in the update.
    pub now: f64,
}

/// Constants of one step of Adam.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamStep {
    /// Decay of the first moment.
    pub b1: f64,
    /// Decay of the second moment.
    pub b2: f64,
    /// Constant added to the root of the second moment.
    pub eps: f64,
    /// The new first moment's factor.
    pub of_first: f64,
    /// The gradient's own factor, for Nesterov's form; 0 for the plain one.
    pub of_grad: f64,
    /// The new second moment's factor.
    pub of_second: f64,
    /// The learning rate.
    pub lr: f64,
    /// Factor of the parameter before the update: 1 minus the decay of this step.
    pub keep: f64,
}
