//! Full bidirectional attention with normalised, rotated queries and keys.

use elf_core::layers::Linear;
use elf_core::{Fans, Init, ParamBuilder, Result, Weight};
use tch::{Device, Kind, Tensor};

use crate::ElfConfig;
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
    pub(crate) fn new(b: &mut ParamBuilder, name: &str, config: &ElfConfig) -> Result<Self> {
        let h = config.hidden_size;
        let one = Init::Constant(1.0);
        Ok(Self {
            qkv: Linear::new(b, &format!("{name}.qkv"), Fans { fan_in: h, fan_out: 3 * h }, Init::XavierUniform, true)?,
            q_norm: b.tensor(&format!("{name}.q_norm.weight"), &[config.head_dim()], one)?,
            k_norm: b.tensor(&format!("{name}.k_norm.weight"), &[config.head_dim()], one)?,
            proj: Linear::new(b, &format!("{name}.proj"), Fans { fan_in: h, fan_out: h }, Init::XavierUniform, true)?,
            heads: config.num_heads,
        })
    }

    /// `x` `[B, N, H]` to the same; `mask` is additive, `[B, 1, 1, N]`.
    pub(crate) fn forward(&self, x: &Tensor, rope: &Rope, mask: Option<&Tensor>) -> Tensor {
        let kind = x.kind();
        let size = x.size();
        let (batch, n, hidden) = (size[0], size[1], size[2]);
        let head_dim = hidden / self.heads;
        let qkv = self.qkv.forward(x).view([batch, n, 3, self.heads, head_dim]);

        // Queries and keys go through normalisation and rotation together, in fp32.
        let qk = qkv.narrow(2, 0, 2).to_kind(Kind::Float);
        let scale = (qk.square().mean_dim(-1, true, Kind::Float) + EPS).rsqrt();
        let weights = Tensor::stack(&[self.q_norm.master(), self.k_norm.master()], 0).view([2, 1, head_dim]);
        let qk = (qk * scale * weights).view([batch, n, 2 * self.heads, head_dim]);
        let qk = rope.rotate(&qk).to_kind(kind).view([batch, n, 2, self.heads, head_dim]);

        let (q, k, v) = (heads_first(&qk.select(2, 0)), heads_first(&qk.select(2, 1)), heads_first(&qkv.select(2, 2)));
        let out = attend(&q, &k, &v, mask);
        self.proj.forward(&out.transpose(1, 2).reshape([batch, n, hidden]))
    }
}

/// Up to this many positions the scores are small enough to be held whole.
const EXPLICIT_UP_TO: i64 = 512;

/// `softmax(q k^T / sqrt(head_dim)) v`, all `[B, heads, N, head_dim]`; `mask` is additive, `[B, 1, 1, N]`.
fn attend(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Tensor {
    let shape = q.size();
    let [batch, heads, n, head_dim] = shape[..] else { unreachable!("attention works on four dimensions") };
    let scale = 1.0 / (head_dim as f64).sqrt();
    // libtorch's fused attention saves memory, but on a CPU its backward pass in bf16 is several times slower than three
    // plain batched products.
    if q.device() != Device::Cpu || q.kind() != Kind::BFloat16 || n > EXPLICIT_UP_TO {
        return Tensor::scaled_dot_product_attention(q, k, v, mask, 0.0, false, scale, false);
    }
    let flat = |x: &Tensor| x.reshape([batch * heads, n, head_dim]);
    let scores = (flat(q) * scale).bmm(&flat(k).transpose(1, 2));
    let scores = match mask {
        Some(mask) => (scores.view([batch, heads, n, n]) + mask).view([batch * heads, n, n]),
        None => scores,
    };
    scores.softmax(-1, q.kind()).bmm(&flat(v)).view(&shape[..])
}

/// `[B, N, heads, head_dim]` to `[B, heads, N, head_dim]`.
fn heads_first(x: &Tensor) -> Tensor {
    x.transpose(1, 2)
}
