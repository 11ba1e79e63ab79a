//! Kernels of this crate's own for GPUs (`cuda/kernels.cuh`), compiled at run time by NVRTC. A CPU runs the same source, for tests
//! and counters.
//!
//! Functions here take what they can to the kernels, and everything else, and all of it on a GPU whose NVRTC or driver is missing,
//! to [`crate::plain`].

use std::ffi::CString;
use std::ptr::{null, null_mut};

use tch::{Device, Kind, TchError, Tensor};

use crate::arguments::{Heads, Turned};
use crate::{ffi, plain};

/// The variable of the environment that leaves a GPU to libtorch's operations alone, if it is set to 0.
pub const OWN_KERNELS_VARIABLE: &str = "ELF_OWN_KERNELS";

/// Whether the kernels run on a device. The first call for a GPU compiles them or takes them from the user's cache, and says in one
/// line of warning why that fails.
pub fn available(device: Device) -> bool {
    let index = match device {
        Device::Cpu => -1,
        Device::Cuda(index) => i32::try_from(index).unwrap_or(i32::MAX),
        _ => return false,
    };
    // SAFETY: takes a number.
    unsafe { ffi::elf_has_kernels(index) != 0 }
}

/// Compiles the kernels with NVRTC for an architecture such as `sm_90`, or finds them in the user's cache; gives the number of bytes.
///
/// # Errors
/// If there is no NVRTC, or it refuses them.
pub fn compile(architecture: &str) -> Result<usize, String> {
    let name = CString::new(architecture).map_err(|e| e.to_string())?;
    let mut reason = null_mut();
    // SAFETY: the name lives through the call; the reason is set if nothing is compiled.
    match unsafe { ffi::elf_compile_kernels(name.as_ptr(), &mut reason) } {
        0 => Err(ffi::check(reason).err().map(|e| e.to_string()).unwrap_or_default()),
        bytes => Ok(bytes),
    }
}

/// [`crate::swiglu`].
///
/// # Errors
/// If the last dimension is odd, or libtorch fails.
pub fn swiglu(h: &Tensor) -> Result<Tensor, TchError> {
    let mut out = null_mut();
    // SAFETY: the tensor lives through the call; `out` is set if there is no error.
    ffi::check(unsafe { ffi::elf_gpu_swiglu(h.as_ptr(), &mut out) })?;
    Ok(ffi::taken(out))
}

/// [`crate::heads`].
///
/// # Errors
/// If shapes do not fit, or libtorch fails.
pub fn heads(qkv: &Tensor, how: &Heads) -> Result<Turned, TchError> {
    let (mut q, mut k, mut v) = (null_mut(), null_mut(), null_mut());
    let Heads { q_weight, k_weight, cos, sin, eps, q_scale } = *how;
    let [w_q, w_k, cos, sin] = [q_weight, k_weight, cos, sin].map(Tensor::as_ptr);
    // SAFETY: all tensors live through the call; the three are set if there is no error.
    ffi::check(unsafe { ffi::elf_gpu_heads(qkv.as_ptr(), w_q, w_k, cos, sin, eps, q_scale, &mut q, &mut k, &mut v) })?;
    Ok(Turned { q: ffi::taken(q), k: ffi::taken(k), v: ffi::taken(v) })
}

/// Whether normalisations of rows of so many numbers on a device are the kernels', which take their weight in fp32.
pub fn norms(device: Device, size: i64) -> bool {
    // SAFETY: takes a number.
    available(device) && unsafe { ffi::elf_gpu_norm_size(size) != 0 }
}

fn takes_norm(x: &Tensor, weight: &Tensor, kind: Kind) -> bool {
    // SAFETY: both tensors live through the call.
    matches!(kind, Kind::Float | Kind::BFloat16) && unsafe { ffi::elf_gpu_norms(x.as_ptr(), weight.as_ptr()) != 0 }
}

