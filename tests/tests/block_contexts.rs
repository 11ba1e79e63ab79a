//! Networks with a context of finished blocks: what each position sees, and what is refused.

use elf_core::{Context, Network, TrunkInput};
use elf_model::Elf;
use elf_tests::blocks::{C, S, labels, leading, near, network, network_of, network_with_table, numbers, words};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

/// The trunk's output for noisy latents with a context.
fn behind(net: &Elf, z: &Tensor, context: Context) -> Tensor {
    let t = Tensor::full([z.size()[0]], 0.4, (Kind::Float, Device::Cpu));
    let hint = z * 0.5;
    net.trunk(&TrunkInput { x_prev: Some(&hint), context: Some(context), ..TrunkInput::new(z, &t) }).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// A block depends on itself and on the clean tokens before it, and on nothing else.
    #[test]
    fn blocks_see_themselves_and_the_clean_tokens_before_them(size in 1i64..5, changed in 0i64..S) {
        let (net, with_table) = (network(), network_with_table());
        let (z, clean, blocks, ids) = (numbers(&[2, S, C], 1), numbers(&[2, S, C], 2), labels(2, S, size), words(2, S));
        let run_with = |net: &Elf, z: &Tensor, clean: &Tensor, ids: &Tensor| {
            behind(net, z, Context { latents: clean, ids, blocks: &blocks, noisy_blocks: &blocks, first: 0, memory: None })
        };
        let run = |z: &Tensor, clean: &Tensor| run_with(&net, z, clean, &ids);
        let before = run(&z, &clean);
        let other = |x: &Tensor| {
            let x = x.copy();
            let _ = x.narrow(1, changed, 1).fill_(2.0);
            x
        };
        let block = changed / size;
        let same_as = |before: &Tensor, after: &Tensor, from: i64, until: i64| {
            let until = until.min(S);
            from >= until || near(&after.narrow(1, from, until - from), &before.narrow(1, from, until - from))
        };
        let same = |after: &Tensor, from: i64, until: i64| same_as(&before, after, from, until);
        // A noisy token changes its block alone.
        let after = run(&other(&z), &clean);
        prop_assert!(same(&after, 0, block * size) && same(&after, (block + 1) * size, S));
        prop_assert!(!same(&after, block * size, (block + 1) * size));
        // A clean token changes the blocks after its own.
        let after = run(&z, &other(&clean));
        prop_assert!(same(&after, 0, (block + 1) * size));
        if (block + 1) * size < S {
            prop_assert!(!same(&after, (block + 1) * size, S));
        }
        // So does its id, for a network with a table; -1, for no token, differs from every id.
        prop_assert!(same(&run_with(&net, &z, &clean, &other(&ids)), 0, S));
        let before = run_with(&with_table, &z, &clean, &ids);
        for id in [2, -1] {
            let changed_ids = ids.copy();
            let _ = changed_ids.narrow(1, changed, 1).fill_(id);
            prop_assume!(!bool::try_from(changed_ids.eq_tensor(&ids).narrow(1, changed, 1).any()).unwrap());
            let after = run_with(&with_table, &z, &clean, &changed_ids);
            prop_assert!(same_as(&before, &after, 0, (block + 1) * size));
            if (block + 1) * size < S {
                prop_assert!(!same_as(&before, &after, (block + 1) * size, S));
            }
        }
    }

    /// A block computed alone, as in sampling, equals the same block computed with all others, as in training.
    #[test]
    fn a_block_alone_is_the_block_among_all(size in 1i64..5, which in 0i64..10) {
        let first = (which * size).min((S - 1) / size * size);
        let width = size.min(S - first);
        let net = network_with_table();
        let (z, clean, blocks, ids) = (numbers(&[2, S, C], 3), numbers(&[2, S, C], 4), labels(2, S, size), words(2, S));
        let context = Context { latents: &clean, ids: &ids, blocks: &blocks, noisy_blocks: &blocks, first: 0, memory: None };
        let all = behind(&net, &z, context);
        let alone = behind(&net, &z.narrow(1, first, width), Context {
            latents: &clean.narrow(1, 0, first),
            ids: &ids.narrow(1, 0, first),
            blocks: &blocks.narrow(1, 0, first),
            noisy_blocks: &blocks.narrow(1, first, width),
            first,
            memory: None,
        });
        prop_assert!(near(&alone, &all.narrow(1, first, width)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// A pass with a context's memory equals the pass that computes the context itself. The context has a condition, another one in
    /// each row, and the blocks after it.
    #[test]
    fn a_remembered_context_is_the_context(size in 1i64..5, which in 0i64..10, given in 0i64..4, hint in any::<bool>()) {
        let first = (which * size).min((S - 1) / size * size);
        let width = size.min(S - first);
        // As in sampling: a block that a condition reaches into is part of the context as a whole.
        let k = if given + 1 > first { first + width } else { first };
        prop_assume!(k > 0);
        let net = network_of(hint);
        let (z, clean, ids) = (numbers(&[2, width, C], 5), numbers(&[2, k, C], 6), words(2, k));
        let all = labels(2, first + width, size).masked_fill(&leading(&[given, given + 1], first + width), -1);
        let (blocks, noisy_blocks) = (all.narrow(1, 0, k), all.narrow(1, first, width));
        let context = Context { latents: &clean, ids: &ids, blocks: &blocks, noisy_blocks: &noisy_blocks, first, memory: None };
        let memory = net.remember(&context, hint).unwrap().expect("a memory");
        for (t, decode) in [(0.2, 0.0), (0.9, 0.0), (1.0, 1.0)] {
            let rows = |value: f64| Tensor::full([2], value, (Kind::Float, Device::Cpu));
            let (t, decode, x_prev) = (rows(t), rows(decode), &z * 0.5);
            let run = |context| {
                let x_prev = hint.then_some(&x_prev);
                net.trunk(&TrunkInput { x_prev, decode: Some(&decode), context: Some(context), ..TrunkInput::new(&z, &t) })
            };
            let remembered = run(Context { memory: Some(&memory), ..context }).unwrap();
            prop_assert!(near(&remembered, &run(context).unwrap()));
        }
    }
}

#[test]
fn contexts_that_do_not_fit_are_refused() {
    let net = network();
    let (z, t) = (numbers(&[2, S, C], 1), Tensor::zeros([2], (Kind::Float, Device::Cpu)));
    let (clean, blocks) = (numbers(&[2, 4, C], 2), labels(2, 4, 2));
    let (noisy_blocks, ids) = (labels(2, S, 2), words(2, 4));
    let good =
        Context { latents: &clean, ids: &ids, blocks: &blocks, noisy_blocks: &noisy_blocks, first: 0, memory: None };
    let refused = |context: Context| {
        net.trunk(&TrunkInput { context: Some(context), ..TrunkInput::new(&z, &t) }).unwrap_err().to_string()
    };
    assert!(refused(Context { latents: &z.narrow(2, 0, 3), ..good }).contains("context latents"));
    assert!(refused(Context { ids: &words(2, 5), ..good }).contains("context ids"));
    assert!(refused(Context { blocks: &noisy_blocks, ..good }).contains("context blocks"));
    assert!(refused(Context { noisy_blocks: &blocks, ..good }).contains("noisy blocks"));
    let memory = net.remember(&good, false).unwrap();
    let narrow = z.narrow(1, 0, 2);
    let other = Context { noisy_blocks: &blocks.narrow(1, 0, 2), memory: memory.as_ref(), ..good };
    let error = net.trunk(&TrunkInput { context: Some(other), ..TrunkInput::new(&narrow, &t) }).unwrap_err();
    assert!(error.to_string().contains("memory"), "{error}");
    let (mask, input) = (
        Tensor::ones([2, S], (Kind::Float, Device::Cpu)),
        TrunkInput { context: Some(good), ..TrunkInput::new(&z, &t) },
    );
    assert!(net.trunk_with_mask(&input, &mask).unwrap_err().to_string().contains("mask"));
}
