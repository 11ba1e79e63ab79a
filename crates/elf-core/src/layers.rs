//! The layers that T5, GPT-2 and ELF have in common. Each takes activations of any kind and uses its weights in that kind.

use std::sync::{Arc, Mutex, PoisonError};

use elf_kernels::Int8Matrix;
use tch::{Kind, Tensor};

use crate::{Fans, Init, ParamBuilder, Result, Weight};

/// `y = x W^T + b`, the weight stored as (out, in).
#[derive(Debug)]
pub struct Linear {
    weight: Weight,
    bias: Option<Weight>,
    /// The weight in 8 bits and its generation, where passes without gradient use that.
    int8: Option<Rounded>,
}

type Rounded = Arc<Mutex<Option<(u64, Int8Matrix)>>>;

impl Linear {
    /// Makes `{name}.weight` `[fan_out, fan_in]` started with `init`, and `{name}.bias` `[fan_out]` started with 0 if `bias`.
    ///
    /// # Errors
    /// If a name is taken or libtorch fails.
    pub fn new(b: &mut ParamBuilder, name: &str, fans: Fans, init: Init, bias: bool) -> Result<Self> {
        let Fans { fan_in, fan_out } = fans;
        let weight = b.matrix(&format!("{name}.weight"), [fan_out, fan_in], init, fans)?;
        let bias = bias.then(|| b.tensor(&format!("{name}.bias"), &[fan_out], Init::Constant(0.0))).transpose()?;
        Ok(Self { weight, bias, int8: None })
    }

    /// `[fan_out, fan_in]`.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// Another handle on the same layer.
    pub fn shallow_clone(&self) -> Self {
        let bias = self.bias.as_ref().map(Weight::shallow_clone);
        Self { weight: self.weight.shallow_clone(), bias, int8: self.int8.clone() }
    }

    /// Rounds weights and activations to 8 bits in passes without gradient, if `int8`; see [`Int8Matrix`].
    #[must_use]
    pub fn with_int8(self, int8: bool) -> Self {
        Self { int8: int8.then(Rounded::default), ..self }
    }

    /// `[.., fan_in]` to `[.., fan_out]`, in the kind of `x`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let kind = x.kind();
        if let Some(int8) = self.int8.as_deref().filter(|_| !x.requires_grad()) {
            // Panics on wrong shapes, as tch's plain operations do.
            return self.forward_int8(x, int8).unwrap_or_else(|e| panic!("{e:?}"));
        }
        x.linear(&self.weight.get(kind), self.bias.as_ref().map(|b| b.get(kind)))
    }

    fn forward_int8(&self, x: &Tensor, int8: &Mutex<Option<(u64, Int8Matrix)>>) -> Result<Tensor> {
        let now = self.weight.generation();
        // Locked no longer than it takes to find the matrix: several threads multiply with it.
        let matrix = {
            let mut kept = int8.lock().unwrap_or_else(PoisonError::into_inner);
            match &*kept {
                Some((of, matrix)) if *of == now => matrix.shallow_clone(),
                _ => kept.insert((now, Int8Matrix::new(self.weight.master())?)).1.shallow_clone(),
            }
        };
        Ok(matrix.linear(x, self.bias.as_ref().map(Weight::master))?)
    }
}

/// Root-mean-square normalisation over the last dimension, with a learned weight; statistics in fp32.
#[derive(Debug)]
pub struct RmsNorm {
    weight: Weight,
    eps: f64,
}

impl RmsNorm {
    /// Makes `{name}.weight` `[size]`, started with 1.
    ///
    /// # Errors
    /// If the name is taken or libtorch fails.
    pub fn new(b: &mut ParamBuilder, name: &str, size: i64, eps: f64) -> Result<Self> {
        Ok(Self { weight: b.tensor(&format!("{name}.weight"), &[size], Init::Constant(1.0))?, eps })
    }

