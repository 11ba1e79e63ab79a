//! Operations that libtorch runs as many passes over memory, as one pass on a CPU, with their gradients.
//!
//! A matrix product is bounded by arithmetic and libtorch does it well. What lies between two products (normalisation,
//! activation, rotation, softmax against a target, an optimiser's averages) is bounded by memory: taken step by step, each
//! step reads and writes everything once more, in fp32. Here each is one loop over rows that are in the cache, compiled for
//! AVX2 and AVX-512 and chosen when the program runs.
//!
//! Each function has its plain form in [`plain`], made of libtorch's own operations. That is what runs on a GPU, and what the
//! tests hold the fused form against. Activations may be fp32 or bf16; statistics and sums are fp32 in either case, and a
//! result is rounded once. Gradients are of first order: a gradient of a gradient is not available from the fused forms.
//!
//! Beside them: [`mkl`] chooses the code of fp32 products, and [`observe`] tells which of libtorch's operations a piece of code calls.
//!
//! It deliberately does not know parameters, layers, models, or the optimisers' rules beyond one element.

mod ffi;
pub mod mkl;
pub mod observe;
mod ops;
pub mod plain;
mod recompute;

pub use ops::{
    AdamStep, Heads, MomentumStep, Turned, adam, add_scaled, cross_entropy, heads, instruction_set, momentum, rms_norm,
    softmax, swiglu,
};
pub use recompute::recompute;
