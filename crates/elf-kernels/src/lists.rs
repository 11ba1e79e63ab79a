//! The same operation on many tensors: on a GPU one or a few launches for all of them together, where one for each would take
//! longer than its arithmetic. On a CPU they are libtorch's loops over the list.

use std::ptr::null_mut;

use tch::{Kind, TchError, Tensor};
use torch_sys::C_tensor;

use crate::arguments::{AdamStep, MomentumStep};
use crate::ffi;

fn pointers(list: &[Tensor]) -> Vec<*mut C_tensor> {
    list.iter().map(|t| t.as_ptr().cast_mut()).collect()
}

fn of_one_length(what: &str, lists: &[&[Tensor]]) -> Result<usize, TchError> {
    let n = lists[0].len();
    match lists.iter().all(|list| list.len() == n) {
        true => Ok(n),
        false => Err(TchError::Shape(format!("{what}: lists of different lengths"))),
    }
}

/// Copies in `kind` that carry their gradients back, in the kind of the originals; those of several are copied together in both
/// directions.
///
/// # Errors
/// If libtorch fails.
pub fn cast(list: &[Tensor], kind: Kind) -> Result<Vec<Tensor>, TchError> {
    if list.len() == 1 || kind != Kind::BFloat16 {
        return list.iter().map(|t| t.f_to_kind(kind)).collect();
    }
    let mut out = vec![null_mut(); list.len()];
    // SAFETY: all tensors live through the call; all of `out` are set if there is no error.
    ffi::check(unsafe { ffi::elf_list_to_bf16(pointers(list).as_ptr(), list.len(), out.as_mut_ptr()) })?;
    Ok(out.into_iter().map(ffi::taken).collect())
}

/// [`crate::adam`] of each parameter `p[i]` with its gradient and moments.
///
/// # Errors
/// If the lists do not fit together.
pub fn adam(p: &[Tensor], g: &[Tensor], m: &[Tensor], v: &[Tensor], step: AdamStep) -> Result<(), TchError> {
    let n = of_one_length("adam", &[p, g, m, v])?;
    let AdamStep { b1, b2, eps, of_first, of_grad, of_second, lr, keep } = step;
    let numbers = [b1, b2, eps, of_first, of_grad, of_second, lr, keep];
    let [p, g, m, v] = [p, g, m, v].map(pointers);
    // SAFETY: all tensors and the eight numbers live through the call.
    ffi::check(unsafe { ffi::elf_list_adam(p.as_ptr(), g.as_ptr(), m.as_ptr(), v.as_ptr(), n, numbers.as_ptr()) })
}

/// [`crate::momentum`] of each, without sums of squares; the updates, in the gradients' kind.
///
/// # Errors
/// If the lists do not fit together.
pub fn momentum(m: &[Tensor], g: &[Tensor], step: MomentumStep) -> Result<Vec<Tensor>, TchError> {
    let n = of_one_length("momentum", &[m, g])?;
    let MomentumStep { decay, ahead, now } = step;
    let mut out = vec![null_mut(); n];
    let (m, g) = (pointers(m), pointers(g));
    // SAFETY: all tensors live through the call; all of `out` is set if there is no error.
    ffi::check(unsafe { ffi::elf_list_momentum(m.as_ptr(), g.as_ptr(), n, decay, ahead, now, out.as_mut_ptr()) })?;
    Ok(out.into_iter().map(ffi::taken).collect())
}

/// `p <- p + weight (q - p)` for each.
///
/// # Errors
/// If the lists do not fit together.
pub fn lerp(p: &[Tensor], q: &[Tensor], weight: f64) -> Result<(), TchError> {
    let n = of_one_length("lerp", &[p, q])?;
    let (p, q) = (pointers(p), pointers(q));
    // SAFETY: all tensors live through the call.
    ffi::check(unsafe { ffi::elf_list_lerp(p.as_ptr(), q.as_ptr(), n, weight) })
}

/// `p <- p + a d` for each.
///
/// # Errors
/// If the lists do not fit together.
pub fn add_scaled(p: &[Tensor], d: &[Tensor], a: f64) -> Result<(), TchError> {
    let n = of_one_length("add_scaled", &[p, d])?;
    let (p, d) = (pointers(p), pointers(d));
    // SAFETY: all tensors live through the call.
    ffi::check(unsafe { ffi::elf_list_add(p.as_ptr(), d.as_ptr(), n, a) })
}

/// Multiplies each by the number `factor`, a tensor on their device.
///
/// # Errors
/// If libtorch fails.
pub fn scale(list: &[Tensor], factor: &Tensor) -> Result<(), TchError> {
    let p = pointers(list);
    // SAFETY: all tensors live through the call.
    ffi::check(unsafe { ffi::elf_list_scale(p.as_ptr(), p.len(), factor.as_ptr()) })
}

/// Sets each to 0.
///
/// # Errors
/// If libtorch fails.
pub fn zero(list: &[Tensor]) -> Result<(), TchError> {
    let p = pointers(list);
    // SAFETY: all tensors live through the call.
    ffi::check(unsafe { ffi::elf_list_zero(p.as_ptr(), p.len()) })
}

/// Leaves parameters without gradients, so that a backward pass hands its own over instead of adding to zeros.
///
/// # Errors
/// If libtorch fails.
pub fn forget_gradients(list: &[Tensor]) -> Result<(), TchError> {
    let p = pointers(list);
    // SAFETY: all tensors live through the call.
    ffi::check(unsafe { ffi::elf_list_without_grad(p.as_ptr(), p.len()) })
}

/// The Euclidean norm of each, `[n]`, on their device.
///
/// # Errors
/// If the list is empty, or libtorch fails.
pub fn norms(list: &[Tensor]) -> Result<Tensor, TchError> {
    let p = pointers(list);
    let mut out = null_mut();
    // SAFETY: all tensors live through the call; `out` is set if there is no error.
    ffi::check(unsafe { ffi::elf_list_norms(p.as_ptr(), p.len(), &mut out) })?;
    Ok(ffi::taken(out))
}
