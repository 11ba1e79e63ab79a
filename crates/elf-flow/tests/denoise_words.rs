//! The words' cross-entropy on denoise rows.

mod toy;

use elf_core::{Network, Noise, Seeded};
use elf_flow::{ElfObjective, LatentBatch, Loss, Objective};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};
use toy::{C, Toy, V};

const S: i64 = 5;

/// Random rows, the last position of each without a loss.
fn batch(seed: u64, rows: i64) -> LatentBatch {
    let mut noise = Seeded::new((0..rows as u64).map(|row| seed ^ (row << 32)).collect(), Device::Cpu);
    let loss_mask = Tensor::ones([rows, S], (Kind::Float, Device::Cpu));
    let _ = loss_mask.narrow(1, S - 1, 1).zero_();
    LatentBatch {
        latents: noise.normal("latents", &[rows, S, C]).unwrap(),
        ids: (noise.uniform("ids", &[rows, S]).unwrap() * V as f64).floor().to_kind(Kind::Int64),
        loss_mask,
        condition: None,
        dropped: Vec::new(),
    }
}

fn loss(weight: f64, seed: u64, rows: i64) -> Loss {
    let objective = ElfObjective { denoiser_ce_weight: weight, decoder_prob: 0.4, ..ElfObjective::default() };
    let net = Toy::new(true);
    let mut noise = Seeded::new((0..rows as u64).collect(), Device::Cpu);
    objective.loss(&net, &batch(seed, rows), &mut noise).unwrap()
}

fn sum(loss: &Loss) -> f64 {
    loss.sum.double_value(&[])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// It is added to the loss of the paper with its weight, counts each loss position of a denoise row once, and its bins sum to it.
    #[test]
    fn it_is_a_term_of_its_own(seed in any::<u64>(), rows in 1i64..12, weight in 0.01f64..4.0) {
        let (without, with) = (loss(0.0, seed, rows), loss(weight, seed, rows));
        prop_assert!(without.terms.iter().all(|term| term.name != "denoise_ce"));
        prop_assert_eq!(without.count, with.count);
        let Some(l2) = without.terms.iter().find(|term| term.name == "l2") else {
            prop_assert_eq!(sum(&without), sum(&with));
            return Ok(());
        };
        let term = with.terms.iter().find(|term| term.name == "denoise_ce").unwrap();
        prop_assert_eq!(term.count, l2.count);
        let ce = term.sum.double_value(&[]);
        prop_assert!((sum(&with) - sum(&without) - weight * ce).abs() < 1e-3 * (1.0 + weight * ce), "{}", ce);
        prop_assert!(ce > 0.0 && ce / term.count < 4.0 * (V as f64).ln());
        let bins = with.by_time.iter().find(|bins| bins.name == "denoise_ce").unwrap();
        prop_assert!((bins.sums.sum(Kind::Double).double_value(&[]) - ce).abs() < 1e-3 * ce);
        prop_assert_eq!(bins.counts.sum(Kind::Double).double_value(&[]), term.count);
    }
}

/// Its gradient reaches the vocabulary head from denoise rows alone.
#[test]
fn it_teaches_the_vocabulary_head_without_decode_rows() {
    let net = Toy::new(true);
    net.params().set_requires_grad(true);
    let reached = |weight: f64| {
        net.params().zero_grad();
        let objective = ElfObjective { denoiser_ce_weight: weight, decoder_prob: 0.0, ..ElfObjective::default() };
        let mut noise = Seeded::new((0..4).collect(), Device::Cpu);
        objective.loss(&net, &batch(7, 4), &mut noise).unwrap().sum.backward();
        let grad = net.params().get("to_logits").unwrap().tensor.grad();
        grad.defined() && grad.abs().max().double_value(&[]) > 0.0
    };
    assert!(!reached(0.0) && reached(0.5));
}
