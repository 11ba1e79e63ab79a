//! Memory of a GPU, of which libtorch's own figures are for C++ alone.

use std::ffi::c_int;

use libloading::os::unix::Library;
use tch::Device;

/// Bytes of a GPU that are in use, by all processes. Libtorch keeps what it once held, so that at the end of a process this is the
/// most that it needed. `None` on a CPU, or if CUDA does not say.
pub fn in_use(device: Device) -> Option<u64> {
    let Device::Cuda(_) = device else { return None };
    let (mut free, mut total) = (0usize, 0usize);
    // SAFETY: a function of CUDA's runtime, which libtorch's CUDA part has loaded, with its own signature; both numbers live
    // through the call.
    let status = unsafe {
        let loaded = Library::this();
        let ask = loaded.get::<unsafe extern "C" fn(*mut usize, *mut usize) -> c_int>(b"cudaMemGetInfo").ok()?;
        ask(&mut free, &mut total)
    };
    (status == 0).then(|| total.saturating_sub(free) as u64)
}
