//! Sampling texts that are written in blocks: cost, memory, and independence of the batch.

use std::cell::{Cell, RefCell};

use elf_core::{Context, Counting, Memory, Network, NetworkShape, Noise, ParamSet, Seeded, TokenDraw, TrunkInput};
use elf_flow::sampler::{Registry, SamplerChoice};
use elf_flow::{
    Condition, Cost, ElfObjective, Error, GenerateConfig, Generated, Generator, Guide, Reencode, Request, Result,
    TrainedFlow,
};
use elf_model::Elf;
use elf_tests::blocks::{C, S, Watched, condition_mask, near, network, network_of, network_with_table, numbers, words};
use tch::{Device, Kind, Tensor};

/// In place of an encoder: a latent for each token.
#[derive(Default)]
struct Table {
    calls: RefCell<Vec<usize>>,
    /// Whether it says that its latents never change.
    says_so: bool,
}

impl Reencode for Table {
    fn latents(&self, ids: &Tensor, known: usize) -> Result<Tensor> {
        self.calls.borrow_mut().push(known);
        let latents = (ids.to_kind(Kind::Float).unsqueeze(-1) * Tensor::arange(C, (Kind::Float, Device::Cpu))).sin();
        // Latents of tokens that are not known yet must not be used.
        let _ = latents.narrow(1, known as i64, S - known as i64).fill_(f64::NAN);
        Ok(latents)
    }

    fn are_final(&self) -> bool {
        self.says_so
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
fn each_block_costs_a_run_and_a_decoding() {
    let (net, seeds) = (Counting::new(network()), [3, 4]);
    let table = Table::default();
    let request = Request { reencoding: Some(&table), ..Request::new(&seeds, S) };
    let got = generate(&net, Some(4), config("euler"), &request).unwrap();
    assert_eq!((got.cost.passes, net.count().rows), (3 * 6, 2 * 3 * 6));
    // The first block has no context.
    assert_eq!((got.cost.context_passes, net.count().context_rows), (2, 2 * 2));
    assert_eq!(got.cost.positions, 2 * S as u64);
    assert_eq!(net.count().logit_positions, 2 * S as u64, "every position is decoded once");
    assert_eq!(*table.calls.borrow(), [4, 8]);
    assert!(bool::try_from(got.z.isfinite().all()).unwrap());

    // The first token of a row is taken for its end: then all rows have ended after one block.
    let ended = got.ids.iter().map(|ids| ids[0]).collect::<Vec<_>>();
    let one = Request { seeds: &seeds[..1], end: Some(ended[0]), ..request };
    let short = generate(&net, Some(4), config("euler"), &one).unwrap();
    assert_eq!((short.cost.passes, short.cost.context_passes, short.cost.positions), (6, 0, 4));
    assert_eq!(short.ids[0][..4], got.ids[0][..4]);
    assert!(short.ids[0][4..].iter().all(|&id| id == ended[0]));

    let error = generate(&net, Some(4), config("euler"), &Request::new(&seeds, S)).unwrap_err();
    assert!(matches!(&error, Error::Setting { .. }) && error.to_string().contains("block_size"), "{error}");
    let other = Guide { net: &net, trained: trained(None), scale: 2.0, until: 1.0 };
    let generator = Generator::new(&net, trained(Some(4)), config("euler"), &Registry::builtin()).unwrap();
    assert!(generator.with_guide(other).unwrap_err().to_string().contains("block"));
}

/// A network without memory, which computes its context in each pass.
struct Forgetful(Elf);

impl Network for Forgetful {
    fn shape(&self) -> NetworkShape {
        self.0.shape()
    }

    fn params(&self) -> &ParamSet {
        self.0.params()
    }

    fn trunk(&self, input: &TrunkInput) -> elf_core::Result<Tensor> {
        assert!(input.context.is_none_or(|context| context.memory.is_none()), "no memory was made");
        self.0.trunk(input)
    }

    fn clean(&self, hidden: &Tensor) -> elf_core::Result<Tensor> {
        self.0.clean(hidden)
    }

    fn logits(&self, hidden: &Tensor) -> elf_core::Result<Tensor> {
        self.0.logits(hidden)
    }
}

/// Also under condition guidance, whose passes have twice the rows.
#[test]
fn texts_do_not_depend_on_the_memory() {
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
        // The conditions reach into the first of the five blocks. With guidance, the passes of twice the rows have a memory of their
        // own, and the context is computed once more for decoding.
        let expected = if condition_guidance == 1.0 { 5 } else { 5 * (1 + 2) };
        assert_eq!((remembering.cost.context_passes, net.count().context_rows), (expected, 3 * expected));
    }
}

/// A network that counts how often it is given keys and values to which others are to be added.
struct Extended {
    net: Elf,
    extended: Cell<usize>,
}

impl Network for Extended {
    fn shape(&self) -> NetworkShape {
        self.net.shape()
    }

