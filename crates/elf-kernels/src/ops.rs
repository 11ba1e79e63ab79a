//! The operations, in fused form where possible.

use std::ptr::{null, null_mut};

use tch::{Kind, TchError, Tensor};

use crate::arguments::{AdamStep, Heads, MomentumStep, Turned};
use crate::{ffi, kernels, plain, takes_gpu_path};

/// The variant of the loops on this processor: `avx512`, `avx2` or `base`.
pub fn instruction_set() -> &'static str {
    ffi::isa()
}

/// Whether the fused loops support such tensors.
fn is_ours(x: &Tensor) -> bool {
    !takes_gpu_path(x.device()) && matches!(x.kind(), Kind::Float | Kind::BFloat16)
}

/// Root-mean-square normalisation over the last dimension: `x / sqrt(mean(x^2) + eps) * weight`.
///
/// `x` `[.., n]` fp32 or bf16, `weight` `[n]` fp32; to `[.., n]` in `kind` (fp32 or bf16).
///
/// # Errors
/// If shapes or kinds do not fit.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, kind: Kind) -> Result<Tensor, TchError> {
    if !is_ours(x) || !matches!(kind, Kind::Float | Kind::BFloat16) {
        return kernels::rms_norm(x, weight, eps, kind);
    }
    let mut out = null_mut();
    // SAFETY: both tensors live through the call; `out` is set if there is no error.
    ffi::check(unsafe {
        ffi::elf_rms_norm(x.as_ptr(), weight.as_ptr(), eps, (kind == Kind::BFloat16).into(), &mut out)
    })?;
    Ok(ffi::taken(out))
}

/// `x + branch`, and [`rms_norm`] of that: on a GPU one launch for both.
///
/// # Errors
/// If shapes or kinds do not fit.
pub fn add_rms_norm(
    x: &Tensor,
    branch: &Tensor,
    weight: &Tensor,
    eps: f64,
    kind: Kind,
) -> Result<(Tensor, Tensor), TchError> {
    if !is_ours(x) {
        return kernels::add_rms_norm(x, branch, weight, eps, kind);
    }
    let sum = x.f_add(branch)?;
    let normed = rms_norm(&sum, weight, eps, kind)?;
    Ok((sum, normed))
}

/// The activation of SwiGLU: `h` `[.., 2 n]`, a gate and a value one after the other, to `silu(gate) * value` `[.., n]`, in
/// the same kind.
///
/// # Errors
/// If the last dimension is odd.
pub fn swiglu(h: &Tensor) -> Result<Tensor, TchError> {
    if !is_ours(h) {
        return kernels::swiglu(h);
    }
    let mut out = null_mut();
    // SAFETY: the tensor lives through the call; `out` is set if there is no error.
    ffi::check(unsafe { ffi::elf_swiglu(h.as_ptr(), &mut out) })?;
    Ok(ffi::taken(out))
}

/// Splits a joint projection `[B, N, 3, heads, dim]` into heads, normalises each head of queries and keys by its root mean
/// square, and rotates their adjacent pairs of channels.
///
/// # Errors
/// If shapes or kinds do not fit, or a head is longer than 512.
pub fn heads(qkv: &Tensor, how: &Heads) -> Result<Turned, TchError> {
    if !is_ours(qkv) {
        return kernels::heads(qkv, how);
    }
    let (mut q, mut k, mut v) = (null_mut(), null_mut(), null_mut());
    // SAFETY: all tensors live through the call; the three are set if there is no error.
    ffi::check(unsafe {
        ffi::elf_heads(
            qkv.as_ptr(),
            how.q_weight.as_ptr(),
            how.k_weight.as_ptr(),
            how.cos.as_ptr(),
            how.sin.as_ptr(),
            how.eps,
            how.q_scale,
            &mut q,
            &mut k,
            &mut v,
        )
    })?;
    Ok(Turned { q: ffi::taken(q), k: ffi::taken(k), v: ffi::taken(v) })
}

/// Softmax over the last dimension of attention scores `[B * heads, N, n]`, in their kind. `mask`, fp32 `[B, n]`, is added
/// first: 0 for visible positions, minus infinity for hidden ones; each row must see at least one.
///
/// # Errors
/// If shapes or kinds do not fit.
pub fn softmax(scores: &Tensor, mask: Option<&Tensor>) -> Result<Tensor, TchError> {
    if !is_ours(scores) {
        return plain::softmax(scores, mask);
    }
    let mut out = null_mut();
    // SAFETY: both tensors live through the call; `out` is set if there is no error.
    ffi::check(unsafe { ffi::elf_softmax(scores.as_ptr(), mask.map_or(null(), Tensor::as_ptr), &mut out) })?;
    Ok(ffi::taken(out))
}

