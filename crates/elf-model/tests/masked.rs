//! The masked transformer as its users see it.

use elf_core::{Dropout, ParamBuilder, ParamSet, PrecisionPolicy, TokenNetwork, tensorfile};
use elf_model::{MaskedConfig, MaskedTransformer};
use tch::{Device, Kind, Tensor};

fn config() -> MaskedConfig {
    MaskedConfig { vocab_size: 13, hidden_size: 24, depth: 4, num_heads: 3, mlp_ratio: 4.0, proj_dropout: 0.2 }
}

fn net(seed: u64) -> MaskedTransformer {
    MaskedTransformer::new(config(), PrecisionPolicy::F32, ParamBuilder::seeded(seed, Device::Cpu)).unwrap()
}

fn ids() -> Tensor {
    (Tensor::arange(14, (Kind::Int64, Device::Cpu)) * 5).remainder(14).view([2, 7])
}

#[test]
fn sizes_are_known_before_anything_is_made() {
    let net = net(0);
    assert_eq!(net.params().numel(), config().parameter_count());
    assert_eq!((net.vocab_size(), net.mask_id()), (13, Some(13)));
    let odd = MaskedConfig { num_heads: 5, ..config() };
    let refused = MaskedTransformer::new(odd, PrecisionPolicy::F32, ParamBuilder::seeded(0, Device::Cpu));
    assert!(refused.unwrap_err().to_string().contains("num_heads 5"));
}

#[test]
fn every_position_sees_every_other_and_no_other_row() {
    let net = net(1);
    let before = net.hidden(&ids(), None).unwrap();
    for place in [0, 6] {
        let changed = ids().copy();
        let _ = changed.get(0).narrow(0, place, 1).fill_(3);
        assert!(!changed.equal(&ids()));
        let after = net.hidden(&changed, None).unwrap();
        let moved = (&after - &before).abs().amax([-1].as_slice(), false);
        assert!(moved.get(0).min().double_value(&[]) > 0.0, "a position did not notice");
        assert_eq!(moved.get(1).max().double_value(&[]), 0.0);
    }
}

#[test]
fn the_head_names_words_alone_and_the_fused_loss_is_its_cross_entropy() {
    let net = net(2);
    let hidden = net.hidden(&ids(), None).unwrap().flatten(0, 1);
    let logits = net.logits(&hidden).unwrap();
    assert_eq!(logits.size(), [14, 13]);
    let targets = Tensor::arange(14, (Kind::Int64, Device::Cpu)).remainder(13);
    let weights = Tensor::linspace(0.5, 4.0, 14, (Kind::Float, Device::Cpu));
    let nll = -logits.log_softmax(-1, Kind::Float).gather(1, &targets.unsqueeze(1), false).squeeze_dim(1);
    let plain = (nll * &weights).sum(Kind::Float);
    let fused = net.cross_entropy_sum(&hidden, &targets, Some(&weights)).unwrap();
    assert!((fused - &plain).abs().double_value(&[]) < 1e-4 * plain.double_value(&[]));
}

/// Gradients of all parameters of a loss, with dropout.
fn gradients(net: &MaskedTransformer) -> Vec<(String, Tensor)> {
    net.params().set_requires_grad(true);
    net.params().zero_grad();
    let hidden = net.hidden(&ids(), Some(&Dropout::new(vec![9, 10], 7))).unwrap().flatten(0, 1);
    let targets = Tensor::arange(14, (Kind::Int64, Device::Cpu)).remainder(13);
    net.cross_entropy_sum(&hidden, &targets, None).unwrap().backward();
    let of = |params: &ParamSet| params.iter().map(|(n, p)| (n.to_owned(), p.tensor.grad().copy())).collect();
    of(net.params())
}

#[test]
fn blocks_that_are_run_again_give_the_same_gradients() {
    let mut net = net(3);
    let kept = gradients(&net);
    net.set_recompute(true);
    for ((name, a), (_, b)) in kept.iter().zip(gradients(&net)) {
        assert!(a.abs().max().double_value(&[]) > 0.0, "{name} has no gradient");
        assert!((a - b).abs().max().double_value(&[]) < 1e-5, "{name}");
    }
}

#[test]
fn dropout_acts_with_a_seed_alone() {
    let net = net(4);
    let pass = |seed: Option<u64>| {
        let dropout = seed.map(|seed| Dropout::new(vec![seed, seed + 10], 7));
        net.hidden(&ids(), dropout.as_ref()).unwrap()
    };
    assert!(net.stochastic() && pass(None).equal(&pass(None)) && pass(Some(1)).equal(&pass(Some(1))));
    assert!(!pass(Some(1)).equal(&pass(None)) && !pass(Some(1)).equal(&pass(Some(2))));
}

#[test]
fn foreign_ids_and_files_are_refused() {
    let net = net(5);
    for id in [-1i64, 14] {
        let message = net.hidden(&Tensor::from_slice(&[id]).view([1, 1]), None).unwrap_err().to_string();
        assert!(message.contains(&format!("token id {id}")) && message.contains("tokenizer"), "{message}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("masked.safetensors");
    tensorfile::write(&path, net.params().iter().map(|(n, p)| (n, &p.tensor)), Default::default()).unwrap();
    let again = MaskedTransformer::load(config(), &path, PrecisionPolicy::F32, Device::Cpu).unwrap();
    assert!(again.hidden(&ids(), None).unwrap().equal(&net.hidden(&ids(), None).unwrap()));
    let larger = MaskedConfig { vocab_size: 14, ..config() };
    let message = MaskedTransformer::load(larger, &path, PrecisionPolicy::F32, Device::Cpu).unwrap_err().to_string();
    assert!(message.contains("tokens.weight") && message.contains("[15, 24]"), "{message}");
}
