//! A network's prediction at one point of the path.

use tch::Tensor;

/// A field's prediction at a point. `v` and `x` are two forms of the same prediction: either follows from the other and the point.
#[derive(Debug)]
pub struct Prediction {
    /// Velocity dz/dt, `[B, S, C]`; 0 on condition positions.
    pub v: Tensor,
    /// The estimate of the clean latents at t = 1, `[B, S, C]`.
    pub x: Tensor,
}
