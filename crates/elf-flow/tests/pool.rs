//! Runs that share the passes of their networks: each is what it is alone, whoever runs beside it and whenever it joins.

mod toy;

use std::cell::RefCell;
use std::rc::Rc;

use elf_core::{Counting, Network, Noise, Seeded};
use elf_flow::sampler::{Entry, Registry, Sampler, SamplerChoice, SamplerConfig, Span, State, euler_step};
use elf_flow::{
    Condition, Error, Field, FlowPath, GenerateConfig, Generated, Generator, Guide, Next, PredictionTarget, Request,
    RunId, RunPool, SamplingObserver, Shared, Step, TrainedFlow,
};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use toy::{C, Toy};

const TRAINED: TrainedFlow = TrainedFlow {
    path: FlowPath { noise_scale: 2.0, t_eps: 0.05, prediction: PredictionTarget::Clean },
    self_conditioned: true,
    block_size: None,
};

/// A sampler of a program's own, which asks the field twice in each step.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Midpoint {}

impl SamplerConfig for Midpoint {
    const NAME: &'static str = "midpoint";
    const SUMMARY: &'static str = "the velocity in the middle of the step";

    fn build(&self) -> Box<dyn Sampler> {
        Box::new(Self {})
    }
}

impl Sampler for Midpoint {
    fn step(&mut self, field: &dyn Field, state: State, span: Span, _: &mut dyn Noise) -> elf_flow::Result<State> {
        let half = Span { to: span.from + 0.5 * span.length(), ..span };
        let State { z, x } = euler_step(field, State { z: state.z.shallow_clone(), x: state.x }, half)?;
        let at = field.eval(&z, half.to, x.as_ref())?;
        Ok(State { z: state.z + at.v * span.length(), x: Some(at.x) })
    }
}

/// A text that is asked for.
#[derive(Debug, Clone)]
struct Asked {
    seed: u64,
    length: i64,
    steps: usize,
    sampler: &'static str,
    guidance: f64,
    conditional: bool,
    guided: bool,
}

fn asked() -> impl Strategy<Value = Asked> {
    let sampler = proptest::sample::select(vec!["euler", "heun", "sde", "midpoint"]);
    let numbers = (any::<u64>(), 3i64..6, 1usize..6, sampler);
    (numbers, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |((seed, length, steps, sampler), strong, conditional, guided)| Asked {
            seed,
            length,
            steps,
            sampler,
            guidance: if strong { 2.0 } else { 1.0 },
            conditional,
            guided,
        },
    )
}

impl Asked {
    fn generate(
        &self,
        net: &dyn Network,
        weak: &dyn Network,
        watch: &mut dyn SamplingObserver,
    ) -> elf_flow::Result<Generated> {
        let registry = Registry::builtin().with(Entry::of::<Midpoint>());
        let config = GenerateConfig {
            steps: self.steps,
            sampler: SamplerChoice::named(self.sampler),
            condition_guidance: if self.conditional { self.guidance } else { 1.0 },
            self_conditioning_guidance: self.guidance,
            ..GenerateConfig::default()
        };
        let mut generator = Generator::new(net, TRAINED, config, &registry)?;
        if self.guided {
            generator = generator.with_guide(Guide { net: weak, trained: TRAINED, scale: 1.5, until: 1.0 })?;
        }
        let seeds = [self.seed];
        let latents = Seeded::new(seeds.to_vec(), Device::Cpu).normal("latents", &[1, self.length, C])?;
        let ids = Tensor::zeros([1, self.length], (Kind::Int64, Device::Cpu));
        let mask = Tensor::arange(self.length, (Kind::Float, Device::Cpu)).lt(2).to_kind(Kind::Float).unsqueeze(0);
        let condition = Condition::new(&latents, &ids, &mask)?;
        let condition = self.conditional.then_some(&condition);
        generator.generate(&Request { condition, ..Request::new(&seeds, self.length) }, watch)
    }

    fn run<'a>(&self, net: &'a dyn Network, weak: &'a dyn Network) -> impl FnOnce(&Shared<'_, 'a>) -> Outcome + 'a {
        let asked = self.clone();
        move |shared| asked.generate(&shared.network(net), &shared.network(weak), &mut ())
    }
}

type Outcome = elf_flow::Result<Generated>;

