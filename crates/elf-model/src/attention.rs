//! Full bidirectional attention with normalised, rotated queries and keys.

use elf_core::layers::Linear;
use elf_core::{Fans, Init, ParamBuilder, Precision, PrecisionPolicy, Result, Weight};
use elf_kernels::{Heads, Turned};
use tch::{Kind, Tensor};

use crate::config::BlockSizes;
use crate::rope::Rope;

const EPS: f64 = 1e-6;

#[derive(Debug)]
pub(crate) struct Attention {
    qkv: Linear,
    q_norm: Weight,
    k_norm: Weight,
    proj: Linear,
    heads: i64,
}

impl Attention {
    pub(crate) fn new(b: &mut ParamBuilder, name: &str, sizes: &BlockSizes, policy: PrecisionPolicy) -> Result<Self> {
        let linear = |b: &mut ParamBuilder, name: String, fans| {
            Ok::<_, elf_core::Error>(Linear::new(b, &name, fans, Init::XavierUniform, true)?.with_int8(policy.int8))
        };
        let h = sizes.hidden_size;
        let one = Init::Constant(1.0);
        Ok(Self {
            qkv: linear(b, format!("{name}.qkv"), Fans { fan_in: h, fan_out: 3 * h })?,
            q_norm: b.tensor(&format!("{name}.q_norm.weight"), &[sizes.head_dim()], one)?,
            k_norm: b.tensor(&format!("{name}.k_norm.weight"), &[sizes.head_dim()], one)?,
            proj: linear(b, format!("{name}.proj"), Fans { fan_in: h, fan_out: h })?,
            heads: sizes.num_heads,
        })
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        Self {
            qkv: self.qkv.shallow_clone(),
            q_norm: self.q_norm.shallow_clone(),
            k_norm: self.k_norm.shallow_clone(),
            proj: self.proj.shallow_clone(),
            heads: self.heads,
        }
    }

    /// `x` `[B, N, H]` to the same shape, and its keys and values, each `[B * heads, N, head_dim]`. `known` are the keys and values of K
    /// earlier tokens, which `x` sees too; `mask` is additive, `[B, 1, 1, K + N]` or `[B, 1, N, K + N]`. `rope` has the angles of
    /// N tokens, or of B * N, where rows are at positions of their own.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        rope: &Rope,
        known: Option<&[Tensor; 2]>,
        mask: Option<&Tensor>,
    ) -> Result<(Tensor, [Tensor; 2])> {
        let (batch, n, hidden) = x.size3()?;
        let head_dim = hidden / self.heads;
        // Rows with angles of their own are one row for the kernel.
        let own_angles = rope.len() != n;
        let (rows, tokens) = if own_angles { (1, batch * n) } else { (batch, n) };
        let qkv = self.qkv.forward(x).f_view([rows, tokens, 3, self.heads, head_dim])?;
        let how = Heads {
            q_weight: self.q_norm.master(),
            k_weight: self.k_norm.master(),
            cos: rope.cos(),
            sin: rope.sin(),
            eps: EPS,
            q_scale: 1.0 / (head_dim as f64).sqrt(),
        };
        let Turned { q, k, v } = elf_kernels::heads(&qkv, &how)?;
        let by_row = |x: Tensor| -> Result<Tensor> {
            let x = x.f_view([self.heads, batch, n, head_dim])?.f_transpose(0, 1)?;
            Ok(x.f_reshape([batch * self.heads, n, head_dim])?)
        };
        let (q, k, v) = if own_angles { (by_row(q)?, by_row(k)?, by_row(v)?) } else { (q, k, v) };
        let mixed = match known {
            None => attend(&q, &k, &v, batch, mask)?,
            Some([keys, values]) => {
                attend(&q, &Tensor::f_cat(&[keys, &k], 1)?, &Tensor::f_cat(&[values, &v], 1)?, batch, mask)?
            }
        };
        Ok((self.proj.forward(&mixed.f_transpose(1, 2)?.f_reshape([batch, n, hidden])?), [k, v]))
    }
}

/// The largest number of positions whose scores are stored as a whole in bf16, and in fp32.
const EXPLICIT_UP_TO: i64 = 512;
const SHORT_UP_TO: i64 = 128;

/// Whether attention over `n` tokens stores its scores as a whole. libtorch's fused attention saves that memory. On a CPU its
/// backward pass in bf16 is several times slower than plain batched products, and over short rows its products of one head each are
/// slower in fp32 than the arithmetic takes.
pub(crate) fn keeps_scores(n: i64, precision: Precision, on_cpu: bool) -> bool {
    let longest = match precision {
        Precision::Bf16 => EXPLICIT_UP_TO,
        Precision::F32 => SHORT_UP_TO,
    };
    on_cpu && n <= longest
}

/// `softmax(q k^T) v` of queries `[B * heads, N, head_dim]`, already scaled, and keys and values `[B * heads, M, head_dim]`; `mask` is
/// additive, `[B, 1, 1, M]` or `[B, 1, N, M]`. To `[B, heads, N, head_dim]`.
fn attend(q: &Tensor, k: &Tensor, v: &Tensor, batch: i64, mask: Option<&Tensor>) -> Result<Tensor> {
    let (rows, n, head_dim) = q.size3()?;
    let (heads, m) = (rows / batch, k.size3()?.1);
    let precision = if q.kind() == Kind::BFloat16 { Precision::Bf16 } else { Precision::F32 };
    if !keeps_scores(m, precision, !elf_kernels::takes_gpu_path(q.device())) {
        let by_row = |x: &Tensor| x.f_view([batch, heads, -1, head_dim]);
        let (q, k, v) = (by_row(q)?, by_row(k)?, by_row(v)?);
        return Ok(Tensor::f_scaled_dot_product_attention(&q, &k, &v, mask, 0.0, false, 1.0, false)?);
    }
    let by_head = |mixed: Tensor| Ok(mixed.f_view([batch, heads, n, head_dim])?);
    if precision == Precision::F32 {
        let mask = mask.map(|mask| mask.f_to_kind(Kind::Float)?.f_reshape([mask.size()[0], -1, m])).transpose()?;
        return by_head(elf_kernels::attend(q, k, v, mask.as_ref())?);
    }
    let scores = q.f_bmm(&k.f_transpose(1, 2)?)?;
    let weights = match mask {
        // A mask per query, which the kernel does not take.
        Some(mask) if mask.size()[2] > 1 => {
            let scores = scores.f_view([batch, heads, n, m])?.f_add(mask)?.f_view([rows, n, m])?;
            elf_kernels::softmax(&scores, None)?
        }
        mask => {
            let mask = mask.map(|mask| mask.f_to_kind(Kind::Float)?.f_view([batch, m])).transpose()?;
            elf_kernels::softmax(&scores, mask.as_ref())?
        }
    };
    by_head(weights.f_bmm(v)?)
}
