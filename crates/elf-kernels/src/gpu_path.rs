//! The way that computations take on a GPU.

use std::cell::Cell;
use std::sync::OnceLock;

use tch::Device;

use crate::ffi;

thread_local! {
    /// Calls of [`on_gpu_path`] that this thread is in.
    static FORCED: Cell<usize> = const { Cell::new(0) };
}

/// The variable of the environment that makes a whole program take the way for GPUs, if it is set to 1.
pub const GPU_PATH_VARIABLE: &str = "ELF_GPU_PATH";

fn asked_for() -> bool {
    static ASKED: OnceLock<bool> = OnceLock::new();
    *ASKED.get_or_init(|| std::env::var(GPU_PATH_VARIABLE).is_ok_and(|value| value == "1"))
}

/// Whether tensors on this device take the way for GPUs: plain forms, libtorch's attention, operations on lists, draws by
/// counter. True on every GPU, and on a CPU inside of [`on_gpu_path`] or if the environment asks for it ([`GPU_PATH_VARIABLE`]).
pub fn takes_gpu_path(device: Device) -> bool {
    device != Device::Cpu || FORCED.get() > 0 || asked_for()
}

/// Runs `f` with CPU tensors on the way that GPUs take, in this thread, in which backward passes of CPU tensors run too. For tests
/// and counters.
pub fn on_gpu_path<T>(f: impl FnOnce() -> T) -> T {
    struct Back;
    impl Drop for Back {
        fn drop(&mut self) {
            FORCED.set(FORCED.get() - 1);
        }
    }
    FORCED.set(FORCED.get() + 1);
    let _back = Back;
    f()
}

/// Settings of libtorch's for GPUs, as soon as its CUDA part is loaded: no attention by cuDNN, which compiles a kernel for each shape,
/// and memory in segments that grow.
pub fn set_up_gpus() {
    // SAFETY: sets flags of libtorch's.
    unsafe { ffi::elf_set_up_gpus() }
}

/// Whether fp32 matrix products on GPUs may round their inputs to the 10 bits of TF32, which is several times as fast. Libtorch's
/// default is no.
pub fn allow_tf32(allow: bool) {
    // SAFETY: sets a flag of libtorch's.
    unsafe { ffi::elf_allow_tf32(allow.into()) }
}
