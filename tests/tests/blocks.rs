//! Texts written block after block: who sees whom, what is learned, and what a batch costs.

use std::cell::RefCell;

use elf_core::{
    Context, Counting, Network, NetworkShape, Noise, ParamSet, PrecisionPolicy, Seeded, TokenDraw, TrunkInput,
};
use elf_flow::sampler::{Registry, SamplerChoice};
use elf_flow::{
    Condition, Cost, ElfObjective, Error, GenerateConfig, Generated, Generator, Guide, LatentBatch, Objective,
    Reencode, Request, Result, TrainedFlow,
};
use elf_model::{Elf, ElfConfig, Preset};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

const C: i64 = 6;
const V: i64 = 40;
const S: i64 = 10;

/// A network whose heads, which start at zero, have been given values.
fn network() -> Elf {
    network_of(false)
}

/// The same, which knows clean tokens by a table, too, and normalises what its vocabulary head reads.
fn network_with_table() -> Elf {
    network_of(true)
}

fn network_of(more: bool) -> Elf {
    network_with(more, 0.0)
}

/// With a depth in whose middle there is dropout.
fn network_with(more: bool, proj_dropout: f64) -> Elf {
    let config = ElfConfig {
        hidden_size: 32,
        depth: if proj_dropout > 0.0 { 4 } else { 3 },
        proj_dropout,
        num_heads: 2,
        bottleneck_dim: 8,
        num_time_tokens: 2,
        num_self_cond_cfg_tokens: 1,
        num_model_mode_tokens: 1,
        context_table: more,
        vocab_head_norm: more,
        ..Preset::B.config(C, V)
    };
    let net = Elf::new(config, PrecisionPolicy::F32, 5, Device::Cpu).unwrap();
    for (i, (name, parameter)) in net.params().iter().enumerate() {
        if name.starts_with("final_layer.linear") || name.starts_with("unembed") || name.starts_with("context_table") {
            let values = Seeded::new(vec![i as u64], Device::Cpu)
                .normal("values", &[&[1], &parameter.tensor.size()[..]].concat());
            tch::no_grad(|| parameter.tensor.shallow_clone().copy_(&(values.unwrap().squeeze_dim(0) * 0.3)));
        }
    }
    net.params().changed();
    net
}

fn draws(rows: i64, seed: u64) -> Seeded {
    Seeded::new((0..rows as u64).map(|row| seed * 1000 + row).collect(), Device::Cpu)
}

fn numbers(shape: &[i64], seed: u64) -> Tensor {
    draws(shape[0], seed).normal("numbers", shape).unwrap()
}

fn near(a: &Tensor, b: &Tensor) -> bool {
    a.allclose(b, 1e-4, 1e-4, false)
}

fn labels(rows: i64, positions: i64, size: i64) -> Tensor {
    let positions = Tensor::arange(positions, (Kind::Int64, Device::Cpu));
    positions.divide_scalar_mode(size, "floor").unsqueeze(0).repeat([rows, 1])
}

/// The first positions of each row, as many as its length: bool, `[B, positions]`.
fn leading(lengths: &[i64], positions: i64) -> Tensor {
    Tensor::arange(positions, (Kind::Int64, Device::Cpu))
        .unsqueeze(0)
        .lt_tensor(&Tensor::from_slice(lengths).unsqueeze(-1))
}

/// The mask of conditions of these lengths, `[B, S]`.
fn condition_mask(lengths: &[i64]) -> Tensor {
    leading(lengths, S).to_kind(Kind::Float)
}

/// A word for each position, another one in each row.
fn words(rows: i64, positions: i64) -> Tensor {
    (Tensor::arange(rows * positions, (Kind::Int64, Device::Cpu)) * 7).remainder(V).view([rows, positions])
}

