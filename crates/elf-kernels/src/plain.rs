//! The same operations made of libtorch's own, for GPUs and for tests of the fused ones.

use tch::{Kind, TchError, Tensor};

use crate::arguments::{AdamStep, Heads, MomentumStep, Turned};

/// [`crate::rms_norm`].
///
/// # Errors
/// If libtorch fails.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, kind: Kind) -> Result<Tensor, TchError> {
    let wide = x.f_to_kind(Kind::Float)?;
    let scale = (wide.f_square()?.f_mean_dim(-1, true, Kind::Float)? + eps).f_rsqrt()?;
    wide.f_mul(&scale)?.f_mul(weight)?.f_to_kind(kind)
}

/// [`crate::swiglu`].
///
/// # Errors
/// If libtorch fails.
pub fn swiglu(h: &Tensor) -> Result<Tensor, TchError> {
    let halves = h.f_chunk(2, -1)?;
    halves[0].f_silu()?.f_mul(&halves[1])
}

/// [`crate::heads`].
///
/// # Errors
/// If libtorch fails.
pub fn heads(qkv: &Tensor, how: &Heads) -> Result<Turned, TchError> {
    let kind = qkv.kind();
    let shape = qkv.size();
    let [batch, n, _, heads, dim] = shape[..] else {
        return Err(TchError::Shape(format!(
            "queries, keys and values must come as [B, N, 3, heads, dim], not {shape:?}"
        )));
    };
    // Queries and keys go through normalisation and rotation together, in fp32.
    let qk = qkv.f_narrow(2, 0, 2)?.f_to_kind(Kind::Float)?;
    let scale = (qk.f_square()?.f_mean_dim(-1, true, Kind::Float)? + how.eps).f_rsqrt()?;
    let weights = Tensor::f_stack(&[&(how.q_weight * how.q_scale), how.k_weight], 0)?.f_view([2, 1, dim])?;
    let qk = qk.f_mul(&scale)?.f_mul(&weights)?.f_view([batch, n, 2 * heads, dim / 2, 2])?;
    // As complex numbers a rotation is one product, forwards and backwards.
    let turns = Tensor::f_complex(how.cos, how.sin)?.f_view([n, 1, dim / 2])?;
    let turned = qk.f_view_as_complex()?.f_mul(&turns)?.f_view_as_real()?;
    let qk = turned.f_view([batch, n, 2, heads, dim])?.f_to_kind(kind)?;
    let by_head = |x: Tensor| x.f_transpose(1, 2)?.f_reshape([batch * heads, n, dim]);
    Ok(Turned { q: by_head(qk.f_select(2, 0)?)?, k: by_head(qk.f_select(2, 1)?)?, v: by_head(qkv.f_select(2, 2)?)? })
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
