//! Embeddings of scalars and latents, the input of the blocks.

use elf_core::layers::Linear;
use elf_core::{Fans, Init, ParamBuilder, Result};
use tch::{Kind, Tensor};

pub(crate) const FEATURES: i64 = 256;
const MAX_PERIOD: f64 = 10_000.0;

/// Singular values below this share of the largest are 0 up to the rounding of fp32 weights.
const RANK_TOLERANCE: f64 = 1e-6;

/// `[cos(s f_i), sin(s f_i)]` with `f_i = exp(-ln(10000) i / 128)`: scalars `[B]` to features `[B, 256]`, fp32.
pub fn sinusoidal_features(scalars: &Tensor) -> Tensor {
    let half = FEATURES / 2;
    let exponents = Tensor::arange(half, (Kind::Float, scalars.device())) * (-MAX_PERIOD.ln() / half as f64);
    let angles = scalars.to_kind(Kind::Float).unsqueeze(-1) * exponents.exp();
    Tensor::cat(&[angles.cos(), angles.sin()], -1)
}

/// A scalar (a time or a guidance scale) as a vector of width H.
#[derive(Debug)]
pub(crate) struct ScalarEmbedder {
    first: Linear,
    second: Linear,
}

impl ScalarEmbedder {
    pub(crate) fn new(b: &mut ParamBuilder, name: &str, hidden: i64) -> Result<Self> {
        let layer = |b: &mut ParamBuilder, part: &str, fan_in: i64| {
            Linear::new(b, &format!("{name}.{part}"), Fans { fan_in, fan_out: hidden }, Init::Normal(0.02), true)
        };
        Ok(Self { first: layer(b, "mlp_0", FEATURES)?, second: layer(b, "mlp_2", hidden)? })
    }

    /// `[B]` to `[B, 1, H]`, fp32.
    pub(crate) fn forward(&self, scalars: &Tensor) -> Tensor {
        self.second.forward(&self.first.forward(&sinusoidal_features(scalars)).silu()).unsqueeze(1)
    }
}

/// Lifts latents to the width of the blocks through a bottleneck.
#[derive(Debug)]
pub(crate) struct LatentProjection {
    self_cond: Linear,
    down: Linear,
    up: Linear,
}

impl LatentProjection {
    pub(crate) fn new(b: &mut ParamBuilder, latent: i64, bottleneck: i64, hidden: i64) -> Result<Self> {
        let xavier = Init::XavierUniform;
        Ok(Self {
            self_cond: Linear::new(b, "self_cond_proj", Fans { fan_in: 2 * latent, fan_out: latent }, xavier, true)?,
            down: Linear::new(b, "text_proj.proj1", Fans { fan_in: latent, fan_out: bottleneck }, xavier, false)?,
            up: Linear::new(b, "text_proj.proj2", Fans { fan_in: bottleneck, fan_out: hidden }, xavier, true)?,
        })
    }

    /// `z` `[B, S, C]` and an optional previous estimate of the same shape to `[B, S, H]`, computed and returned in `kind`.
    pub(crate) fn forward(&self, z: &Tensor, x_prev: Option<&Tensor>, kind: Kind) -> Tensor {
        let joined = x_prev.map(|x| self.self_cond.forward(&Tensor::cat(&[z.to_kind(kind), x.to_kind(kind)], -1)));
        self.up.forward(&self.down.forward(&joined.unwrap_or_else(|| z.to_kind(kind))))
    }

    /// An orthonormal basis `[C, R]`, fp32, of the directions of `z` that pass the bottleneck: the row space of its matrix, behind that of
    /// the previous estimate if there is one.
    pub(crate) fn seen_directions(&self, self_conditioned: bool) -> Result<Tensor> {
        tch::no_grad(|| {
            let matrix = |layer: &Linear| layer.weight().master().f_to_kind(Kind::Double);
            let mut seen = matrix(&self.down)?;
            if self_conditioned {
                let joined = matrix(&self.self_cond)?;
                seen = seen.f_matmul(&joined.f_narrow(1, 0, joined.size2()?.0)?)?;
            }
            let (_, scales, directions) = seen.f_svd(true, true)?;
            let rank =
                scales.f_gt_tensor(&(scales.f_max()? * RANK_TOLERANCE))?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
            Ok(directions.f_narrow(1, 0, rank)?.f_to_kind(Kind::Float)?.f_contiguous()?)
        })
    }
}
