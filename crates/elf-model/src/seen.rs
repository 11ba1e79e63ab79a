//! Which positions see which.

use elf_core::{Context, Result};
use tch::{Kind, Tensor};

/// Which positions of a prefix of P tokens, context and text see which, `[B, P + K + S, P + K + S]`, bool: queries by keys.
pub(crate) fn seen(prefix: i64, context: &Context) -> Result<Tensor> {
    let device = context.blocks.device();
    let (b, k) = context.blocks.size2()?;
    let (p, s) = (prefix, context.noisy_blocks.size2()?.1);
    let all =
        |rows: i64, columns: i64, seen: bool| Tensor::f_full([b, rows, columns], i64::from(seen), (Kind::Bool, device));
    let (clean, noisy) = (context.blocks, context.noisy_blocks);
    let (clean_keys, noisy_keys) = (clean.f_unsqueeze(1)?, noisy.f_unsqueeze(1)?);
    let (clean_queries, noisy_queries) = (clean.f_unsqueeze(-1)?, noisy.f_unsqueeze(-1)?);
    let of_prefix = Tensor::f_cat(&[all(p, p, true)?, all(p, k + s, false)?], -1)?;
    let of_clean = [all(k, p, false)?, clean_keys.f_le_tensor(&clean_queries)?, all(k, s, false)?];
    let of_noisy = [all(s, p, true)?, clean_keys.f_lt_tensor(&noisy_queries)?, noisy_keys.f_eq_tensor(&noisy_queries)?];
    Ok(Tensor::f_cat(&[of_prefix, Tensor::f_cat(&of_clean, -1)?, Tensor::f_cat(&of_noisy, -1)?], 1)?)
}

/// An additive mask: 0 where `seen` is true, minus infinity elsewhere.
pub(crate) fn additive(seen: &Tensor, kind: Kind) -> Result<Tensor> {
    let zeros = Tensor::f_zeros(seen.size(), (kind, seen.device()))?;
    Ok(zeros.f_masked_fill(&seen.f_logical_not()?, f64::NEG_INFINITY)?)
}

/// The additive mask `[B, 1, 1, P + S]` of a prefix that is always seen and text whose `mask` `[B, S]` is 1 where it is seen.
pub(crate) fn padding_mask(prefix: i64, mask: &Tensor, kind: Kind) -> Result<Tensor> {
    let prefix = Tensor::f_ones([mask.size2()?.0, prefix], (Kind::Bool, mask.device()))?;
    let seen = Tensor::f_cat(&[prefix, mask.f_to_kind(Kind::Bool)?], 1)?;
    Ok(additive(&seen, kind)?.f_unsqueeze(1)?.f_unsqueeze(1)?)
}
