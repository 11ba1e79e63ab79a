//! Laws that hold for any sizes; the package elf-tests compares numbers with the reference.

use elf_core::{
    Context, Counting, Dropout, LearnedLatents, Network, PassCount, Precision, PrecisionPolicy, TokenClasses,
    TrunkInput,
};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

use crate::{Elf, ElfConfig, Preset};

fn small() -> ElfConfig {
    ElfConfig {
        hidden_size: 32,
        depth: 4,
        num_heads: 2,
        bottleneck_dim: 8,
        num_time_tokens: 2,
        num_self_cond_cfg_tokens: 1,
        num_model_mode_tokens: 3,
        ..Preset::B.config(6, 40)
    }
}

/// A network whose zero-initialised head has been given values, so that its output is not 0.
fn network(config: ElfConfig, policy: PrecisionPolicy) -> Elf {
    let net = Elf::new(config, policy, 5, Device::Cpu).unwrap();
    let head = net.params().get("final_layer.linear.weight").unwrap();
    tch::no_grad(|| _ = head.tensor.shallow_clone().fill_(0.1));
    net.params().changed();
    net
}

fn rows(n: i64, s: i64, c: i64) -> (Tensor, Tensor) {
    let z = (Tensor::arange(n * s * c, (Kind::Float, Device::Cpu)) * 0.7).sin().view([n, s, c]);
    (z, (Tensor::arange(n, (Kind::Float, Device::Cpu)) + 1.0) / (n + 1) as f64)
}

