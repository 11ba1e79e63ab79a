//! A probe of a network whose knowledge can be counted by hand: it takes its input for the clean latents, and reads the word
//! whose latents are nearest.

use elf_core::{Network, NetworkShape, Noise, ParamBuilder, ParamSet, Result, Seeded, TrunkInput};
use elf_flow::{EstimateErrors, FlowPath, LatentBatch, PredictionTarget, Probe, TrainedFlow};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

const V: i64 = 6;
const B: i64 = 3;
const S: i64 = 5;

/// Words are corners of a cube of V dimensions.
struct Mirror(ParamSet);

impl Mirror {
    fn new() -> Self {
        Self(ParamBuilder::seeded(0, Device::Cpu).finish())
    }
}

impl Network for Mirror {
    fn shape(&self) -> NetworkShape {
        NetworkShape { latent_dim: V, hidden_size: V, vocab_size: V, guidance_input: false, stochastic: false }
    }

    fn params(&self) -> &ParamSet {
        &self.0
    }

    fn trunk(&self, input: &TrunkInput) -> Result<Tensor> {
        Ok(input.z.shallow_clone())
    }

    fn clean(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(hidden.shallow_clone())
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(hidden.shallow_clone())
    }
}

fn trained(self_conditioned: bool) -> TrainedFlow {
    let path = FlowPath { noise_scale: 2.0, t_eps: 0.05, prediction: PredictionTarget::Clean };
    TrainedFlow { path, self_conditioned, block_size: None }
}

/// The first position of each row is its condition.
fn batch(conditional: bool) -> LatentBatch {
    let ids = Tensor::arange(B * S, (Kind::Int64, Device::Cpu)).view([B, S]).remainder(V);
    let first = Tensor::arange(S, (Kind::Int64, Device::Cpu)).eq(0).to_kind(Kind::Float).expand([B, S], false);
    LatentBatch {
        latents: ids.one_hot(V).to_kind(Kind::Float),
        loss_mask: if conditional { 1.0 - &first } else { first.ones_like() },
        condition: conditional.then(|| first.contiguous()),
        dropped: Vec::new(),
        ids,
    }
}

fn noise() -> Seeded {
    Seeded::new(vec![1, 2, 3], Device::Cpu)
}

#[test]
fn clean_latents_are_read_and_their_end_is_known() {
    let (net, batch) = (Mirror::new(), batch(false));
    let probe = Probe::new(&net, trained(true), 1.0);
    let all = EstimateErrors { positions: (B * S) as f64, squared_error: 0.0, right: (B * S) as f64 };
    assert_eq!(probe.of_clean_latents(&batch, &batch.loss_mask).unwrap(), all);
    assert_eq!(probe.at(&batch, &batch.loss_mask, 1.0, true, &mut noise()).unwrap(), all);
    assert_eq!((all.error(), all.accuracy()), (0.0, 1.0));
    let two = Tensor::zeros([B, S], (Kind::Float, Device::Cpu));
    let _ = two.get(1).narrow(0, 2, 2).fill_(1.0);
    assert_eq!(probe.of_clean_latents(&batch, &two).unwrap().positions, 2.0);
}

#[test]
fn nothing_counted_is_nothing_known() {
    assert_eq!((EstimateErrors::default().error(), EstimateErrors::default().accuracy()), (0.0, 0.0));
}

#[test]
fn a_condition_is_given_or_withheld() {
    let (net, batch) = (Mirror::new(), batch(true));
    let probe = Probe::new(&net, trained(true), 1.0);
    let of_condition = batch.condition.as_ref().unwrap();
    let given = probe.at(&batch, of_condition, 0.0, true, &mut noise()).unwrap();
    assert_eq!(given, EstimateErrors { positions: B as f64, squared_error: 0.0, right: B as f64 });
    // In its place are zeros: one of V channels is wrong by 1.
    let withheld = probe.at(&batch, of_condition, 0.0, false, &mut noise()).unwrap();
    assert!((withheld.error() - 1.0 / V as f64).abs() < 1e-6, "{withheld:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The estimate is `z` itself, so its error is that of `(1 - t) (sigma eps - x0)`, counted here from the same draws.
    #[test]
    fn errors_are_those_of_the_noise(t in 0.0f64..=1.0, self_conditioned in any::<bool>(), conditional in any::<bool>()) {
        let (net, batch) = (Mirror::new(), batch(conditional));
        let probe = Probe::new(&net, trained(self_conditioned), 1.0);
        let known = probe.at(&batch, &batch.loss_mask, t, true, &mut noise()).unwrap();
        let eps = noise().normal("noise", &[B, S, V]).unwrap();
        let z: Tensor = t * &batch.latents + (1.0 - t) * 2.0 * eps;
        let wrong = (&z - &batch.latents).square().mean_dim(-1, false, Kind::Float) * &batch.loss_mask;
        let right = z.argmax(-1, false).eq_tensor(&batch.ids).to_kind(Kind::Float) * &batch.loss_mask;
        let positions = batch.loss_positions().unwrap();
        prop_assert_eq!(known.positions, positions);
        prop_assert!((known.error() - wrong.sum(Kind::Double).double_value(&[]) / positions).abs() < 1e-5);
        prop_assert!((known.accuracy() - right.sum(Kind::Double).double_value(&[]) / positions).abs() < 1e-6);
    }
}
