//! Densities along a flow, where the truth is known.

use elf_core::{Network, NetworkShape, Noise, ParamBuilder, ParamSet, Seeded, TrunkInput};
use elf_flow::analytic::GaussianField;
use elf_flow::{
    BoundConfig, Condition, Conditioned, Field, FlowPath, LatentBatch, LikelihoodBound, Prediction, Result,
    TrainedFlow, log_density,
};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

fn even(until: f64, steps: usize) -> Vec<f64> {
    (0..=steps).map(|i| until * i as f64 / steps as f64).collect()
}

/// The log-density of numbers that are independent and normal.
fn log_normal(z: &Tensor, mean: f64, std: f64) -> Vec<f64> {
    let terms: Tensor = ((z - mean) / std).square() * -0.5 - (std.ln() + 0.5 * std::f64::consts::TAU.ln());
    Vec::try_from(terms.sum_dim_intlist([-2, -1].as_slice(), false, Kind::Double)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Data of any mean and spread, at any time: within 1% of a nat for each number.
    #[test]
    fn densities_of_normal_data_are_known(
        mean in -1.0..1.0f64, std in 0.2..2.0f64, noise_scale in 0.5..4.0f64, until in 0.1..0.95f64, seed: u64,
    ) {
        let field = GaussianField { mean, std, noise_scale };
        let (rows, positions, channels) = (4, 5, 8);
        let mut noise = Seeded::new((0..rows).map(|row| seed.wrapping_add(row)).collect(), Device::Cpu);
        let spread = (until * until * std * std + (1.0 - until).powi(2) * noise_scale * noise_scale).sqrt();
        let z = noise.normal("data", &[rows as i64, positions, channels]).unwrap() * spread + until * mean;
        let found = log_density(&field, &z, None, &even(until, 128), &mut noise).unwrap();
        let (found, truth) = (Vec::<f64>::try_from(found).unwrap(), log_normal(&z, until * mean, spread));
        // Not of the log-densities themselves, which may be 0.
        let allowed = 0.01 * (positions * channels) as f64;
        for (found, truth) in found.iter().zip(&truth) {
            prop_assert!((found - truth).abs() < allowed, "{found}, in truth {truth}");
        }
    }
}

/// Given positions count neither as numbers nor in the divergence.
#[test]
fn densities_given_a_condition_are_those_of_the_rest() {
    let field = GaussianField { mean: 0.4, std: 0.7, noise_scale: 2.0 };
    let mut noise = Seeded::new(vec![3, 4], Device::Cpu);
    let latents = noise.normal("data", &[2, 6, 3]).unwrap();
    let mask = Tensor::from_slice(&[1f32, 1., 0., 0., 0., 0., 1., 0., 0., 0., 0., 0.]).view([2, 6]);
    let condition = Condition::new(&latents, &Tensor::zeros([2, 6], (Kind::Int64, Device::Cpu)), &mask).unwrap();
    let (times, free) = (even(0.5, 64), 1.0 - mask.unsqueeze(-1));
    let found = log_density(&Conditioned::new(field, &condition), &latents, Some(&free), &times, &mut noise).unwrap();
    let row = |row: i64, from: i64| {
        let rest = latents.narrow(0, row, 1).narrow(1, from, 6 - from);
        log_normal(&rest, 0.2, (0.25 * 0.49 + 0.25 * 4.0f64).sqrt())[0]
    };
    for (found, truth) in Vec::<f64>::try_from(found).unwrap().into_iter().zip([row(0, 2), row(1, 1)]) {
        assert!((found - truth).abs() < 1e-3 * truth.abs(), "{found}, in truth {truth}");
    }
}

/// A velocity that mixes channels: `z A`.
struct Mixing(Tensor);

impl Field for Mixing {
    fn eval(&self, z: &Tensor, t: f64, _hint: Option<&Tensor>) -> Result<Prediction> {
        let v = z.f_matmul(&self.0)?;
        Ok(Prediction { x: z + &v * (1.0 - t), v })
    }

    fn noise_scale(&self) -> f64 {
        2.0
    }
}

/// Products with random signs estimate the divergence without bias: a mean over draws is within four standard errors of the truth,
/// and single draws are not.
#[test]
fn divergences_are_estimated_without_bias() {
    let mix = Tensor::from_slice(&[0.3f32, 0.5, -0.4, -0.6, 0.2, 0.5, 0.1, 0.7, -0.3]).view([3, 3]);
    let (draws, until) = (2000, 0.6);
    let mut noise = Seeded::new((0..draws as u64).collect(), Device::Cpu);
    let z = Tensor::from_slice(&[0.4f32, -1.0, 0.7, 0.2, 1.5, -0.3]).view([1, 2, 3]).repeat([draws, 1, 1]);
    let found = log_density(&Mixing(mix.shallow_clone()), &z, None, &even(until, 32), &mut noise).unwrap();
    let trace = mix.trace().double_value(&[]) * 2.0;
    let z0 = z.narrow(0, 0, 1).matmul(&(mix * -until).linalg_matrix_exp());
    let truth = log_normal(&z0, 0.0, 2.0)[0] - until * trace;
    let (mean, deviation) = (found.mean(Kind::Double).double_value(&[]), found.std(true).double_value(&[]));
    assert!(deviation > 0.01, "{deviation}");
    assert!((mean - truth).abs() < 4.0 * deviation / (draws as f64).sqrt() + 1e-3, "{mean}, in truth {truth}");
}

/// The exact denoiser of positions that are independent: the word 1, whose latent is 1, with probability [`SHARE`], or the word 0, whose
/// latent is -1. From a clean estimate, which is the mean of the two, it reads each with its probability.
struct Exact(ParamSet);

const SHARE: f64 = 0.3;

impl Network for Exact {
    fn shape(&self) -> NetworkShape {
        NetworkShape { latent_dim: 1, hidden_size: 1, vocab_size: 2, guidance_input: false, stochastic: false }
    }

    fn params(&self) -> &ParamSet {
        &self.0
    }

    /// The estimate itself.
    fn trunk(&self, input: &TrunkInput) -> elf_core::Result<Tensor> {
        if input.decode.is_some() {
            return Ok(input.z.shallow_clone());
        }
        let t = input.t.view([-1, 1, 1]);
        let spread: Tensor = (1.0 - &t) * 2.0;
        // log P(1 | z) - log P(0 | z)
        let odds: Tensor = input.z * &t * 2.0 / spread.square() + (SHARE / (1.0 - SHARE)).ln();
        Ok((odds * 0.5).tanh())
    }

    fn clean(&self, hidden: &Tensor) -> elf_core::Result<Tensor> {
        Ok(hidden.shallow_clone())
    }

    fn logits(&self, hidden: &Tensor) -> elf_core::Result<Tensor> {
        let shares: [Tensor; 2] = [1.0 - hidden, 1.0 + hidden];
        Ok(Tensor::f_cat(&shares, -1)?.log())
    }
}

/// With the exact denoiser the bound is met, whatever is drawn: q is the law of z_T given the words then.
#[test]
fn the_exact_denoiser_meets_the_bound() {
    let net = Exact(ParamBuilder::seeded(0, Device::Cpu).finish());
    let ids = Tensor::from_slice(&[1i64, 0, 1, 0, 0, 0, 1, 1]).view([2, 4]);
    let batch = LatentBatch {
        latents: (ids.to_kind(Kind::Float) * 2.0 - 1.0).unsqueeze(-1),
        loss_mask: ids.ones_like().to_kind(Kind::Float),
        condition: None,
        dropped: Vec::new(),
        ids,
    };
    let truth = [2.0 * SHARE.ln() + 2.0 * (1.0 - SHARE).ln(); 2];
    let bounds = |trained: TrainedFlow, read_at| {
        let bound = LikelihoodBound::new(&net, trained, 1.0, BoundConfig { read_at, steps: 64 }).unwrap();
        bound.of(&batch, &mut Seeded::new(vec![5, 6], Device::Cpu)).unwrap()
    };
    for read_at in [0.2, 0.4, 0.6] {
        for self_conditioned in [false, true] {
            let trained = TrainedFlow { path: FlowPath::default(), self_conditioned, block_size: None };
            let found = bounds(trained, read_at);
            for (found, truth) in found.iter().zip(truth) {
                assert!((found.total() - truth).abs() < 2e-3, "{read_at}: {found:?}, in truth {truth}");
            }
        }
    }
}

/// Settings that make no sense are refused by name.
#[test]
fn settings_are_checked() {
    let net = Exact(ParamBuilder::seeded(0, Device::Cpu).finish());
    let trained = TrainedFlow { path: FlowPath::default(), self_conditioned: false, block_size: None };
    let refusal = |trained, read_at, steps| {
        LikelihoodBound::new(&net, trained, 1.0, BoundConfig { read_at, steps }).unwrap_err().to_string()
    };
    for read_at in [0.0, 1.0, -0.5, f64::NAN] {
        assert!(refusal(trained, read_at, 8).contains("read_at"));
    }
    assert!(refusal(trained, 0.5, 0).contains("steps"));
    assert!(refusal(TrainedFlow { block_size: Some(1), ..trained }, 0.5, 8).contains("block"));
}