fn difference(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

#[test]
fn elf_b_has_the_published_number_of_parameters() {
    let net = Elf::unset(Preset::B.config(512, 32100), PrecisionPolicy::F32, Device::Cpu).unwrap();
    assert_eq!(net.params().numel(), 104_579_940);
    let learned = ElfConfig { learned_latents: true, ..small() };
    let of_blocks = ElfConfig { context_table: true, vocab_head_norm: true, ..small() };
    let without_guidance = ElfConfig { num_self_cond_cfg_tokens: 0, ..small() };
    let guided = ElfConfig { word_guide_dims: 3, ..small() };
    for config in [Preset::B.config(512, 32100), small(), without_guidance, learned, of_blocks, guided] {
        let net = Elf::unset(config.clone(), PrecisionPolicy::F32, Device::Cpu).unwrap();
        assert_eq!(config.parameter_count(), net.params().numel(), "{config:?}");
    }
}

#[test]
fn bf16_blocks_stay_near_fp32() {
    let (z, t) = rows(3, 9, 6);
    let mask = Tensor::ones([3, 9], (Kind::Float, Device::Cpu));
    for mask in [None, Some(&mask)] {
        let input = TrunkInput::new(&z, &t);
        let out = |policy| {
            let net = network(small(), policy);
            let hidden = match mask {
                Some(mask) => net.trunk_with_mask(&input, mask),
                None => net.trunk(&input),
            };
            net.clean(&hidden.unwrap()).unwrap()
        };
        let (wide, narrow) = (out(PrecisionPolicy::F32), out(PrecisionPolicy::with_blocks(Precision::Bf16)));
        let scale = wide.abs().max().double_value(&[]);
        assert!(difference(&wide, &narrow) < 0.05 * scale.max(0.1), "{} of {scale}", difference(&wide, &narrow));
    }
}

/// 8-bit products stay near fp32 ones, follow the parameters when these change, and leave gradients to fp32.
#[test]
fn eight_bit_products_stay_near_fp32() {
    if !elf_core::device::cpu_features().vnni {
        eprintln!("skipped: this processor has no 8-bit dot products (VNNI)");
        return;
    }
    let (z, t) = rows(3, 9, 6);
    let (wide, rounded) = (PrecisionPolicy::F32, PrecisionPolicy { int8: true, ..PrecisionPolicy::F32 });
    let (wide, rounded) = (network(small(), wide), network(small(), rounded));
    let hidden = |net: &Elf| tch::no_grad(|| net.trunk(&TrunkInput::new(&z, &t)).unwrap());
    for _ in 0..2 {
        let (exact, near) = (hidden(&wide), hidden(&rounded));
        let error = difference(&exact, &near);
        assert!(error > 0.0 && error < 0.05 * exact.abs().max().double_value(&[]), "{error}");
        for net in [&wide, &rounded] {
            let weight = net.params().get("blocks.1.mlp.w3.weight").unwrap();
            tch::no_grad(|| _ = weight.tensor.shallow_clone().g_mul_scalar_(-2.0));
            net.params().changed();
        }
    }
    for net in [&wide, &rounded] {
        net.params().set_requires_grad(true);
    }
    let with_gradients = |net: &Elf| net.trunk(&TrunkInput::new(&z, &t)).unwrap().detach();
    assert_eq!(difference(&with_gradients(&wide), &with_gradients(&rounded)), 0.0);
    let refused = Elf::new(small(), PrecisionPolicy { int8: true, ..PrecisionPolicy::F32 }, 5, Device::Cuda(0));
    assert!(refused.is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Each row is computed as if it were alone, with others in either mode.
    #[test]
    fn rows_do_not_see_each_other(decode in proptest::collection::vec(any::<bool>(), 3)) {
        let net = network(small(), PrecisionPolicy::F32);
        let (z, t) = rows(3, 5, 6);
        let gate: Vec<f32> = decode.iter().map(|&d| f32::from(d)).collect();
        let gate = Tensor::from_slice(&gate);
        let together = net.trunk(&TrunkInput { decode: Some(&gate), x_prev: Some(&z), ..TrunkInput::new(&z, &t) }).unwrap();
        for i in 0..3 {
            let (z, t, gate) = (z.narrow(0, i, 1), t.narrow(0, i, 1), gate.narrow(0, i, 1));
            let alone = net.trunk(&TrunkInput { decode: Some(&gate), x_prev: Some(&z), ..TrunkInput::new(&z, &t) }).unwrap();
            prop_assert!(difference(&together.narrow(0, i, 1), &alone) < 1e-4);
        }
    }

    /// Positions outside the mask change nothing inside it.
    #[test]
    fn masked_positions_are_not_seen(seen in 1i64..7, value in -5.0..5.0f64) {
        let net = network(small(), PrecisionPolicy::F32);
        let (z, t) = rows(2, 7, 6);
        let mask = Tensor::arange(7, (Kind::Int64, Device::Cpu)).lt(seen).to_kind(Kind::Float).expand([2, 7], false);
        let out = |z: &Tensor| net.trunk_with_mask(&TrunkInput::new(z, &t), &mask).unwrap().narrow(1, 0, seen);
        let other = z.copy();
        let _ = other.narrow(1, seen, 7 - seen).fill_(value);
        prop_assert!(difference(&out(&z), &out(&other)) < 1e-5);
    }
}

/// What lies across the directions that a network sees changes nothing, and what lies along them does.
#[test]
fn directions_that_are_not_seen_change_nothing() {
    let (c, r) = (6, 4);
    for self_conditioned in [false, true] {
        let net = network(ElfConfig { bottleneck_dim: r, ..small() }, PrecisionPolicy::F32);
        let basis = net.seen_directions(self_conditioned).unwrap().unwrap();
        assert_eq!(basis.size(), [c, r]);
        assert!(difference(&basis.tr().matmul(&basis), &Tensor::eye(r, (Kind::Float, Device::Cpu))) < 1e-5);
        let (z, t) = rows(3, 5, c);
        let trunk = |z: &Tensor| {
            let x_prev = self_conditioned.then(|| z * 0.0);
            net.trunk(&TrunkInput { x_prev: x_prev.as_ref(), ..TrunkInput::new(z, &t) }).unwrap()
        };
        let along = z.matmul(&basis).matmul(&basis.tr());
        assert!(difference(&z, &along) > 0.1);
        assert!(difference(&trunk(&z), &trunk(&along)) < 1e-4);
        assert!(difference(&trunk(&z), &trunk(&(&z + &along * 0.5))) > 1e-3);
    }
}

#[test]
fn a_new_network_predicts_zero() {
    let net = Elf::new(small(), PrecisionPolicy::F32, 1, Device::Cpu).unwrap();
    let (z, t) = rows(2, 4, 6);
    assert_eq!(net.clean(&net.trunk(&TrunkInput::new(&z, &t)).unwrap()).unwrap().abs().max().double_value(&[]), 0.0);
}

#[test]
fn dropout_is_a_function_of_its_seed() {
    let config = ElfConfig { proj_dropout: 0.3, ..small() };
    let net = network(config, PrecisionPolicy::F32);
    assert!(net.shape().stochastic);
    let (z, t) = rows(2, 4, 6);
    let out = |seed: Option<u64>| {
        let dropout = seed.map(|seed| Dropout::new(vec![seed, seed + 10], 4));
        net.trunk(&TrunkInput { dropout: dropout.as_ref(), ..TrunkInput::new(&z, &t) }).unwrap()
    };
    assert_eq!(difference(&out(Some(1)), &out(Some(1))), 0.0);
    assert!(difference(&out(Some(1)), &out(Some(2))) > 1e-3);
    assert!(difference(&out(None), &out(Some(2))) > 1e-3);
}

/// The dropout of a row depends neither on the other rows, nor on the part of the rows that a batch of blocks computes.
#[test]
fn what_a_row_drops_is_its_own() {
    let net = network(ElfConfig { proj_dropout: 0.3, ..small() }, PrecisionPolicy::F32);
    let (s, keys) = (6, [7, 8, 9]);
    let (z, t) = rows(3, s, 6);
    let ids = Tensor::zeros([3, s], (Kind::Int64, Device::Cpu));
    let blocks = Tensor::arange(s, (Kind::Int64, Device::Cpu)).divide_scalar_mode(2, "floor").expand([3, s], false);
    // The clean tokens of `rows` before `last`, and the noisy ones from `first` to `last`.
    let behind = |rows: std::ops::Range<i64>, first: i64, last: i64| {
        let of = |x: &Tensor, from: i64| x.narrow(0, rows.start, rows.end - rows.start).narrow(1, from, last - from);
        let (latents, z, t) = (of(&z, 0), of(&z, first), t.narrow(0, rows.start, rows.end - rows.start));
        let (ids, blocks, noisy) = (of(&ids, 0), of(&blocks, 0), of(&blocks, first));
        let context =
            Context { latents: &latents, ids: &ids, blocks: &blocks, noisy_blocks: &noisy, first, memory: None };
        let dropout = Dropout::new(keys[rows.start as usize..rows.end as usize].to_vec(), s);
        let input = TrunkInput { context: Some(context), dropout: Some(&dropout), ..TrunkInput::new(&z, &t) };
        net.trunk(&input).unwrap()
    };
    let all = behind(0..3, 0, s);
    assert!(difference(&behind(1..2, 0, s), &all.narrow(0, 1, 1)) < 1e-5);
    assert!(difference(&behind(1..3, 2, 4), &all.narrow(0, 1, 2).narrow(1, 2, 2)) < 1e-5);
    // And without blocks.
    let plain = |rows: &[u64], z: &Tensor, t: &Tensor| {
        net.trunk(&TrunkInput { dropout: Some(&Dropout::new(rows.to_vec(), s)), ..TrunkInput::new(z, t) }).unwrap()
    };
    let alone = plain(&keys[2..], &z.narrow(0, 2, 1), &t.narrow(0, 2, 1));
    assert!(difference(&alone, &plain(&keys, &z, &t).narrow(0, 2, 1)) < 1e-5);
}

/// In both precisions, with dropout and with gradients from rows of both modes.
#[test]
fn recomputed_blocks_give_the_same_bits() {
    for policy in [PrecisionPolicy::F32, PrecisionPolicy::with_blocks(Precision::Bf16)] {
        let mut net = network(ElfConfig { proj_dropout: 0.3, ..small() }, policy);
        net.params().set_requires_grad(true);
        let (z, t) = rows(3, 5, small().text_encoder_dim);
        let dropout = Dropout::new(vec![7, 8, 9], 5);
        let gradients = |net: &Elf| {
            net.params().zero_grad();
            let hidden = net.trunk(&TrunkInput { dropout: Some(&dropout), ..TrunkInput::new(&z, &t) }).unwrap();
            hidden.to_kind(Kind::Float).square().mean(Kind::Float).backward();
            let all = net.params().iter().map(|(_, p)| p.tensor.grad()).filter(Tensor::defined);
            all.map(|g| g.copy()).collect::<Vec<_>>()
        };
        let kept = gradients(&net);
        net.set_recompute(true);
        let again = gradients(&net);
        assert!(kept.len() > 10 && kept.len() == again.len());
        assert!(kept.iter().zip(&again).all(|(a, b)| a.equal(b)), "{policy:?}");
    }
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let net = network(small(), PrecisionPolicy::F32);
    let (z, t) = rows(2, 4, 5);
    assert!(net.trunk(&TrunkInput::new(&z, &t)).unwrap_err().to_string().contains("[B, S, 6]"));
    let (z, _) = rows(2, 4, 6);
    let long = Tensor::zeros([3], (Kind::Float, Device::Cpu));
    assert!(net.trunk(&TrunkInput::new(&z, &long)).unwrap_err().to_string().contains("t has shape [3]"));
}

#[test]
fn a_checkpoint_needs_no_other_file_and_a_wrong_one_is_a_table() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    for config in [small(), ElfConfig { num_self_cond_cfg_tokens: 0, ..small() }] {
        let net = network(config.clone(), PrecisionPolicy::F32);
        net.save(&path).unwrap();
        let back = Elf::load(&path, PrecisionPolicy::F32, Device::Cpu).unwrap();
        assert_eq!(back.config(), &config);
        for ((name, a), (_, b)) in net.params().iter().zip(back.params().iter()) {
            assert!(a.tensor.equal(&b.tensor), "{name}");
        }
    }
    let wide = network(ElfConfig { hidden_size: 64, ..small() }, PrecisionPolicy::F32);
    let file = elf_core::weights::Weights::open(&path, elf_core::weights::ParamKind::Averaged).unwrap();
    let message = wide.params().load_from(&file).unwrap_err().to_string();
    assert!(message.contains("proj_kernel: the model has [64, 6], the file has [32, 6]"), "{message}");

    let other = Tensor::zeros([2], (Kind::Float, Device::Cpu));
    elf_core::tensorfile::write(&path, [("lm_head", &other)], Default::default()).unwrap();
    let message = Elf::load(&path, PrecisionPolicy::F32, Device::Cpu).unwrap_err().to_string();
    assert!(message.contains("is no ELF checkpoint"), "{message}");
}

#[test]
fn counting_sees_passes_rows_and_logits() {
    let net = Counting::new(network(small(), PrecisionPolicy::F32));
    net.params().set_requires_grad(true);
    let (z, t) = rows(2, 4, 6);
    let hidden = tch::no_grad(|| net.trunk(&TrunkInput::new(&z, &t))).unwrap();
    let _ = net.trunk(&TrunkInput::new(&z, &t)).unwrap();
    let _ = net.logits(&hidden.reshape([8, 32])).unwrap();
    assert_eq!(net.count(), PassCount { passes: 2, rows: 4, rows_with_grad: 2, logit_positions: 8, context_rows: 0 });
}

/// Words have an effect where they are known, and only in a network with a table; without any, a row is as one without a condition.
#[test]
fn words_of_a_condition_come_in_through_the_table() {
    let (z, t) = rows(2, 5, 6);
    let words = Tensor::from_slice(&[3i64, 4, 5, -1, -1, 3, -1, -1, -1, -1]).view([2, 5]);
    let out = |net: &Elf, z: &Tensor, words: Option<&Tensor>| {
        net.trunk(&TrunkInput { words, x_prev: Some(z), ..TrunkInput::new(z, &t) }).unwrap()
    };
    let plain = network(small(), PrecisionPolicy::F32);
    assert_eq!(difference(&out(&plain, &z, None), &out(&plain, &z, Some(&words))), 0.0);
    let net = network(ElfConfig { context_table: true, ..small() }, PrecisionPolicy::F32);
    let table = net.params().get("context_table.weight").unwrap().tensor.shallow_clone();
    let none = words.full_like(-1);
    assert!(difference(&out(&net, &z, None), &out(&net, &z, Some(&none))) < 1e-5);
    let told = out(&net, &z, Some(&words));
    assert!(difference(&told, &out(&net, &z, None)) > 1e-3);
    // A row is computed as if it were alone.
    let row = |x: &Tensor| x.narrow(0, 1, 1);
    let (alone, alone_words, time) = (row(&z), row(&words), row(&t));
    let input = TrunkInput { words: Some(&alone_words), x_prev: Some(&alone), ..TrunkInput::new(&alone, &time) };
    assert!(difference(&row(&told), &net.trunk(&input).unwrap()) < 1e-5);
    // Another vector for a word of one row, and for the word of no row, which the table has for negative ids.
    tch::no_grad(|| _ = table.get(4).fill_(0.5));
    net.params().changed();
    let changed = out(&net, &z, Some(&words));
    assert!(difference(&told.get(0), &changed.get(0)) > 1e-3);
    assert_eq!(difference(&told.get(1), &changed.get(1)), 0.0);
    tch::no_grad(|| _ = table.get(0).fill_(0.5));
    net.params().changed();
    assert_eq!(difference(&changed, &out(&net, &z, Some(&words))), 0.0);
    let short = words.narrow(1, 0, 4);
    let input = TrunkInput { words: Some(&short), ..TrunkInput::new(&z, &t) };
    assert!(plain.trunk(&input).unwrap_err().to_string().contains("words has shape [2, 4]"));
}

/// What follows a condition does not depend on how many positions the condition has, other than by its tokens.
#[test]
fn positions_behind_a_condition_begin_at_zero() {
    let net = network(ElfConfig { context_table: true, ..small() }, PrecisionPolicy::F32);
    // A word that is dropped belongs to the condition, too.
    let words = Tensor::from_slice(&[1i64, -2, -1, -1, -1, 1, -1, -1, -1, -1]).view([2, 5]);
    let rope = net.rope_behind(&words).unwrap();
    let expected = crate::rope::Rope::of_rows(6, &[0], 3, 16, Device::Cpu).unwrap();
    let behind = |from: i64, n: i64| rope.cos().narrow(0, from, n);
    assert_eq!(rope.len(), 2 * 11);
    assert!(behind(8, 3).equal(&expected.cos().narrow(0, 6, 3)));
    assert!(behind(11 + 7, 3).equal(&expected.cos().narrow(0, 6, 3)));
    assert!(behind(0, 7).equal(&expected.cos().narrow(0, 0, 7)));
}

#[test]
fn what_blocks_have_besides_is_kept_by_files() {
    let config = ElfConfig { context_table: true, vocab_head_norm: true, ..small() };
    let net = network(config.clone(), PrecisionPolicy::F32);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    net.save(&path).unwrap();
    assert_eq!(Elf::load(&path, PrecisionPolicy::F32, Device::Cpu).unwrap().config(), &config);
    assert!(small().released_order().is_ok());
    let message = config.released_order().unwrap_err().to_string();
    assert!(message.contains("context_table.weight") && message.contains(".safetensors"), "{message}");
    // The vocabulary head then reads directions, not lengths.
    let hidden = rows(1, 5, 32).0.squeeze_dim(0);
    let logits = |net: &Elf, hidden: &Tensor| net.logits(hidden).unwrap();
    assert!(difference(&logits(&net, &hidden), &logits(&net, &(&hidden * 3.0))) < 1e-4);
    let plain = network(small(), PrecisionPolicy::F32);
    assert!(difference(&logits(&plain, &hidden), &logits(&plain, &(&hidden * 3.0))) > 1e-2);
}

#[test]
fn learned_latents_are_a_normalised_table_that_files_keep() {
    let net = Elf::new(ElfConfig { learned_latents: true, ..small() }, PrecisionPolicy::F32, 5, Device::Cpu).unwrap();
    let ids = Tensor::from_slice(&[3i64, 0, 39, 3, 7, 1]).view([2, 3]);
    let latents = net.latents(&ids).unwrap();
    assert_eq!(latents.size(), [2, 3, 6]);
    let ones = Tensor::ones([2, 3], (Kind::Float, Device::Cpu));
    assert!(difference(&latents.square().mean_dim(-1, false, Kind::Float), &ones) < 1e-4);
    assert_eq!(difference(&latents.get(0).get(0), &latents.get(1).get(0)), 0.0);
    assert!(difference(&latents.get(0).get(0), &latents.get(0).get(1)) > 0.1);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    net.save(&path).unwrap();
    let again = Elf::load(&path, PrecisionPolicy::F32, Device::Cpu).unwrap();
    assert_eq!(difference(&again.latents(&ids).unwrap(), &latents), 0.0);

    let message = net.latents(&(ids + 1)).unwrap_err().to_string();
    assert!(message.contains("40 entries"), "{message}");
    // A network without learned latents starts with the same parameters as before they existed.
    let without = Elf::new(small(), PrecisionPolicy::F32, 5, Device::Cpu).unwrap();
    assert!(without.latents(&Tensor::zeros([1, 1], (Kind::Int64, Device::Cpu))).is_err());
    for (name, param) in without.params().iter() {
        assert_eq!(difference(&param.tensor, &net.params().get(name).unwrap().tensor), 0.0, "{name}");
    }
}

fn wave(shape: &[i64], step: f64) -> Tensor {
    (Tensor::arange(shape.iter().product::<i64>(), (Kind::Float, Device::Cpu)) * step).sin().view(shape)
}

/// A network computes the same with and without a word guide, which is frozen and kept in files.
#[test]
fn a_word_guide_belongs_to_a_network_that_does_not_use_it() {
    let classes = TokenClasses {
        axes: Tensor::linalg_qr(&wave(&[6, 6], 0.9), "reduced").0,
        means: wave(&[40, 3], 1.7),
        variances: Tensor::ones([6], (Kind::Float, Device::Cpu)) * 0.01,
        log_shares: Tensor::zeros([40], (Kind::Float, Device::Cpu)),
    };
    let plain = Elf::new(small(), PrecisionPolicy::F32, 5, Device::Cpu).unwrap();
    let net = Elf::new(ElfConfig { word_guide_dims: 3, ..small() }, PrecisionPolicy::F32, 5, Device::Cpu).unwrap();
    net.start_word_guide(&classes, 2.0).unwrap();
    let message = plain.start_word_guide(&classes, 2.0).unwrap_err().to_string();
    assert!(plain.word_guide().is_none() && message.contains("word_guide_dims"), "{message}");
    let (z, t) = rows(2, 4, 6);
    let estimate = |net: &Elf| net.clean(&net.trunk(&TrunkInput::new(&z, &t)).unwrap()).unwrap();
    assert_eq!(difference(&estimate(&net), &estimate(&plain)), 0.0);
    net.params().set_requires_grad(true);
    for (name, p) in net.params().iter() {
        assert_eq!(p.tensor.requires_grad(), !name.starts_with("word_guide."), "{name}");
    }

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    net.save(&path).unwrap();
    let again = Elf::load(&path, PrecisionPolicy::F32, Device::Cpu).unwrap();
    assert_eq!(again.config(), net.config());
    let guided = |net: &Elf| net.word_guide().unwrap().estimate(&z, &t).unwrap();
    assert_eq!(difference(&guided(&again), &guided(&net)), 0.0);
    assert!(guided(&net).abs().max().double_value(&[]) > 0.01);
}