    /// Another handle on the same layer.
    pub fn shallow_clone(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), eps: self.eps }
    }

    /// `[.., size]` to the same shape and kind.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        self.forward_to(x, x.kind())
    }

    /// [`RmsNorm::forward`] with the result in `kind`, rounded once.
    pub fn forward_to(&self, x: &Tensor, kind: Kind) -> Tensor {
        let weight = self.weight_for(x, kind);
        // Panics on wrong shapes, as tch's plain operations do.
        elf_kernels::rms_norm(x, &weight, self.eps, kind).unwrap_or_else(|e| panic!("{e:?}"))
    }

    /// `x + branch`, and [`RmsNorm::forward`] of that.
    ///
    /// # Errors
    /// If shapes or kinds do not fit.
    pub fn add_forward(&self, x: &Tensor, branch: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok(elf_kernels::add_rms_norm(x, branch, &self.weight_for(x, x.kind()), self.eps, x.kind())?)
    }

    /// The weight in the kind that is wanted: loops and kernels of our own take fp32, libtorch's kernel takes that of what it
    /// normalises.
    fn weight_for(&self, x: &Tensor, kind: Kind) -> Tensor {
        let (device, size) = (x.device(), self.weight.master().size()[0]);
        let own = !elf_kernels::takes_gpu_path(device) || elf_kernels::kernels::norms(device, size);
        self.weight.get(if own || kind == Kind::Float { Kind::Float } else { x.kind() })
    }
}

/// Layer normalisation over the last dimension, with a learned weight and bias.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Weight,
    bias: Weight,
    size: i64,
    eps: f64,
}

impl LayerNorm {
    /// Makes `{name}.weight` (1) and `{name}.bias` (0), both `[size]`.
    ///
    /// # Errors
    /// If a name is taken or libtorch fails.
    pub fn new(b: &mut ParamBuilder, name: &str, size: i64, eps: f64) -> Result<Self> {
        let weight = b.tensor(&format!("{name}.weight"), &[size], Init::Constant(1.0))?;
        let bias = b.tensor(&format!("{name}.bias"), &[size], Init::Constant(0.0))?;
        Ok(Self { weight, bias, size, eps })
    }

    /// `[.., size]` to the same shape and kind.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let kind = x.kind();
        x.layer_norm([self.size], Some(self.weight.get(kind)), Some(self.bias.get(kind)), self.eps, false)
    }
}

/// A table of vectors, looked up by integer ids.
#[derive(Debug)]
pub struct Embedding {
    weight: Weight,
}

impl Embedding {
    /// Makes `name` `[entries, size]`, normal with standard deviation `std`. The whole name is given, since the models
    /// differ in it.
    ///
    /// # Errors
    /// If the name is taken or libtorch fails.
    pub fn new(b: &mut ParamBuilder, name: &str, entries: i64, size: i64, std: f64) -> Result<Self> {
        Ok(Self { weight: b.tensor(name, &[entries, size], Init::Normal(std))? })
    }

    /// `[..]` of ids to `[.., size]`, fp32. Ids must be within the table: check them where they come from.
    pub fn forward(&self, ids: &Tensor) -> Tensor {
        Tensor::embedding(self.weight.master(), ids, -1, false, false)
    }

    /// The table itself, for heads that are tied to it.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn rms_norm_has_unit_mean_square_in_both_kinds() {
        let mut b = ParamBuilder::seeded(0, Device::Cpu);
        let norm = RmsNorm::new(&mut b, "n", 16, 1e-6).unwrap();
        let x = Tensor::arange(64, (Kind::Float, Device::Cpu)).view([4, 16]) - 20.0;
        for (kind, tolerance) in [(Kind::Float, 1e-4), (Kind::BFloat16, 2e-2)] {
            let y = norm.forward(&x.to_kind(kind));
            assert_eq!(y.kind(), kind);
            let square = y.to_kind(Kind::Float).square().mean_dim(-1, false, Kind::Float);
            assert!((square - 1.0).abs().max().double_value(&[]) < tolerance);
        }
    }
}