/// What the trunk says of noisy latents behind a context.
fn behind(net: &Elf, z: &Tensor, context: Context) -> Tensor {
    let t = Tensor::full([z.size()[0]], 0.4, (Kind::Float, Device::Cpu));
    let hint = z * 0.5;
    net.trunk(&TrunkInput { x_prev: Some(&hint), context: Some(context), ..TrunkInput::new(z, &t) }).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// A block depends on itself and on the clean tokens before it, and on nothing else.
    #[test]
    fn blocks_see_themselves_and_what_stands_before_them(size in 1i64..5, changed in 0i64..S) {
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
        // A noisy token is its block's affair alone.
        let after = run(&other(&z), &clean);
        prop_assert!(same(&after, 0, block * size) && same(&after, (block + 1) * size, S));
        prop_assert!(!same(&after, block * size, (block + 1) * size));
        // A clean one that of the blocks behind its own.
        let after = run(&z, &other(&clean));
        prop_assert!(same(&after, 0, (block + 1) * size));
        if (block + 1) * size < S {
            prop_assert!(!same(&after, (block + 1) * size, S));
        }
        // And so its word, for a network that looks it up; no word is another thing than any word.
        prop_assert!(same(&run_with(&net, &z, &clean, &other(&ids)), 0, S));
        let before = run_with(&with_table, &z, &clean, &ids);
        for word in [2, -1] {
            let changed_ids = ids.copy();
            let _ = changed_ids.narrow(1, changed, 1).fill_(word);
            prop_assume!(!bool::try_from(changed_ids.eq_tensor(&ids).narrow(1, changed, 1).any()).unwrap());
            let after = run_with(&with_table, &z, &clean, &changed_ids);
            prop_assert!(same_as(&before, &after, 0, (block + 1) * size));
            if (block + 1) * size < S {
                prop_assert!(!same_as(&before, &after, (block + 1) * size, S));
            }
        }
    }

    /// What sampling computes of one block is what training computes of it among all.
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

    /// What is remembered of a context is what a pass would have made of it: a condition, another one in each row, and the blocks behind it.
    #[test]
    fn a_remembered_context_is_the_context(size in 1i64..5, which in 0i64..10, given in 0i64..4, hint in any::<bool>()) {
        let first = (which * size).min((S - 1) / size * size);
        let width = size.min(S - first);
        // As in sampling: a block that a condition reaches into is there as a whole.
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

fn batch(conditional: bool) -> LatentBatch {
    let condition = condition_mask(&[3, 0, 5, 4]);
    LatentBatch {
        latents: numbers(&[4, S, C], 7),
        ids: Tensor::arange(4 * S, (Kind::Int64, Device::Cpu)).remainder(V).view([4, S]),
        loss_mask: if conditional { 1.0 - &condition } else { condition.ones_like() },
        condition: conditional.then_some(condition),
        dropped: if conditional { vec![false, false, true, false] } else { Vec::new() },
    }
}

fn loss(objective: &ElfObjective, net: &dyn Network, batch: &LatentBatch) -> f64 {
    objective.loss(net, batch, &mut draws(4, 9)).unwrap().mean().double_value(&[])
}

/// A network that notes the contexts of its passes: latents, ids, blocks, noisy blocks.
struct Watched {
    net: Elf,
    seen: RefCell<Vec<[Tensor; 4]>>,
}

impl Network for Watched {
    fn shape(&self) -> NetworkShape {
        self.net.shape()
    }

    fn params(&self) -> &ParamSet {
        self.net.params()
    }

    fn trunk(&self, input: &TrunkInput) -> elf_core::Result<Tensor> {
        if let Some(Context { latents, ids, blocks, noisy_blocks, .. }) = input.context {
            self.seen.borrow_mut().push([latents, ids, blocks, noisy_blocks].map(Tensor::copy));
        }
        self.net.trunk(input)
    }

    fn clean(&self, hidden: &Tensor) -> elf_core::Result<Tensor> {
        self.net.clean(hidden)
    }

    fn logits(&self, hidden: &Tensor) -> elf_core::Result<Tensor> {
        self.net.logits(hidden)
    }
}

#[test]
fn a_row_is_learned_behind_itself() {
    let net = Watched { net: network(), seen: RefCell::default() };
    for (conditional, decoder_prob) in [(false, 0.0), (true, 0.0), (true, 1.0)] {
        let objective = ElfObjective { block_size: Some(4), decoder_prob, ..ElfObjective::default() };
        let batch = batch(conditional);
        loss(&objective, &net, &batch);
        // The last pass is the one with a gradient, of all rows.
        let [latents, ids, blocks, noisy_blocks] = net.seen.take().pop().expect("a pass");
        // One row has no condition, so that every block is learned from.
        assert!(blocks.equal(&noisy_blocks));
        // Rows come in another order; their latents tell which is which.
        for row in 0..4 {
            let dropped = batch.dropped.get(row as usize) == Some(&true);
            let clean = batch.latents.get(row);
            let given = if conditional { [3, 0, 5, 4][row as usize] } else { 0 };
            if dropped {
                let _ = clean.narrow(0, 0, given).zero_();
            }
            let place = (0..4).find(|&i| latents.get(i).equal(&clean)).expect("each row is its own context");
            let expected: Vec<i64> = (0..S).map(|i| if i < given { -1 } else { i / 4 }).collect();
            assert_eq!(Vec::<i64>::try_from(blocks.get(place)).unwrap(), expected);
            // What was dropped has no words.
            let word = |i: i64| if dropped && i < given { -1 } else { batch.ids.int64_value(&[row, i]) };
            assert_eq!(Vec::<i64>::try_from(ids.get(place)).unwrap(), (0..S).map(word).collect::<Vec<_>>());
        }
    }
    let wrong = ElfObjective { block_size: Some(0), ..ElfObjective::default() };
    assert!(wrong.check().unwrap_err().to_string().contains("block_size"));
    // Without blocks there is no context.
    loss(&ElfObjective::default(), &net, &batch(false));
    assert!(net.seen.take().is_empty());
}

/// Draws that are the same for the same row and position, however long rows are.
struct ByPosition;

impl Noise for ByPosition {
    fn normal(&mut self, name: &str, shape: &[i64]) -> elf_core::Result<Tensor> {
        let mut wide = shape.to_vec();
        if shape.len() > 1 {
            wide[1] = 4 * S;
        }
        let all = draws(wide[0], name.len() as u64).normal("by position", &wide)?;
        Ok(if shape.len() > 1 { all.narrow(1, 0, shape[1]) } else { all })
    }

    fn uniform(&mut self, name: &str, shape: &[i64]) -> elf_core::Result<Tensor> {
        draws(shape[0], name.len() as u64).uniform(name, shape)
    }

    fn coins(&mut self, name: &str, rows: usize) -> elf_core::Result<Vec<f64>> {
        draws(rows as i64, name.len() as u64).coins(name, rows)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Rows are noisy from the first block that is learned from to the last; what is left out changes neither the loss nor its gradient.
    #[test]
    fn only_what_is_learned_from_is_computed(size in 1i64..5, conditions in 0i64..4, more in 0i64..6, decoder_prob in 0.0..1.0) {
        let plain = batch(false);
        let condition = condition_mask(&[conditions, conditions + 1, conditions, conditions + 2]);
        let batch = LatentBatch { loss_mask: 1.0 - &condition, condition: Some(condition), ..plain };
        // The same rows, filled up with what carries no loss.
        let longer = |x: &Tensor, with: f64| {
            let mut shape = x.size();
            shape[1] = more;
            Tensor::cat(&[x, &Tensor::full(&shape[..], with, (x.kind(), Device::Cpu))], 1)
        };
        let filled = LatentBatch {
            latents: longer(&batch.latents, 0.7),
            ids: longer(&batch.ids, 1.0),
            loss_mask: longer(&batch.loss_mask, 0.0),
            condition: batch.condition.as_ref().map(|mask| longer(mask, 0.0)),
            dropped: Vec::new(),
        };
        let net = Watched { net: network_with_table(), seen: RefCell::default() };
        net.params().set_requires_grad(true);
        let objective = ElfObjective { block_size: Some(size), decoder_prob, ..ElfObjective::default() };
        let learned = |batch: &LatentBatch| {
            net.params().zero_grad();
            let loss = objective.loss(&net, batch, &mut ByPosition).unwrap();
            loss.mean().backward();
            let gradients: Vec<Tensor> =
                net.params().iter().map(|(_, p)| p.tensor.grad()).filter(Tensor::defined).map(|g| g.reshape([-1])).collect();
            let [_, _, blocks, noisy_blocks] = net.seen.take().pop().expect("a pass");
            (loss.mean().double_value(&[]), Tensor::cat(&gradients, 0), blocks.size()[1], noisy_blocks.size()[1])
        };
        let (loss, gradient, clean, noisy) = learned(&batch);
        prop_assert_eq!((clean, noisy), (S, S - conditions / size * size));
        let (same_loss, same_gradient, clean, noisy) = learned(&filled);
        // A block that the filling reaches into is there as a whole.
        let end = ((S + size - 1) / size * size).min(S + more);
        prop_assert_eq!((clean, noisy), (end, end - conditions / size * size));
        if end == S {
            prop_assert!((loss - same_loss).abs() < 1e-5 * loss.abs().max(1.0), "{} {}", loss, same_loss);
            prop_assert!(gradient.allclose(&same_gradient, 1e-3, 1e-5, false));
        }
    }
}

/// A condition counts wherever the blocks lie, unless it is dropped.
#[test]
fn conditions_are_seen_by_all_blocks() {
    let net = network();
    let objective = ElfObjective { block_size: Some(4), decoder_prob: 0.0, ..ElfObjective::default() };
    let before = batch(true);
    for (row, counts) in [(0i64, true), (2, false)] {
        let after = batch(true);
        let _ = after.latents.narrow(0, row, 1).narrow(1, 0, 1).fill_(3.0);
        let differs = (loss(&objective, &net, &after) - loss(&objective, &net, &before)).abs() > 1e-6;
        assert_eq!(differs, counts, "row {row}");
    }
}

/// Stands for an encoder: a latent for each token.
#[derive(Default)]
struct Table {
    calls: RefCell<Vec<usize>>,
}

impl Reencode for Table {
    fn latents(&self, ids: &Tensor, known: usize) -> Result<Tensor> {
        self.calls.borrow_mut().push(known);
        let latents = (ids.to_kind(Kind::Float).unsqueeze(-1) * Tensor::arange(C, (Kind::Float, Device::Cpu))).sin();
        // Nobody may look at what is not known yet.
        let _ = latents.narrow(1, known as i64, S - known as i64).fill_(f64::NAN);
        Ok(latents)
    }
}

fn trained(block_size: Option<i64>) -> TrainedFlow {
    TrainedFlow { block_size, ..TrainedFlow::from(&ElfObjective::default()) }
}

fn config(sampler: &str) -> GenerateConfig {
    GenerateConfig { steps: 5, sampler: SamplerChoice::named(sampler), ..GenerateConfig::default() }
}

fn generate(net: &dyn Network, size: Option<i64>, config: GenerateConfig, request: &Request) -> Result<Generated> {
    Generator::new(net, trained(size), config, &Registry::builtin())?.generate(request, &mut ())
}

#[test]
fn each_block_costs_a_run_and_a_reading() {
    let (net, seeds) = (Counting::new(network()), [3, 4]);
    let table = Table::default();
    let request = Request { reencoding: Some(&table), ..Request::new(&seeds, S) };
    let got = generate(&net, Some(4), config("euler"), &request).unwrap();
    assert_eq!((got.cost.passes, net.count().rows), (3 * 6, 2 * 3 * 6));
    // Nothing stands before the first block.
    assert_eq!((got.cost.context_passes, net.count().context_rows), (2, 2 * 2));
    assert_eq!(got.cost.positions, 2 * S as u64);
    assert_eq!(net.count().logit_positions, 2 * S as u64, "every position is read once");
    assert_eq!(*table.calls.borrow(), [4, 8]);
    assert!(bool::try_from(got.z.isfinite().all()).unwrap());

    // A row ends with the token that it has written first: then all have ended after one block.
    let ended = got.ids.iter().map(|ids| ids[0]).collect::<Vec<_>>();
    let one = Request { seeds: &seeds[..1], end: Some(ended[0]), ..request };
    let short = generate(&net, Some(4), config("euler"), &one).unwrap();
    assert_eq!((short.cost.passes, short.cost.context_passes, short.cost.positions), (6, 0, 4));
    assert_eq!(short.ids[0][..4], got.ids[0][..4]);
    assert!(short.ids[0][4..].iter().all(|&id| id == ended[0]));

    let error = generate(&net, Some(4), config("euler"), &Request::new(&seeds, S)).unwrap_err();
    assert!(matches!(&error, Error::Setting { .. }) && error.to_string().contains("block_size"), "{error}");
    let other = Guide { net: &net, trained: trained(None), scale: 2.0 };
    let generator = Generator::new(&net, trained(Some(4)), config("euler"), &Registry::builtin()).unwrap();
    assert!(generator.with_guide(other).unwrap_err().to_string().contains("block"));
}

/// A network that remembers nothing, and works everything out in each pass.
struct Forgetful(Elf);

impl Network for Forgetful {
    fn shape(&self) -> NetworkShape {
        self.0.shape()
    }

    fn params(&self) -> &ParamSet {
        self.0.params()
    }

    fn trunk(&self, input: &TrunkInput) -> elf_core::Result<Tensor> {
        assert!(input.context.is_none_or(|context| context.memory.is_none()), "nothing was remembered");
        self.0.trunk(input)
    }

    fn clean(&self, hidden: &Tensor) -> elf_core::Result<Tensor> {
        self.0.clean(hidden)
    }

    fn logits(&self, hidden: &Tensor) -> elf_core::Result<Tensor> {
        self.0.logits(hidden)
    }
}

/// Under condition guidance, where passes are of twice the rows, too.
#[test]
fn texts_do_not_depend_on_what_is_remembered() {
    let seeds = [11, 12, 13];
    let condition = Condition::new(&numbers(&[3, S, C], 8), &words(3, S), &condition_mask(&[2, 0, 5])).unwrap();
    let table = Table::default();
    let request = Request { condition: Some(&condition), reencoding: Some(&table), ..Request::new(&seeds, S) };
    for (condition_guidance, with_table) in [(1.0, false), (2.0, false), (1.0, true), (2.0, true)] {
        let config = GenerateConfig { condition_guidance, ..config("euler") };
        let net = Counting::new(network_of(with_table));
        let remembering = generate(&net, Some(2), config.clone(), &request).unwrap();
        let forgetful = generate(&Forgetful(network_of(with_table)), Some(2), config, &request).unwrap();
        assert_eq!(remembering.ids, forgetful.ids);
        assert!(near(&remembering.z, &forgetful.z));
        assert_eq!(Cost { context_passes: 0, ..remembering.cost }, forgetful.cost);
        assert_eq!(forgetful.cost.context_passes, 0);
        // What is given reaches into the first of the five blocks. With guidance the passes of twice the rows remember for themselves,
        // and what stands is read once more for the words.
        let expected = if condition_guidance == 1.0 { 5 } else { 5 * (1 + 2) };
        assert_eq!((remembering.cost.context_passes, net.count().context_rows), (expected, 3 * expected));
    }
}

/// The condition's, those that were read in the blocks before, and in the half without its condition none in its place.
#[test]
fn what_stands_has_its_words() {
    let (seeds, given) = ([11, 12], [3i64, 1]);
    let condition = Condition::new(&numbers(&[2, S, C], 8), &words(2, S), &condition_mask(&given)).unwrap();
    let table = Table::default();
    let request = Request { condition: Some(&condition), reencoding: Some(&table), ..Request::new(&seeds, S) };
    for condition_guidance in [1.0, 2.0] {
        let net = Watched { net: network_with_table(), seen: RefCell::default() };
        let config = GenerateConfig { condition_guidance, ..config("euler") };
        let got = generate(&net, Some(2), config, &request).unwrap();
        // The last pass reads the last block: its rows with their conditions, behind all blocks but that one.
        let passes = net.seen.take();
        let [_, ids, ..] = passes.last().expect("a pass");
        for (row, &given) in (0..).zip(&given) {
            for i in 0..S - 2 {
                let expected = match i < given {
                    true => words(2, S).int64_value(&[row, i]),
                    false => got.ids[row as usize][i as usize],
                };
                assert_eq!(ids.int64_value(&[row, i]), expected, "row {row}, position {i}");
            }
        }
        if let Some([_, ids, blocks, _]) = passes.iter().find(|[latents, ..]| latents.size()[0] == 4) {
            assert!(condition_guidance > 1.0);
            let without = ids.narrow(0, 2, 2).masked_select(&blocks.narrow(0, 2, 2).eq(-1));
            assert!(without.numel() > 0 && bool::try_from(without.eq(-1).all()).unwrap());
        } else {
            assert_eq!(condition_guidance, 1.0);
        }
    }
}

/// Whatever the lengths of the conditions beside it, and however many blocks they fill.
#[test]
fn a_row_does_not_depend_on_its_batch() {
    let net = network_with_table();
    let lengths = |seeds: &[u64]| seeds.iter().map(|seed| (seed % 7) as i64).collect::<Vec<_>>();
    let run = |sampler: &str, guidance: f64, seeds: &[u64]| {
        let latents = Seeded::new(seeds.to_vec(), Device::Cpu).normal("latents", &[seeds.len() as i64, S, C]).unwrap();
        let ids =
            Tensor::from_slice(&seeds.iter().map(|&seed| seed as i64).collect::<Vec<_>>()).unsqueeze(-1).repeat([1, S]);
        let condition = Condition::new(&latents, &ids, &condition_mask(&lengths(seeds))).unwrap();
        let table = Table::default();
        let request = Request { condition: Some(&condition), reencoding: Some(&table), ..Request::new(seeds, S) };
        // Words are drawn where there is no condition guidance.
        let draw = if guidance == 1.0 { TokenDraw::default() } else { TokenDraw::LIKELIEST };
        let config = GenerateConfig { condition_guidance: guidance, pad_to: Some(4), draw, ..config(sampler) };
        let generator = Generator::new(&net, trained(Some(3)), config, &Registry::builtin()).unwrap();
        let guide = Guide { net: &net, trained: trained(Some(3)), scale: 1.5 };
        let got = generator.with_guide(guide).unwrap().generate(&request, &mut ()).unwrap();
        assert!(condition.pin(&got.z).unwrap().equal(&got.z), "a condition stays as it is");
        got.ids
    };
    for (sampler, guidance) in [("euler", 1.0), ("sde", 2.0), ("heun", 2.0)] {
        let text = |seeds: &[u64], row: usize| {
            let given = lengths(seeds)[row] as usize;
            run(sampler, guidance, seeds)[row][given..].to_vec()
        };
        assert_eq!(text(&[13], 0), text(&[7, 8, 13, 9], 2), "{sampler}");
        assert_eq!(text(&[7], 0), text(&[13, 7], 1), "{sampler}");
    }
}

/// What a row drops does not depend on the rows beside it, nor on how much of the rows their blocks need.
#[test]
fn a_training_loss_with_dropout_does_not_depend_on_batching() {
    let (net, rows) = (network_with(true, 0.3), 12);
    let (latents, ids) = (numbers(&[rows, S, C], 3), words(rows, S));
    // Of rows at even places the first part is learned, of the others the last.
    let mask = leading(&[4; 12], S).to_kind(Kind::Float);
    for row in (1..rows).step_by(2) {
        mask.get(row).copy_(&mask.get(0).flip([0]));
    }
    for block_size in [None, Some(2)] {
        let objective = ElfObjective { block_size, decoder_prob: 0.4, ..ElfObjective::default() };
        let loss = |places: &[i64], dropout: bool| {
            let index = Tensor::from_slice(places);
            let batch = LatentBatch {
                latents: latents.index_select(0, &index),
                ids: ids.index_select(0, &index),
                loss_mask: mask.index_select(0, &index),
                condition: None,
                dropped: Vec::new(),
            };
            let noise = Seeded::at(&[7], places.iter().map(|&i| i as u64), Device::Cpu);
            let mut noise = if dropout { noise } else { noise.without_dropout() };
            objective.loss(&net, &batch, &mut noise).unwrap().sum.double_value(&[])
        };
        let all: Vec<i64> = (0..rows).collect();
        let together = loss(&all, true);
        assert!((together - loss(&all, false)).abs() > 1e-3 * together, "{block_size:?}: nothing is dropped");
        for world in 2..5 {
            let of = |rank: usize| loss(&all.iter().copied().skip(rank).step_by(world).collect::<Vec<_>>(), true);
            let over_ranks: f64 = (0..world).map(of).sum();
            assert!((together - over_ranks).abs() < 1e-4 * together, "{block_size:?}: {together} {over_ranks}");
        }
    }
}
