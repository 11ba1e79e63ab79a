//! Fused CPU operations with gradients: one pass over memory where libtorch makes several.
//!
//! Matrix products are bounded by arithmetic, and libtorch does them well. Operations between two products (normalisation,
//! activation, rotation, softmax against a target, an optimiser's averages) are bounded by memory: libtorch's steps each
//! read and write all numbers once more, in fp32. Here each operation is one loop over rows in the cache, compiled for AVX2
//! and AVX-512 and selected at run time.
//!
//! Each function has a plain form in [`plain`], made of libtorch's own operations; tests compare the fused form with it. GPUs run
//! kernels of this crate's own ([`kernels`]), and the plain forms where there are none. Activations may be fp32 or bf16; statistics and sums are always fp32, and a result is rounded once.
//! Gradients are of first order: the fused forms have no second derivatives.
//!
//! [`lists`] has operations on all parameters at once, as GPUs want them. [`takes_gpu_path`] says whether a tensor takes the
//! forms for GPUs; [`on_gpu_path`] makes a CPU take them, so that tests and counters see what a GPU would run.
//!
//! Further: [`mkl`] selects MKL's code for fp32 products, [`flush_denormals`] keeps numbers near 0 from slowing it down, and [`observe`] counts the libtorch operations of a piece
//! of code.
//!
//! The crate deliberately does not know parameters, layers, models, or the optimisers' rules beyond one element.

mod arguments;
mod denormals;
mod ffi;
mod gpu_path;
mod int8;
pub mod kernels;
pub mod lists;
pub mod mkl;
pub mod observe;
mod ops;
mod parallel;
pub mod plain;
mod recompute;

pub use arguments::{AdamStep, Heads, MomentumStep, Turned};
pub use denormals::flush_denormals;
pub use gpu_path::{GPU_PATH_VARIABLE, allow_tf32, on_gpu_path, set_up_gpus, takes_gpu_path};
pub use int8::Int8Matrix;
pub use ops::{
    adam, add_rms_norm, add_scaled, attend, cross_entropy, heads, instruction_set, momentum, rms_norm, softmax, swiglu,
};
pub use parallel::{Part, joined, parallel};
pub use recompute::recompute;
