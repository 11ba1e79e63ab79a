//! Latents that are learned with the network: the same loss as with given ones, and gradients that reach them.

use elf_core::{LearnedLatents, Network, PrecisionPolicy, Seeded};
use elf_flow::{ElfObjective, LatentBatch, Objective};
use elf_model::{Elf, ElfConfig, Preset};
use elf_train::optim::OptimizerConfig;
use elf_train::{EndToEnd, TrainingObjective};
use tch::{Device, Kind, Tensor};

const TOKENS: [i64; 8] = [2, 5, 5, 1, 7, 0, 3, 1];

fn network() -> Elf {
    let sizes = ElfConfig { hidden_size: 16, depth: 1, num_heads: 2, bottleneck_dim: 4, ..Preset::B.config(6, 10) };
    let net = Elf::new(ElfConfig { learned_latents: true, ..sizes }, PrecisionPolicy::F32, 3, Device::Cpu).unwrap();
    net.params().set_requires_grad(true);
    net
}

fn batch(latents: Tensor) -> LatentBatch {
    LatentBatch {
        latents,
        ids: Tensor::from_slice(&TOKENS).view([2, 4]),
        loss_mask: Tensor::ones([2, 4], (Kind::Float, Device::Cpu)),
        condition: None,
        dropped: vec![],
    }
}

fn noise() -> Seeded {
    Seeded::new(vec![11, 12], Device::Cpu)
}

/// Rows of the table that have a gradient.
fn moved(net: &Elf) -> Vec<i64> {
    let grad = net.params().get("latent_table").unwrap().tensor.grad();
    if !grad.defined() {
        return vec![];
    }
    let rows = grad.abs().sum_dim_intlist([2i64].as_slice(), false, Kind::Float).view([-1]).nonzero().view([-1]);
    Vec::try_from(rows).unwrap()
}

#[test]
fn the_loss_is_that_of_the_same_latents_given() {
    let net = network();
    for decoder_prob in [0.0, 0.5, 1.0] {
        let objective = ElfObjective { decoder_prob, ..ElfObjective::default() };
        // The latents of the batch are ignored.
        let nonsense = batch(Tensor::zeros([2, 4, 6], (Kind::Float, Device::Cpu)));
        let learned = EndToEnd(objective).training_loss(&net, &nonsense, &mut noise()).unwrap();
        let given = net.latents(&nonsense.ids).unwrap().detach();
        let same = objective.loss(&net, &batch(given), &mut noise()).unwrap();
        let difference = (learned.mean() - same.mean()).abs().double_value(&[]);
        assert!(difference < 1e-6, "decode share {decoder_prob}: {difference}");
    }
}

#[test]
fn latents_learn_from_words_and_from_velocities() {
    let used = [0, 1, 2, 3, 5, 7];
    for decoder_prob in [0.0, 1.0] {
        let net = network();
        // The head of clean latents starts at 0, which says nothing about anything.
        let head = net.params().get("final_layer.linear.weight").unwrap();
        tch::no_grad(|| _ = head.tensor.shallow_clone().fill_(0.1));
        let objective = EndToEnd(ElfObjective { decoder_prob, ..ElfObjective::default() });
        let nothing = batch(Tensor::zeros([2, 4, 6], (Kind::Float, Device::Cpu)));
        tch::no_grad(|| objective.training_loss(&net, &nothing, &mut noise())).unwrap();
        assert!(moved(&net).is_empty());
        objective.training_loss(&net, &nothing, &mut noise()).unwrap().mean().backward();
        assert_eq!(moved(&net), used, "decode share {decoder_prob}");
    }
}

#[test]
fn muon_leaves_the_table_to_adam() {
    let net = network();
    let optimizer = OptimizerConfig::default().build(net.params()).unwrap();
    let group = optimizer.groups().iter().find(|group| group.params.iter().any(|name| name == "latent_table")).unwrap();
    assert_eq!(group.rule, "nesterov-adam");
}
