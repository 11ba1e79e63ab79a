//! The same operations made of libtorch's own, for GPUs and for tests of the fused ones.

use std::ptr::null_mut;

use tch::{Kind, TchError, Tensor};

use crate::arguments::{AdamStep, Heads, MomentumStep, Turned};
use crate::ffi;

/// [`crate::rms_norm`], by libtorch's fused kernel on GPUs; `weight` may be in the kind of `x`.
///
/// # Errors
/// If libtorch fails.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, kind: Kind) -> Result<Tensor, TchError> {
    let channels = [x.size().last().copied().unwrap_or(0)];
    // In the wider of the two kinds, so that the result is rounded once.
    let x = if kind == Kind::Float { x.f_to_kind(Kind::Float)? } else { x.shallow_clone() };
    let weight = weight.f_to_kind(x.kind())?;
    x.f_internal_fused_rms_norm(channels, Some(&weight), eps)?.0.f_to_kind(kind)
}

/// [`crate::add_rms_norm`].
///
/// # Errors
/// If libtorch fails.
pub fn add_rms_norm(
    x: &Tensor,
    branch: &Tensor,
    weight: &Tensor,
    eps: f64,
    kind: Kind,
) -> Result<(Tensor, Tensor), TchError> {
    let sum = x.f_add(branch)?;
    let normed = rms_norm(&sum, weight, eps, kind)?;
    Ok((sum, normed))
}

/// [`crate::swiglu`].
///
/// # Errors
/// If the last dimension is odd, or libtorch fails.
pub fn swiglu(h: &Tensor) -> Result<Tensor, TchError> {
    let mut out = null_mut();
    // SAFETY: the tensor lives through the call; `out` is set if there is no error.
    ffi::check(unsafe { ffi::elf_plain_swiglu(h.as_ptr(), &mut out) })?;
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
    ffi::check(unsafe {
        ffi::elf_plain_heads(qkv.as_ptr(), w_q, w_k, cos, sin, eps, q_scale, &mut q, &mut k, &mut v)
    })?;
    Ok(Turned { q: ffi::taken(q), k: ffi::taken(k), v: ffi::taken(v) })
}

/// [`crate::softmax`].
///
/// # Errors
/// If libtorch fails.
pub fn softmax(scores: &Tensor, mask: Option<&Tensor>) -> Result<Tensor, TchError> {
    let (rows, n, columns) = scores.size3()?;
    let Some(mask) = mask else { return scores.f_softmax(-1, scores.kind()) };
    let (batch, _) = mask.size2()?;
    let by_row = scores.f_view([batch, rows / batch.max(1), n, columns])?;
    let shifted = by_row.f_to_kind(Kind::Float)?.f_add(&mask.f_view([batch, 1, 1, columns])?)?;
    shifted.f_softmax(-1, Kind::Float)?.f_to_kind(scores.kind())?.f_view([rows, n, columns])
}

/// [`crate::attend`].
///
/// # Errors
/// If libtorch fails.
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Result<Tensor, TchError> {
    let [wide_q, wide_k, wide_v] = [q, k, v].map(|x| x.f_to_kind(Kind::Float));
    let mut scores = wide_q?.f_bmm(&wide_k?.f_transpose(1, 2)?)?;
    if let Some(mask) = mask {
        let ((rows, n, m), batch) = (scores.size3()?, mask.size3()?.0);
        scores =
            scores.f_view([batch, rows / batch.max(1), n, m])?.f_add(&mask.f_unsqueeze(1)?)?.f_view([rows, n, m])?;
    }
    scores.f_softmax(-1, Kind::Float)?.f_bmm(&wide_v?)?.f_to_kind(q.kind())
}

/// [`crate::cross_entropy`].
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
    tch::no_grad(|| {
        let target = ids.f_unsqueeze(-1)?;
        let mut log_p = logits.f_to_kind(Kind::Float)?.f_add(bias)?.f_log_softmax(-1, Kind::Float)?;
        let mut losses = log_p.f_gather(-1, &target, false)?.f_squeeze_dim(-1)?.f_neg()?;
        if let Some(w) = weights {
            losses = losses.f_mul(w)?;
        }
        if !with_slope {
            return Ok((losses, None));
        }
        let mut slope = log_p.f_exp_()?;
        let minus_one = target.f_ones_like()?.f_to_kind(Kind::Float)?.f_neg()?;
        let _ = slope.f_scatter_add_(-1, &target, &minus_one)?;
        if let Some(w) = weights {
            let _ = slope.f_mul_(&w.f_unsqueeze(-1)?)?;
        }
        let of_bias = slope.f_sum_dim_intlist(0, false, Kind::Float)?;
        logits.f_copy_(&slope)?;
        Ok((losses, Some(of_bias)))
    })
}

/// [`crate::momentum`].
///
/// # Errors
/// If libtorch fails.
pub fn momentum(m: &mut Tensor, g: &Tensor, step: MomentumStep, kind: Kind) -> Result<(Tensor, Tensor), TchError> {
    let _ = m.f_lerp_(g, 1.0 - step.decay)?;
    let update = &*m * step.ahead + g * step.now;
    let sum = update.f_square()?.f_sum(Kind::Float)?;
    Ok((update.f_to_kind(kind)?, sum))
}

/// [`crate::add_scaled`].
///
/// # Errors
/// If libtorch fails.
pub fn add_scaled(p: &mut Tensor, d: &Tensor, a: f64) -> Result<(), TchError> {
    let _ = p.f_add_(&(d.f_to_kind(Kind::Float)? * a))?;
    Ok(())
}

/// [`crate::adam`].
///
/// # Errors
/// If libtorch fails.
pub fn adam(p: &mut Tensor, g: &Tensor, m: &mut Tensor, v: &mut Tensor, step: AdamStep) -> Result<(), TchError> {
    let _ = m.f_lerp_(g, 1.0 - step.b1)?;
    let _ = v.f_lerp_(&g.f_square()?, 1.0 - step.b2)?;
    let denominator = (&*v * step.of_second).f_sqrt_()?.f_add_scalar_(step.eps)?;
    let ahead = &*m * step.of_first + g * step.of_grad;
    if step.keep != 1.0 {
        *p *= step.keep;
    }
    *p -= ahead.f_div(&denominator)? * step.lr;
    Ok(())
}
