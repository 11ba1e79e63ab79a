//! From seeds to tokens on a small network: the cost of a batch, its inputs, and combinations of guidance.

mod toy;

use std::cell::RefCell;

use elf_core::{Counting, Network, Noise, Replay, Seeded, TokenDraw, TrunkInput};
use elf_flow::sampler::{Registry, SamplerChoice};
use elf_flow::{
    AutoGuidance, Condition, ConditionGuidance, Conditioned, Decoder, Field, FlowPath, Frame, GenerateConfig,
    Generated, Generator, Guide, Lexicon, NetworkField, PredictionTarget, Reading, Request, SelfConditioningGuidance,
    TimeLaw, TrainedFlow,
};
use tch::{Device, Kind, Tensor};
use toy::{C, Toy, V};

const S: i64 = 9;
const TRAINED: TrainedFlow = TrainedFlow {
    path: FlowPath { noise_scale: 2.0, t_eps: 0.05, prediction: PredictionTarget::Clean },
    self_conditioned: true,
    block_size: None,
};

fn config() -> GenerateConfig {
    GenerateConfig { steps: 6, self_conditioning_guidance: 1.0, ..GenerateConfig::default() }
}

fn generate(net: &dyn Network, config: GenerateConfig, request: &Request) -> Generated {
    Generator::new(net, TRAINED, config, &Registry::builtin()).unwrap().generate(request, &mut ()).unwrap()
}

/// One condition per seed, of the seed's own length and content.
fn condition_of(seeds: &[u64]) -> Condition {
    let latents = Seeded::new(seeds.to_vec(), Device::Cpu).normal("latents", &[seeds.len() as i64, S, C]).unwrap();
    let mask: Vec<f32> =
        seeds.iter().flat_map(|seed| (0..S).map(move |i| f32::from(i <= (*seed % 4) as i64))).collect();
    let ids: Vec<i64> = seeds.iter().flat_map(|seed| (0..S).map(move |i| (*seed as i64 * 5 + i) % V)).collect();
    let ids = Tensor::from_slice(&ids).view([-1, S]);
    Condition::new(&latents, &ids, &Tensor::from_slice(&mask).view([-1, S])).unwrap()
}

#[test]
fn a_batch_costs_what_it_says() {
    let seeds = [1, 2, 3];
    let condition = condition_of(&seeds);
    let plain = Request::new(&seeds, S);
    let conditional = Request { condition: Some(&condition), ..plain };
    let sampler = |name: &str| GenerateConfig { sampler: SamplerChoice::named(name), ..config() };
    let n = config().steps as u64;
    let cases = [
        ("euler", true, sampler("euler"), plain, n + 1),
        ("sde", true, sampler("sde"), plain, n + 1),
        ("heun", true, sampler("heun"), plain, 2 * (n - 1) + 2),
        ("condition, s = 1", true, config(), conditional, n + 1),
        ("condition guidance", true, GenerateConfig { condition_guidance: 2.0, ..config() }, conditional, 2 * n + 1),
        ("w is an input", true, GenerateConfig { self_conditioning_guidance: 3.0, ..config() }, plain, n + 1),
        // The first step has no estimate to be guided by.
        ("w is not an input", false, GenerateConfig { self_conditioning_guidance: 3.0, ..config() }, plain, 2 * n),
        ("w = 1", false, config(), plain, n + 1),
        ("w = 0", false, GenerateConfig { self_conditioning_guidance: 0.0, ..config() }, plain, n + 1),
        ("filled up", true, GenerateConfig { pad_to: Some(5), ..config() }, plain, n + 1),
    ];
    for (name, guidance_input, config, request, passes) in cases {
        let net = Counting::new(Toy::new(guidance_input));
        let rows = config.pad_to.unwrap_or(seeds.len()) as u64;
        let got = generate(&net, config, &request);
        assert_eq!((got.cost.rows, got.cost.passes, got.cost.trace_passes), (rows, passes, 0), "{name}");
        assert_eq!(net.count().rows, passes * rows, "{name}: the network saw as much");
        assert_eq!(net.count().rows_with_grad, 0, "{name}: nothing is recorded for a backward pass");
        assert_eq!(net.count().logit_positions, rows * S as u64, "{name}: logits once");
        assert_eq!((got.z.size(), got.ids.len()), (vec![3, S, C], 3), "{name}");
        assert!(
            got.ids.iter().all(|row| row.len() == S as usize && row.iter().all(|id| (0..V).contains(id))),
            "{name}"
        );
    }
}