/// `softmax(q k^T + mask) v` of queries `[rows, N, dim]` and keys and values `[rows, M, dim]`, in their kind. `mask`, fp32
/// `[B, N or 1, M]` with B dividing the rows, is added to the scores: 0 for visible positions, minus infinity for hidden ones;
/// each query must see at least one.
///
/// For rows of up to a hundred or so: one head is one piece of work, in which nothing but q, k, v leaves the cache. Libtorch's
/// attention makes products of each head by itself, which costs more than the arithmetic there.
///
/// # Errors
/// If shapes or kinds do not fit.
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor, TchError> {
    if !is_ours(q) {
        return plain::attend(q, k, v, mask);
    }
    let mut out = null_mut();
    // SAFETY: all tensors live through the call; `out` is set if there is no error.
    ffi::check(unsafe {
        ffi::elf_attend(q.as_ptr(), k.as_ptr(), v.as_ptr(), mask.map_or(null(), Tensor::as_ptr), &mut out)
    })?;
    Ok(ffi::taken(out))
}

/// Cross-entropies of `logits + bias` `[N, V]` against `ids` `[N]` (int64), each times its weight: `[N]`, fp32. No gradient
/// is recorded. With `with_slope`, the logits are replaced by the gradient of the sum with respect to them, and the
/// gradient with respect to the bias `[V]` is returned too.
///
/// # Errors
/// If shapes or kinds do not fit, or an id is outside of the vocabulary.
pub fn cross_entropy(
    logits: &mut Tensor,
    bias: &Tensor,
    ids: &Tensor,
    weights: Option<&Tensor>,
    with_slope: bool,
) -> Result<(Tensor, Option<Tensor>), TchError> {
    if !is_ours(logits) {
        return kernels::cross_entropy(logits, bias, ids, weights, with_slope);
    }
    let (mut losses, mut slope) = (null_mut(), null_mut());
    // SAFETY: all tensors live through the call; `losses`, and `slope` if asked for, are set if there is no error.
    ffi::check(unsafe {
        ffi::elf_cross_entropy(
            logits.as_mut_ptr(),
            bias.as_ptr(),
            ids.as_ptr(),
            weights.map_or(null(), Tensor::as_ptr),
            with_slope.into(),
            &mut losses,
            &mut slope,
        )
    })?;
    Ok((ffi::taken(losses), with_slope.then(|| ffi::taken(slope))))
}

/// `m <- decay m + (1 - decay) g` in place; returns `ahead m + now g` in `kind`, and its sum of squares as a scalar on the
/// device. The inputs are fp32 of the same shape.
///
/// # Errors
/// If shapes or kinds do not fit.
pub fn momentum(m: &mut Tensor, g: &Tensor, step: MomentumStep, kind: Kind) -> Result<(Tensor, Tensor), TchError> {
    let ours = is_ours(m) && m.is_contiguous() && g.is_contiguous() && matches!(kind, Kind::Float | Kind::BFloat16);
    if !ours {
        return plain::momentum(m, g, step, kind);
    }
    let mut update = Tensor::f_empty(m.size(), (kind, m.device()))?;
    let mut sum = 0.0;
    let MomentumStep { decay, ahead, now } = step;
    // SAFETY: all tensors live through the call.
    ffi::check(unsafe {
        ffi::elf_momentum(m.as_mut_ptr(), g.as_ptr(), update.as_mut_ptr(), decay, ahead, now, &mut sum)
    })?;
    Ok((update, Tensor::from(sum as f32)))
}

/// `p <- p + a d`, `p` fp32, `d` fp32 or bf16 of the same shape.
///
/// # Errors
/// If shapes or kinds do not fit.
pub fn add_scaled(p: &mut Tensor, d: &Tensor, a: f64) -> Result<(), TchError> {
    if !(is_ours(p) && is_ours(d) && p.is_contiguous() && p.size() == d.size()) {
        return plain::add_scaled(p, d, a);
    }
    // SAFETY: both tensors live through the call.
    ffi::check(unsafe { ffi::elf_add_scaled(p.as_mut_ptr(), d.as_ptr(), a) })
}

/// `m <- b1 m + (1 - b1) g`, `v <- b2 v + (1 - b2) g^2`,
/// `p <- keep p - lr (of_first m + of_grad g) / (sqrt(of_second v) + eps)`, all fp32, in place.
///
/// # Errors
/// If shapes or kinds do not fit.
pub fn adam(p: &mut Tensor, g: &Tensor, m: &mut Tensor, v: &mut Tensor, step: AdamStep) -> Result<(), TchError> {
    let ours = [&*p, g, &*m, &*v].iter().all(|t| is_ours(t) && t.is_contiguous() && t.kind() == Kind::Float);
    if !ours {
        return plain::adam(p, g, m, v, step);
    }
    let AdamStep { b1, b2, eps, of_first, of_grad, of_second, lr, keep } = step;
    let numbers = [b1, b2, eps, of_first, of_grad, of_second, lr, keep];
    // SAFETY: all tensors and the eight numbers live through the call.
    ffi::check(unsafe { ffi::elf_adam(p.as_mut_ptr(), g.as_ptr(), m.as_mut_ptr(), v.as_mut_ptr(), numbers.as_ptr()) })
}
