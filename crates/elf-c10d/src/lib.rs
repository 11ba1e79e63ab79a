//! PyTorch's own engine for many processes, c10d, which lies inside libtorch: stores (rendezvous), process groups (Gloo for
//! CPUs, NCCL for GPUs) and hooks on gradients.
//!
//! * [`Store`]: keys and values that all processes of a run see, on one host's TCP port or in a file.
//! * [`Group`]: broadcast, all-reduce, all-gather, reduce-scatter and barrier. Each gives a [`Pending`] to wait for.
//! * [`GradientHooks`]: is called as soon as a parameter's gradient is complete, while the backward pass goes on.
//!
//! The bridge to C++ is small. The headers of libtorch name five headers of Gloo that are not installed with it;
//! `cpp/gloo_declarations` declares what they need. NCCL needs headers that a CPU build does not have, so its group is made
//! by a library of its own that is loaded at run time: see [`Group::nccl`].
//!
//! It deliberately does not know training, networks, environment variables or how processes are started, and never prints.

mod error;
mod ffi;
mod gradient_hooks;
mod group;
mod store;

pub use error::{Error, Result};
pub use gradient_hooks::GradientHooks;
pub use group::{Group, Membership, Pending, Via};
pub use store::Store;

/// Keeps libtorch from writing to standard error itself, for the rest of the process: what it has to say of a failure comes
/// back as an [`Error`], and it would write the same with stack traces.
pub fn hush_libtorch() {
    // SAFETY: sets one number, which libtorch reads.
    unsafe { ffi::elf_c10d_hush() }
}