/// A network that records the `words` of each input of its trunk.
struct Told(Toy, RefCell<Vec<Option<Tensor>>>);

impl Network for Told {
    fn shape(&self) -> elf_core::NetworkShape {
        self.0.shape()
    }

    fn params(&self) -> &elf_core::ParamSet {
        self.0.params()
    }

    fn trunk(&self, input: &TrunkInput) -> elf_core::Result<Tensor> {
        self.1.borrow_mut().push(input.words.map(Tensor::shallow_clone));
        self.0.trunk(input)
    }

    fn clean(&self, hidden: &Tensor) -> elf_core::Result<Tensor> {
        self.0.clean(hidden)
    }

    fn logits(&self, hidden: &Tensor) -> elf_core::Result<Tensor> {
        self.0.logits(hidden)
    }
}

/// At every evaluation and in decoding, and none in the half without a condition.
#[test]
fn networks_are_told_the_words_of_a_condition() {
    let seeds = [1, 2];
    let condition = condition_of(&seeds);
    let net = Told(Toy::new(true), RefCell::default());
    generate(&net, config(), &Request::new(&seeds, S));
    assert!(net.1.take().iter().all(Option::is_none));
    let expected = Tensor::from_slice(&[5i64, 6, -1, -1, -1, -1, -1, -1, -1, 10, 11, 12, -1, -1, -1, -1, -1, -1]);
    let expected = expected.view([2, S]);
    for guidance in [1.0, 2.0] {
        let config = GenerateConfig { condition_guidance: guidance, ..config() };
        generate(&net, config, &Request { condition: Some(&condition), ..Request::new(&seeds, S) });
        let told = net.1.take();
        assert_eq!(told.len(), 7);
        for (pass, words) in told.into_iter().map(Option::unwrap).enumerate() {
            assert!(words.narrow(0, 0, 2).equal(&expected), "{words}");
            let twice = guidance != 1.0 && pass < 6;
            assert_eq!(words.size()[0], if twice { 4 } else { 2 });
            assert!(!twice || words.narrow(0, 2, 2).equal(&expected.full_like(-1)), "{words}");
        }
    }
}

#[test]
fn condition_guidance_is_one_batch_of_twice_the_rows() {
    let seeds = [1, 2];
    let condition = condition_of(&seeds);
    let net = Counting::new(Toy::new(true));
    let config = GenerateConfig { steps: 1, condition_guidance: 2.0, ..config() };
    generate(&net, config, &Request { condition: Some(&condition), ..Request::new(&seeds, S) });
    assert_eq!((net.count().passes, net.count().rows), (2, 2 * 2 + 2));
}

/// Given tokens are read as they are, and no other position holds what is barred, whichever way tokens are chosen.
#[test]
fn given_tokens_are_part_of_the_text() {
    let seeds = [1, 2, 3];
    let latents = Seeded::new(seeds.to_vec(), Device::Cpu).normal("latents", &[3, S, C]).unwrap();
    let ids = (Tensor::arange(3 * S, (Kind::Int64, Device::Cpu)) * 7).remainder(V).view([3, S]);
    let mask: Vec<f32> = (0..3 * S).map(|i| f32::from(i % 4 == 1 || i % 5 == 0)).collect();
    let mask = Tensor::from_slice(&mask).view([3, S]);
    let barred: Vec<i64> = (0..V).filter(|id| id % 3 != 0).collect();
    let condition = Condition::new(&latents, &ids, &mask).unwrap().in_text(&barred);
    assert_eq!(condition.lengths(), [0; 3]);
    let words = (0..V).map(|id| (vec![id], 1)).chain([(vec![3, 6], 5)]);
    let lexicon = Lexicon::new(words, V).unwrap();
    let given = Vec::<f32>::try_from(mask.reshape([-1])).unwrap();
    let given_ids = Vec::<i64>::try_from(ids.reshape([-1])).unwrap();
    for (draw, lexicon) in [
        (TokenDraw::LIKELIEST, None),
        (TokenDraw::default(), None),
        (TokenDraw::LIKELIEST, Some(&lexicon)),
        (TokenDraw { temperature: 0.7, top_p: 0.9 }, Some(&lexicon)),
    ] {
        let config = GenerateConfig { draw, ..config() };
        let net = Toy::new(true);
        let generator = Generator::new(&net, TRAINED, config, &Registry::builtin()).unwrap();
        let generator = match lexicon {
            Some(lexicon) => generator.with_lexicon(lexicon).unwrap(),
            None => generator,
        };
        let request = Request { condition: Some(&condition), ..Request::new(&seeds, S) };
        let made = generator.generate(&request, &mut ()).unwrap();
        let (read, log_probs) = (made.ids.concat(), made.log_probs.concat());
        for place in 0..read.len() {
            if given[place] == 1.0 {
                assert_eq!((read[place], log_probs[place]), (given_ids[place], 0.0));
            } else {
                assert!(read[place] % 3 == 0 && log_probs[place] < 0.0, "{} at {place}", read[place]);
            }
        }
    }
}