/// Each text at the step at which it joins, until all have ended. Returns them in their order.
fn together(texts: &[(usize, Asked)], fill: Option<usize>, net: &dyn Network, weak: &dyn Network) -> Vec<Generated> {
    let mut pool = RunPool::new(fill);
    let mut ids: Vec<Option<RunId>> = vec![None; texts.len()];
    let mut made: Vec<Option<Generated>> = texts.iter().map(|_| None).collect();
    for step in 0.. {
        for ((begins, asked), id) in texts.iter().zip(&mut ids).filter(|((begins, _), _)| *begins == step) {
            assert_eq!(*begins, step);
            *id = Some(pool.add(asked.run(net, weak)).unwrap());
        }
        for (id, result) in pool.step().finished {
            let place = ids.iter().position(|own| *own == Some(id)).unwrap();
            made[place] = Some(result.ok().unwrap().unwrap());
        }
        if pool.is_empty() && texts.iter().all(|(begins, _)| *begins <= step) {
            break;
        }
    }
    made.into_iter().map(|made| made.expect("a text that ended")).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_text_is_the_same_whoever_runs_beside_it(
        texts in proptest::collection::vec((0usize..7, asked()), 1..7),
        guidance_input: bool,
    ) {
        let (net, weak) = (Toy::new(guidance_input), Toy::new(guidance_input));
        let alone: Vec<Generated> = texts.iter().map(|(_, asked)| asked.generate(&net, &weak, &mut ()).unwrap()).collect();
        for (made, alone) in together(&texts, None, &net, &weak).iter().zip(&alone) {
            prop_assert_eq!(&made.ids, &alone.ids);
            prop_assert!(made.z.allclose(&alone.z, 1e-4, 1e-4, false));
            prop_assert_eq!(made.cost, alone.cost);
        }
        // With passes of one shape, to the bit.
        let one_shape = together(&texts, Some(7), &net, &weak);
        for ((_, asked), among) in texts.iter().zip(&one_shape) {
            let [alone] = &together(&[(0, asked.clone())], Some(7), &net, &weak)[..] else { panic!("one text") };
            prop_assert!(alone.z.equal(&among.z) && alone.ids == among.ids && alone.log_probs == among.log_probs);
        }
    }
}

fn plain(seed: u64, steps: usize) -> Asked {
    Asked { seed, length: 4, steps, sampler: "euler", guidance: 1.0, conditional: false, guided: false }
}

#[test]
fn runs_share_passes_and_leave_when_they_are_done() {
    let net = Counting::new(Toy::new(true));
    let mut pool = RunPool::new(None);
    let short = pool.add(plain(1, 2).run(&net, &net)).unwrap();
    let long = pool.add(plain(2, 4).run(&net, &net)).unwrap();
    let mut ended = Vec::new();
    let mut rows = Vec::new();
    while !pool.is_empty() {
        let step = pool.step();
        rows.push(step.rows);
        ended.extend(step.finished.into_iter().map(|(id, _)| (id, rows.len())));
    }
    // Two steps and the decoding, four steps and the decoding.
    assert_eq!((rows, ended), (vec![2, 2, 2, 1, 1], vec![(short, 3), (long, 5)]));
    assert_eq!((net.count().passes, net.count().rows, net.count().rows_with_grad), (5, 8, 0));
    assert_eq!(pool.step().rows, 0);
}

/// A guide's pass and the network's own follow each other in every run; runs that joined at different passes still share them.
#[test]
fn runs_that_take_turns_between_networks_fall_into_step() {
    let (net, weak) = (Counting::new(Toy::new(true)), Counting::new(Toy::new(true)));
    let mut pool = RunPool::new(None);
    let guided = |seed| Asked { guided: true, ..plain(seed, 20) };
    pool.add(guided(1).run(&net, &weak)).unwrap();
    pool.step();
    pool.add(guided(2).run(&net, &weak)).unwrap();
    while !pool.is_empty() {
        pool.step();
    }
    let passes = net.count().passes + weak.count().passes;
    assert!(passes <= 44, "{passes} passes for two runs of 41");
}

/// A stranger's network, of which some rows fail.
struct Failing(Toy);

impl Network for Failing {
    fn shape(&self) -> elf_core::NetworkShape {
        self.0.shape()
    }

