//! A small network with everything that sampling can tell apart: both inputs, words of a condition, time, guidance scale, mode, mixing over
//! positions.

use elf_core::{Fans, Init, Network, NetworkShape, ParamBuilder, ParamSet, Result, TrunkInput, Weight};
use tch::{Device, Kind, Tensor};

pub const C: i64 = 6;
pub const H: i64 = 24;
pub const V: i64 = 37;

pub struct Toy {
    params: ParamSet,
    from_z: Weight,
    from_x: Weight,
    from_scalars: Weight,
    mix: Weight,
    to_x: Weight,
    to_logits: Weight,
    guidance_input: bool,
}

impl Toy {
    pub fn new(guidance_input: bool) -> Self {
        // As the program does: MKL's own code may make a row depend on its place.
        elf_kernels::mkl::use_vector_code();
        let mut b = ParamBuilder::seeded(3, Device::Cpu);
        let mut matrix = |name: &str, shape: [i64; 2]| {
            let fans = Fans { fan_in: shape[0], fan_out: shape[1] };
            b.matrix(name, shape, Init::Normal(1.0 / (shape[0] as f64).sqrt()), fans).unwrap()
        };
        let (from_z, from_x) = (matrix("from_z", [C, H]), matrix("from_x", [C, H]));
        let (from_scalars, mix) = (matrix("from_scalars", [3, H]), matrix("mix", [H, H]));
        let (to_x, to_logits) = (matrix("to_x", [H, C]), matrix("to_logits", [H, V]));
        Self { from_z, from_x, from_scalars, mix, to_x, to_logits, guidance_input, params: b.finish() }
    }
}

impl Network for Toy {
    fn shape(&self) -> NetworkShape {
        NetworkShape {
            latent_dim: C,
            hidden_size: H,
            vocab_size: V,
            guidance_input: self.guidance_input,
            stochastic: false,
        }
    }

    fn params(&self) -> &ParamSet {
        &self.params
    }

    fn trunk(&self, input: &TrunkInput) -> Result<Tensor> {
        let zeros = input.t.zeros_like();
        let w = if self.guidance_input { input.guidance.unwrap_or(&zeros) } else { &zeros };
        let scalars = Tensor::stack(&[input.t, w, input.decode.unwrap_or(&zeros)], -1).unsqueeze(1);
        let mut h = input.z.matmul(self.from_z.master()) + scalars.matmul(self.from_scalars.master());
        if let Some(x) = input.x_prev {
            h += x.matmul(self.from_x.master());
        }
        if let Some(words) = input.words {
            h += ((words + 1.0) / V as f64).unsqueeze(-1);
        }
        let h = h.tanh();
        let context = h.mean_dim([1i64].as_slice(), true, Kind::Float).matmul(self.mix.master());
        Ok((h + context).tanh())
    }

    fn clean(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(hidden.matmul(self.to_x.master()))
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(hidden.matmul(self.to_logits.master()))
    }
}
