//! One pass of the network against the released code's numbers: 1e-5 absolute.

use elf_core::{Network, TrunkInput};
use elf_model::{Rope, sinusoidal_features};
use elf_tests::small::network_of;
use elf_tests::{Reference, assert_close, assert_close_relative, checks};
use tch::{Device, Kind, Tensor};

const TOLERANCE: f64 = checks::OF_A_PASS;

struct Case {
    reference: Reference,
    z: Tensor,
    x_prev: Tensor,
    t: Tensor,
    w: Tensor,
}

impl Case {
    fn open() -> Self {
        let reference = Reference::open("forward.safetensors");
        let get = |name: &str| reference.get(name).shallow_clone();
        Self { z: get("in.z"), x_prev: get("in.x_prev"), t: get("in.t"), w: get("in.sc_cfg_scale"), reference }
    }

    fn input(&self) -> TrunkInput<'_> {
        TrunkInput { x_prev: Some(&self.x_prev), guidance: Some(&self.w), ..TrunkInput::new(&self.z, &self.t) }
    }
}

#[test]
fn parity_of_a_pass() {
    checks::passes(Device::Cpu).assert();
}

#[test]
fn parity_scalar_features_and_rotary_tables() {
    let (case, net) = (Case::open(), network_of("model"));
    let want = case.reference.get("timestep_embedding");
    assert_close("timestep_embedding", &sinusoidal_features(&case.t), want, TOLERANCE);

    let (text, config) = (case.z.size()[1], net.config());
    let (cos, sin) = Rope::new(config.prefix_len(), text, config.head_dim(), Device::Cpu).unwrap().tables();
    assert_close("rope.cos", &cos, case.reference.get("rope.cos"), TOLERANCE);
    assert_close("rope.sin", &sin, case.reference.get("rope.sin"), TOLERANCE);
}

/// The chunked loss with its closed-form gradient equals the loss and gradient of autograd over all logits at once.
#[test]
fn parity_of_the_chunked_cross_entropy_with_autograd() {
    let (case, net) = (Case::open(), network_of("model"));
    net.params().set_requires_grad(true);
    let gate = case.t.ones_like();
    let input = TrunkInput { decode: Some(&gate), ..case.input() };
    let shape = net.shape();
    let rows = case.z.size()[0] * case.z.size()[1];
    let ids = Tensor::arange(rows, (Kind::Int64, Device::Cpu)).remainder(shape.vocab_size);
    let weights = Tensor::arange(rows, (Kind::Float, Device::Cpu)) / rows as f64;

    let gradients = |chunked: bool| {
        net.params().zero_grad();
        let hidden = net.trunk(&input).unwrap().reshape([-1, shape.hidden_size]);
        let loss = if chunked {
            net.cross_entropy(&hidden, &ids, Some(&weights)).unwrap().sum
        } else {
            let log_p = net.logits(&hidden).unwrap().log_softmax(-1, Kind::Float);
            -(log_p.gather(-1, &ids.unsqueeze(-1), false).squeeze_dim(-1) * &weights).sum(Kind::Float)
        };
        // The normalisation comes after, so that a factor remains.
        (loss.shallow_clone() * 0.25).backward();
        let of = |grad: Tensor, like: &Tensor| if grad.defined() { grad.copy() } else { like.detach().zeros_like() };
        let grads: Vec<_> = net.params().iter().map(|(n, p)| (n.to_owned(), of(p.tensor.grad(), &p.tensor))).collect();
        (loss.double_value(&[]), grads)
    };
    let ((value, ours), (wanted_value, wanted)) = (gradients(true), gradients(false));
    assert!((value - wanted_value).abs() < 1e-4 * wanted_value.abs());
    for ((name, got), (_, want)) in ours.iter().zip(&wanted) {
        assert_close_relative(name, got, want, 1e-4);
    }
}