    fn params(&self) -> &elf_core::ParamSet {
        self.0.params()
    }

    fn trunk(&self, input: &elf_core::TrunkInput) -> elf_core::Result<Tensor> {
        let largest = input.z.abs().max().double_value(&[]);
        assert!(largest < 1e9, "a defect");
        match largest < 1e4 {
            true => self.0.trunk(input),
            false => Err(elf_core::Error::Config("too large".to_owned())),
        }
    }

    fn clean(&self, hidden: &Tensor) -> elf_core::Result<Tensor> {
        self.0.clean(hidden)
    }

    fn logits(&self, hidden: &Tensor) -> elf_core::Result<Tensor> {
        self.0.logits(hidden)
    }
}

/// A run from noise of another scale.
fn scaled<'a>(net: &'a Failing, noise_scale: f64) -> impl FnOnce(&Shared<'_, 'a>) -> Outcome + 'a {
    move |shared| {
        let trained = TrainedFlow { path: FlowPath { noise_scale, ..TRAINED.path }, ..TRAINED };
        let config = GenerateConfig { steps: 3, ..GenerateConfig::default() };
        let net = shared.network(net);
        Generator::new(&net, trained, config, &Registry::builtin())?.generate(&Request::new(&[1], 4), &mut ())
    }
}

#[test]
fn a_run_that_fails_costs_the_others_nothing() {
    let net = Failing(Toy::new(true));
    for fill in [None, Some(4)] {
        let mut pool = RunPool::new(fill);
        let well = pool.add(plain(1, 3).run(&net, &net)).unwrap();
        let fails = pool.add(scaled(&net, 1e6)).unwrap();
        let panics = pool.add(scaled(&net, 1e12)).unwrap();
        let mut ended = Vec::new();
        while !pool.is_empty() {
            ended.extend(pool.step().finished);
        }
        let of = |id| &ended.iter().find(|(other, _)| *other == id).unwrap().1;
        let alone = plain(1, 3).generate(&net, &net, &mut ()).unwrap();
        assert_eq!(of(well).as_ref().unwrap().as_ref().unwrap().ids, alone.ids);
        assert!(of(fails).as_ref().unwrap().as_ref().unwrap_err().to_string().contains("too large"));
        assert!(of(panics).is_err());
    }
}

/// Counts the runs that it lives in.
struct Watched(Rc<RefCell<usize>>);

impl SamplingObserver for Watched {
    fn step(&mut self, step: &Step) -> Next {
        if step.done == 3 { Next::Cancel } else { Next::Continue }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        *self.0.borrow_mut() -= 1;
    }
}

impl Watched {
    fn new(alive: &Rc<RefCell<usize>>) -> Self {
        *alive.borrow_mut() += 1;
        Self(Rc::clone(alive))
    }
}

/// A run that is watched; whether it was cancelled.
fn nine_steps<'a>(net: &'a Toy, mut watched: Watched) -> impl FnOnce(&Shared<'_, 'a>) -> Result<Generated, bool> + 'a {
    move |shared| {
        let net = shared.network(net);
        plain(7, 9).generate(&net, &net, &mut watched).map_err(|error| matches!(error, Error::Cancelled { .. }))
    }
}

#[test]
fn a_run_that_is_cancelled_leaves_at_once_and_drops_what_it_holds() {
    let (net, alive) = (Toy::new(true), Rc::new(RefCell::new(0)));
    let mut pool = RunPool::new(None);
    let watched = || nine_steps(&net, Watched::new(&alive));
    let (first, never_begun) = (pool.add(watched()).unwrap(), pool.add(watched()).unwrap());
    let second = pool.add(watched()).unwrap();
    pool.cancel(never_begun);
    assert_eq!(pool.step().rows, 2);
    pool.cancel(first);
    assert_eq!((pool.step().rows, pool.len(), *alive.borrow()), (1, 1, 1));
    // By its own listener.
    let ended = pool.step().finished;
    assert!(ended.len() == 1 && ended[0].0 == second && ended[0].1.as_ref().unwrap().as_ref().unwrap_err() == &true);
    assert_eq!((pool.len(), *alive.borrow()), (0, 0));
    // With the pool, too.
    pool.add(watched()).unwrap();
    pool.step();
    drop(pool);
    assert_eq!(*alive.borrow(), 0);
}