/// [`crate::rms_norm`].
///
/// # Errors
/// If libtorch fails.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, kind: Kind) -> Result<Tensor, TchError> {
    if !takes_norm(x, weight, kind) {
        return plain::rms_norm(x, weight, eps, kind);
    }
    let (mut out, to_bf16) = (null_mut(), (kind == Kind::BFloat16).into());
    // SAFETY: both tensors live through the call; `out` is set if there is no error, and no sum without a branch.
    ffi::check(unsafe {
        ffi::elf_gpu_rms_norm(x.as_ptr(), null(), weight.as_ptr(), eps, to_bf16, null_mut(), &mut out)
    })?;
    Ok(ffi::taken(out))
}

/// [`crate::add_rms_norm`].
///
/// # Errors
/// If shapes do not fit, or libtorch fails.
pub fn add_rms_norm(
    x: &Tensor,
    branch: &Tensor,
    weight: &Tensor,
    eps: f64,
    kind: Kind,
) -> Result<(Tensor, Tensor), TchError> {
    if !takes_norm(x, weight, kind) || x.kind() != branch.kind() || x.size() != branch.size() {
        return plain::add_rms_norm(x, branch, weight, eps, kind);
    }
    let (mut sum, mut out, to_bf16) = (null_mut(), null_mut(), (kind == Kind::BFloat16).into());
    // SAFETY: all tensors live through the call; both results are set if there is no error.
    ffi::check(unsafe {
        ffi::elf_gpu_rms_norm(x.as_ptr(), branch.as_ptr(), weight.as_ptr(), eps, to_bf16, &mut sum, &mut out)
    })?;
    Ok((ffi::taken(sum), ffi::taken(out)))
}

/// [`crate::cross_entropy`]. An id outside of the vocabulary has a loss that is no number.
///
/// # Errors
/// If libtorch fails.
pub fn cross_entropy(
    logits: &mut Tensor,
    bias: &Tensor,
    ids: &Tensor,
    weights: Option<&Tensor>,
    with_slope: bool,
) -> Result<(Tensor, Option<Tensor>), TchError> {
    let given = weights.map_or(null(), Tensor::as_ptr);
    // SAFETY: all tensors live through the call.
    if unsafe { ffi::elf_gpu_scores(logits.as_ptr(), bias.as_ptr(), ids.as_ptr(), given) } == 0 {
        return plain::cross_entropy(logits, bias, ids, weights, with_slope);
    }
    let (mut losses, mut slope) = (null_mut(), null_mut());
    // SAFETY: all tensors live through the call; `losses`, and `slope` if asked for, are set if there is no error.
    ffi::check(unsafe {
        ffi::elf_gpu_cross_entropy(
            logits.as_mut_ptr(),
            bias.as_ptr(),
            ids.as_ptr(),
            given,
            with_slope.into(),
            &mut losses,
            &mut slope,
        )
    })?;
    Ok((ffi::taken(losses), with_slope.then(|| ffi::taken(slope))))
}

/// What is drawn by counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Law {
    /// Standard normal numbers.
    Normal,
    /// Uniform numbers in [0, 1) of 24 bits.
    Uniform,
}

/// Numbers `[rows, n]`, fp32, on the device of `keys` (int64 `[rows]`), number i of a row being a function of the row's key and i.
/// With `counted`, observers ([`crate::observe`]) count a draw on a CPU as one launch, which it is on a GPU.
///
/// # Errors
/// If the keys are of another kind or shape, or there are no kernels for their device ([`available`]).
pub fn draw(keys: &Tensor, n: i64, law: Law, counted: bool) -> Result<Tensor, TchError> {
    let mut out = null_mut();
    // SAFETY: the keys live through the call; `out` is set if there is no error.
    ffi::check(unsafe { ffi::elf_draw(keys.as_ptr(), n, (law == Law::Normal).into(), counted.into(), &mut out) })?;
    Ok(ffi::taken(out))
}