/// Toys of one seed are alike; this one has learned something else.
fn another_toy() -> Toy {
    let net = Toy::new(true);
    for (_, parameter) in net.params().iter() {
        tch::no_grad(|| _ = parameter.tensor.shallow_clone().g_mul_scalar_(0.5));
    }
    net
}

#[test]
fn a_guide_is_left_behind_by_its_scale() {
    let (strong, weak) = (Toy::new(true), another_toy());
    let z = Seeded::new(vec![3, 6], Device::Cpu).normal("z", &[2, S, C]).unwrap();
    let field = |net| NetworkField::new(net, TRAINED, 1.0);
    let (of_strong, of_weak) = (field(&strong).eval(&z, 0.3, None).unwrap(), field(&weak).eval(&z, 0.3, None).unwrap());
    for scale in [0.0, 0.5, 1.0, 3.0] {
        let guided = AutoGuidance::new(field(&strong), field(&weak), scale);
        let got = guided.eval(&z, 0.3, None).unwrap();
        let between = |weak: &Tensor, strong: &Tensor| weak + scale * (strong - weak);
        assert!(got.v.allclose(&between(&of_weak.v, &of_strong.v), 1e-5, 1e-5, false), "{scale}");
        assert!(got.x.allclose(&between(&of_weak.x, &of_strong.x), 1e-5, 1e-5, false), "{scale}");
        assert_eq!(guided.noise_scale(), TRAINED.path.noise_scale);
        // From its end on the guide has no say; before it, all.
        for (until, expected) in [(0.3, &of_strong.v), (0.31, &got.v)] {
            let bounded = AutoGuidance::new(field(&strong), field(&weak), scale).until(until);
            assert!(bounded.eval(&z, 0.3, None).unwrap().v.equal(expected), "{scale} until {until}");
        }
    }
}

#[test]
fn a_guided_run_costs_twice_and_a_guide_of_its_own_kind_changes_nothing() {
    let seeds = [1, 2];
    let condition = condition_of(&seeds);
    let run = |net: &dyn Network, guide: Option<(&dyn Network, f64, f64)>, condition: Option<&Condition>| {
        let config = GenerateConfig { condition_guidance: if condition.is_some() { 2.0 } else { 1.0 }, ..config() };
        let generator = Generator::new(net, TRAINED, config, &Registry::builtin()).unwrap();
        let generator = match guide {
            Some((net, scale, until)) => generator.with_guide(Guide { net, trained: TRAINED, scale, until }).unwrap(),
            None => generator,
        };
        generator.generate(&Request { condition, ..Request::new(&seeds, S) }, &mut ()).unwrap()
    };
    let (strong, weak, n) = (Toy::new(true), another_toy(), config().steps as u64);
    for (condition, each) in [(None, 1), (Some(&condition), 2)] {
        let alone = run(&strong, None, condition);
        let with_itself = run(&strong, Some((&strong, 3.0, 1.0)), condition);
        assert!(with_itself.z.allclose(&alone.z, 1e-4, 1e-4, false));
        let unguided = run(&strong, Some((&weak, 1.0, 1.0)), condition);
        assert!(unguided.z.equal(&alone.z));
        let (counted, counted_weak) = (Counting::new(Toy::new(true)), Counting::new(another_toy()));
        let guided = run(&counted, Some((&counted_weak, 3.0, 1.0)), condition);
        assert!(!guided.z.allclose(&alone.z, 1e-4, 1e-4, false));
        assert_eq!((alone.cost.passes, guided.cost.passes), (each * n + 1, 2 * each * n + 1));
        assert_eq!((counted.count().rows, counted_weak.count().rows), ((each * n + 1) * 2, each * n * 2));
        // The first step alone begins so early.
        counted_weak.reset();
        let at_first = run(&counted, Some((&counted_weak, 3.0, 1e-9)), condition);
        assert_eq!((at_first.cost.passes, counted_weak.count().rows), (each * (n + 1) + 1, each * 2));
    }
}

