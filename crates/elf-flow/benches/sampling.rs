//! What samplers add to the cost of a network (nothing to speak of), and what the size of decoding's chunks does.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use elf_core::{Fans, Init, Network, NetworkShape, ParamBuilder, ParamSet, Seeded, TrunkInput, Weight};
use elf_flow::analytic::GaussianField;
use elf_flow::sampler::{BUILTIN, Registry, SamplerChoice, State, integrate};
use elf_flow::{Decoder, FlowPath, TrainedFlow};
use tch::{Device, Kind, Tensor};

/// Only a vocabulary head, of T5's size.
struct Head {
    params: ParamSet,
    weight: Weight,
}

const C: i64 = 512;
const V: i64 = 32_100;

impl Head {
    fn new() -> Self {
        let mut builder = ParamBuilder::seeded(1, Device::Cpu);
        let fans = Fans { fan_in: C, fan_out: V };
        let weight = builder.matrix("head", [C, V], Init::XavierUniform, fans).expect("the only parameter");
        Self { weight, params: builder.finish() }
    }
}

impl Network for Head {
    fn shape(&self) -> NetworkShape {
        NetworkShape { latent_dim: C, hidden_size: C, vocab_size: V, guidance_input: false, stochastic: false }
    }

    fn params(&self) -> &ParamSet {
        &self.params
    }

    fn trunk(&self, input: &TrunkInput) -> elf_core::Result<Tensor> {
        Ok(input.z.shallow_clone())
    }

    fn clean(&self, hidden: &Tensor) -> elf_core::Result<Tensor> {
        Ok(hidden.shallow_clone())
    }

    fn logits(&self, hidden: &Tensor) -> elf_core::Result<Tensor> {
        Ok(hidden.f_matmul(self.weight.master())?)
    }
}

fn samplers(c: &mut Criterion) {
    let mut group = c.benchmark_group("32 steps of [8, 128, 512]");
    let field = GaussianField { mean: 0.0, std: 1.0, noise_scale: 2.0 };
    let times: Vec<f64> = (0..=32).map(|i| f64::from(i) / 32.0).collect();
    let z0 = Tensor::randn([8, 128, C], (Kind::Float, Device::Cpu)) * 2.0;
    for entry in BUILTIN {
        let config = Registry::builtin().config(&SamplerChoice::named(entry.name())).expect("a built-in sampler");
        group.bench_function(entry.name(), |b| {
            b.iter(|| {
                let mut noise = Seeded::new((0..8).collect(), Device::Cpu);
                let start = State::start(z0.shallow_clone());
                integrate(&field, &mut *config.build(), start, &times, &mut noise, |_, _| Ok(())).expect("a run")
            });
        });
    }
}

fn decoding(c: &mut Criterion) {
    let mut group = c.benchmark_group("argmax of [4, 256, 32100]");
    group.sample_size(10);
    let net = Head::new();
    let trained = TrainedFlow { path: FlowPath::default(), self_conditioned: false, block_size: None };
    let z = Tensor::randn([4, 256, C], (Kind::Float, Device::Cpu));
    for positions in [64, 256, 1024] {
        group.bench_with_input(BenchmarkId::from_parameter(positions), &positions, |b, &positions| {
            let decoder = Decoder::new(&net, trained, 1.0).in_chunks_of(positions);
            b.iter(|| tch::no_grad(|| decoder.ids(&z, None)).expect("ids"));
        });
    }
}

criterion_group!(benches, samplers, decoding);
criterion_main!(benches);