    fn params(&self) -> &ParamSet {
        self.net.params()
    }

    fn trunk(&self, input: &TrunkInput) -> elf_core::Result<Tensor> {
        self.net.trunk(input)
    }

    fn remember(&self, context: &Context, self_conditioned: bool) -> elf_core::Result<Option<Memory>> {
        self.extended.set(self.extended.get() + usize::from(context.memory.is_some()));
        self.net.remember(context, self_conditioned)
    }

    fn clean(&self, hidden: &Tensor) -> elf_core::Result<Tensor> {
        self.net.clean(hidden)
    }

    fn logits(&self, hidden: &Tensor) -> elf_core::Result<Tensor> {
        self.net.logits(hidden)
    }
}

/// Where latents are final, keys and values of earlier blocks are kept and only those of the last block are computed.
#[test]
fn texts_do_not_depend_on_what_is_kept_of_earlier_blocks() {
    let (changing, lasting) = (Table::default(), Table { says_so: true, ..Table::default() });
    let condition = Condition::new(&numbers(&[1, S, C], 8), &words(1, S), &condition_mask(&[3])).unwrap();
    for (size, seeds, condition, condition_guidance) in [
        (1, &[11][..], None, 1.0),
        (4, &[11, 12], None, 1.0),
        (1, &[11], Some(&condition), 1.0),
        (2, &[11], Some(&condition), 2.0),
    ] {
        let net = Extended { net: network_with_table(), extended: Cell::new(0) };
        let made = |table: &Table| {
            let config = GenerateConfig { condition_guidance, ..config("euler") };
            let generator = Generator::new(&net, trained(Some(size)), config, &Registry::builtin()).unwrap();
            let guide = Guide { net: &net, trained: trained(Some(size)), scale: 1.5, until: 1.0 };
            let request = Request { condition, reencoding: Some(table), ..Request::new(seeds, S) };
            generator.with_guide(guide).unwrap().generate(&request, &mut ()).unwrap()
        };
        let anew = made(&changing);
        assert_eq!(net.extended.get(), 0);
        let kept = made(&lasting);
        assert!(net.extended.get() > 0, "blocks of {size}");
        assert_eq!(anew.ids, kept.ids, "blocks of {size}");
        assert!(near(&anew.z, &kept.z), "blocks of {size}");
        assert_eq!(anew.cost, kept.cost);
    }
}

/// The context's ids are those of the condition and of the blocks that were decoded before. In the half without condition, the
/// condition's ids are -1.
#[test]
fn a_context_has_the_ids_of_its_tokens() {
    let (seeds, given) = ([11, 12], [3i64, 1]);
    let condition = Condition::new(&numbers(&[2, S, C], 8), &words(2, S), &condition_mask(&given)).unwrap();
    let table = Table::default();
    let request = Request { condition: Some(&condition), reencoding: Some(&table), ..Request::new(&seeds, S) };
    for condition_guidance in [1.0, 2.0] {
        let net = Watched::new(network_with_table());
        let config = GenerateConfig { condition_guidance, ..config("euler") };
        let got = generate(&net, Some(2), config, &request).unwrap();
        // The last pass decodes the last block: its rows with their conditions, after all other blocks.
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

/// For all lengths of the other rows' conditions, and all numbers of blocks that they fill.
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
        // Tokens are drawn if there is no condition guidance.
        let draw = if guidance == 1.0 { TokenDraw::default() } else { TokenDraw::LIKELIEST };
        let config = GenerateConfig { condition_guidance: guidance, pad_to: Some(4), draw, ..config(sampler) };
        let generator = Generator::new(&net, trained(Some(3)), config, &Registry::builtin()).unwrap();
        let guide = Guide { net: &net, trained: trained(Some(3)), scale: 1.5, until: 1.0 };
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