#[test]
fn decoding_early_cuts_the_run() {
    let net = Counting::new(Toy::new(true));
    let early = |decode_at| GenerateConfig { decode_at, grid: TimeLaw::Uniform, steps: 10, ..config() };
    let generator = Generator::new(&net, TRAINED, early(0.55), &Registry::builtin()).unwrap();
    assert_eq!(generator.times().len(), 7);
    assert_eq!(generator.times().last(), Some(&0.55));
    let mut frames: Vec<Frame> = Vec::new();
    let request = Request { trace: &[0.3, 1.0], ..Request::new(&[1, 2], S) };
    let got = generator.generate(&request, &mut frames).unwrap();
    assert_eq!(got.cost.passes, 6 + 1);
    assert_eq!(frames.last().map(|frame| (frame.t, frame.ids.clone())), Some((0.55, got.ids)));
    assert!(frames[..frames.len() - 1].iter().all(|frame| frame.t < 0.55));
    // The way up to there is that of the whole run.
    let whole = Generator::new(&net, TRAINED, early(1.0), &Registry::builtin()).unwrap();
    assert_eq!(whole.times()[..6], generator.times()[..6]);
    for wrong in [0.0, -1.0, 1.1, f64::NAN] {
        let error = Generator::new(&net, TRAINED, early(wrong), &Registry::builtin()).unwrap_err().to_string();
        assert!(error.contains("decode_at"), "{error}");
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    let net = Toy::new(true);
    let (likeliest, drawn) = (TokenDraw::LIKELIEST, TokenDraw::default());
    for (sampler, guidance, draw) in [("sde", 1.0, likeliest), ("euler", 2.0, drawn), ("heun", 2.0, likeliest)] {
        let config = GenerateConfig {
            pad_to: Some(5),
            draw,
            sampler: SamplerChoice::named(sampler),
            condition_guidance: guidance,
            ..config()
        };
        let ids = |seeds: &[u64]| {
            let condition = condition_of(seeds);
            generate(&net, config.clone(), &Request { condition: Some(&condition), ..Request::new(seeds, S) }).ids
        };
        let alone = ids(&[77]);
        let together = ids(&[5, 6, 7, 77, 8]);
        assert_eq!(alone[0], together[3], "{sampler}");
        assert_eq!(ids(&[77, 5])[..], [alone[0].clone(), together[0].clone()], "{sampler}");
        assert_ne!(together[0], together[2], "{sampler}: other seeds give other text");
    }
}

#[test]
fn grids_are_the_runs_own() {
    let net = Toy::new(true);
    let times = |grid_seed| {
        let config = GenerateConfig { grid_seed, ..config() };
        Generator::new(&net, TRAINED, config, &Registry::builtin()).unwrap().times().to_vec()
    };
    assert_eq!(times(1), times(1));
    assert_ne!(times(1), times(2));
    let (times, steps) = (times(1), config().steps);
    assert_eq!((times.len(), times[0], times[steps]), (steps + 1, 0.0, 1.0));
    assert!(times.is_sorted());
}

#[test]
fn the_condition_stays_as_it_is() {
    let seeds = [3, 6];
    let condition = condition_of(&seeds);
    let config = GenerateConfig { condition_guidance: 2.0, self_conditioning_guidance: 2.0, ..config() };
    let request = Request { condition: Some(&condition), ..Request::new(&seeds, S) };
    for guidance_input in [true, false] {
        let got = generate(&Toy::new(guidance_input), config.clone(), &request);
        assert!(condition.pin(&got.z).unwrap().equal(&got.z));
        let free =
            generate(&Toy::new(guidance_input), GenerateConfig { condition_guidance: 1.0, ..config.clone() }, &request);
        assert!(!free.z.equal(&got.z), "guidance does something");
    }
}

#[test]
fn guidance_is_the_formula_in_either_order() {
    let net = Toy::new(false);
    let seeds = [3, 6];
    let condition = condition_of(&seeds);
    let (s, w, t) = (2.0, 3.0, 0.3);
    let draw = |name: &str| Seeded::new(seeds.to_vec(), Device::Cpu).normal(name, &[2, S, C]).unwrap();
    let (z, hint) = (condition.pin(&draw("z")).unwrap(), condition.pin(&draw("hint")).unwrap());
    let plain = NetworkField::new(&net, TRAINED, 1.0);
    let parts = |with_hint: bool, with_condition: bool| {
        let none = condition.pin(&hint.zeros_like()).unwrap();
        let hint = if with_hint { &hint } else { &none };
        let cut = |x: &Tensor| if with_condition { x.shallow_clone() } else { condition.remove(x).unwrap() };
        plain.eval(&cut(&z), t, Some(&cut(hint))).unwrap()
    };
    let expected = |pick: &dyn Fn(bool, bool) -> Tensor| {
        let guided = |hint: bool| {
            let (without, with) = (pick(hint, false), pick(hint, true));
            &without + s * (with - &without)
        };
        let (without, with) = (guided(false), guided(true));
        &without + w * (with - &without)
    };
    let v = condition.remove(&expected(&|h, c| parts(h, c).v)).unwrap();
    let x = condition.pin(&expected(&|h, c| parts(h, c).x)).unwrap();

    let network = || NetworkField::new(&net, TRAINED, 1.0);
    let ours = SelfConditioningGuidance::new(
        Conditioned::new(ConditionGuidance::new(network(), &condition, s), &condition),
        w,
    );
    let got = ours.eval(&z, t, Some(&hint)).unwrap();
    assert!(got.v.allclose(&v, 1e-4, 1e-4, false) && got.x.allclose(&x, 1e-4, 1e-4, false));
    // Values in condition positions of z have no effect: they are replaced before the evaluation.
    let soiled = &z + condition.pin(&z.zeros_like()).unwrap();
    assert!(ours.eval(&soiled, t, Some(&hint)).unwrap().v.equal(&got.v));
    assert_eq!(ours.noise_scale(), TRAINED.path.noise_scale);
}

#[test]
fn a_network_without_self_conditioning_takes_z_alone() {
    let net = Toy::new(false);
    let trained = TrainedFlow { self_conditioned: false, ..TRAINED };
    let field = NetworkField::new(&net, trained, 1.0);
    let z = Seeded::new((100..100 + 2).collect(), Device::Cpu).normal("drawn", &[2, S, C]).unwrap();
    let (with, without) = (field.eval(&z, 0.5, Some(&z)).unwrap(), field.eval(&z, 0.5, None).unwrap());
    assert!(with.x.equal(&without.x));
    let config = GenerateConfig { self_conditioning_guidance: 3.0, ..config() };
    let error = Generator::new(&net, trained, config, &Registry::builtin()).unwrap_err().to_string();
    assert!(error.contains("self_conditioning_guidance") && error.contains("use 1"), "{error}");
}

#[test]
fn decoding_in_chunks_changes_nothing() {
    let net = Toy::new(true);
    let z = Seeded::new((100..100 + 3).collect(), Device::Cpu).normal("drawn", &[3, S, C]).unwrap();
    let whole = Decoder::new(&net, TRAINED, 1.0).ids(&z, None).unwrap();
    let (ones, hint) = (Tensor::ones([3], (Kind::Float, Device::Cpu)), z.zeros_like());
    let input =
        TrunkInput { x_prev: Some(&hint), guidance: Some(&ones), decode: Some(&ones), ..TrunkInput::new(&z, &ones) };
    let logits = net.logits(&net.trunk(&input).unwrap().flatten(0, 1)).unwrap();
    assert_eq!((whole.size(), whole.kind()), (vec![3, S], Kind::Int64));
    for positions in [1, 2, 26, 27, 1000] {
        let chunked = Decoder::new(&net, TRAINED, 1.0).in_chunks_of(positions).ids(&z, None).unwrap();
        assert!(chunked.equal(&whole), "{positions}");
        let Reading { ids, log_probs } =
            Decoder::new(&net, TRAINED, 1.0).in_chunks_of(positions).read(&z, None).unwrap();
        assert!(ids.equal(&whole), "{positions}");
        let expected = logits.log_softmax(-1, Kind::Float).amax([-1], false).view([3, S]);
        assert!(log_probs.allclose(&expected, 1e-5, 1e-6, false), "{positions}");
    }
    // Before decoding, the condition replaces its positions, and its words are an input of the network.
    let condition = condition_of(&[1, 2, 3]);
    let decoder = Decoder::new(&net, TRAINED, 1.0);
    let (pinned, words) = (condition.pin(&z).unwrap(), condition.words(3).unwrap());
    let input = TrunkInput { z: &pinned, words: Some(&words), ..input };
    let expected = net.logits(&net.trunk(&input).unwrap().flatten(0, 1)).unwrap().argmax(-1, false).view([3, S]);
    assert!(decoder.ids(&z, Some(&condition)).unwrap().equal(&expected));
}

/// At the end of a run, by draws of their own: everything before them is as it is without.
#[test]
fn words_are_drawn_from_what_the_network_says() {
    let net = Toy::new(true);
    let seeds = [4, 5, 6];
    let mut noise = Seeded::new(seeds.to_vec(), Device::Cpu);
    let [coarse, fine] = [(); 2].map(|()| noise.uniform("any", &[3, S]).unwrap());
    let draws = coarse.to_kind(Kind::Double) + fine.to_kind(Kind::Double) / 16_777_216.0;
    let run = |draw: TokenDraw| {
        let mut noise = Replay::new();
        noise.push("z0", &Seeded::new(seeds.to_vec(), Device::Cpu).normal("z0", &[3, S, C]).unwrap());
        noise.push("word", &coarse).push("word", &fine);
        let config = GenerateConfig { draw, sampler: SamplerChoice::named("euler"), decode_at: 0.5, ..config() };
        let generator = Generator::new(&net, TRAINED, config, &Registry::builtin()).unwrap();
        let made = generator.generate_from(&Request::new(&seeds, S), &mut noise, &mut ()).unwrap();
        (made, noise.uniform("word", &[3, S]).is_ok())
    };
    let (likeliest, none_drawn) = run(TokenDraw::LIKELIEST);
    assert!(none_drawn);
    let (ones, hint) = (Tensor::ones([3], (Kind::Float, Device::Cpu)), likeliest.z.zeros_like());
    let input = TrunkInput {
        x_prev: Some(&hint),
        guidance: Some(&ones),
        decode: Some(&ones),
        ..TrunkInput::new(&likeliest.z, &ones)
    };
    let logits = net.logits(&net.trunk(&input).unwrap().flatten(0, 1)).unwrap();
    let log_p = logits.log_softmax(-1, Kind::Float);
    for how in [TokenDraw::default(), TokenDraw { temperature: 0.5, top_p: 0.8 }] {
        let (drawn, none_drawn) = run(how);
        assert!(!none_drawn);
        assert!(drawn.z.equal(&likeliest.z));
        assert_ne!(drawn.ids, likeliest.ids);
        let expected = how.tokens(&logits, &draws.flatten(0, 1)).unwrap();
        assert_eq!(drawn.ids.concat(), Vec::<i64>::try_from(&expected).unwrap());
        // How sure the network is of them is said without the temperature.
        let expected = log_p.gather(1, &expected.unsqueeze(-1), false).squeeze();
        assert!(Tensor::from_slice(&drawn.log_probs.concat()).allclose(&expected, 1e-5, 1e-6, false));
        for positions in [1, 2, 26, 1000] {
            let decoder = Decoder::new(&net, TRAINED, 1.0).in_chunks_of(positions);
            let chunked = decoder.drawn(&drawn.z, None, &how, &draws).unwrap();
            assert_eq!(Vec::<i64>::try_from(chunked.ids.flatten(0, 1)).unwrap(), drawn.ids.concat(), "{positions}");
        }
    }
}
