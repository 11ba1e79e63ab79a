//! What every sampler must do. The tests walk [`BUILTIN`], so that a new one is held to them as soon as it is listed.

use elf_core::{Noise, Replay, Seeded};
use elf_flow::analytic::GaussianField;
use elf_flow::sampler::{BUILTIN, Registry, Sampler, SamplerChoice, SamplerConfig, Span, State, integrate};
use elf_flow::{Condition, Conditioned, Field};
use tch::{Device, Kind, Tensor};

const FIELD: GaussianField = GaussianField { mean: 0.7, std: 0.5, noise_scale: 2.0 };

fn uniform(steps: usize) -> Vec<f64> {
    (0..=steps).map(|i| i as f64 / steps as f64).collect()
}

fn build(choice: &SamplerChoice) -> Box<dyn Sampler> {
    Registry::builtin().config(choice).unwrap().build()
}

fn run(choice: &SamplerChoice, field: &dyn Field, z0: &Tensor, steps: usize, noise: &mut dyn Noise) -> State {
    let start = State::start(z0.shallow_clone());
    integrate(field, &mut *build(choice), start, &uniform(steps), noise, |_, _| Ok(())).unwrap()
}

/// The order that a sampler promises, and the settings under which it draws no noise.
fn promise(name: &str) -> (f64, SamplerChoice) {
    match name {
        "euler" => (1.0, SamplerChoice::named(name)),
        "heun" => (2.0, SamplerChoice::named(name)),
        "sde" => (1.0, SamplerChoice::named(name).with("gamma", 0.0)),
        _ => panic!("say here which order `{name}` promises"),
    }
}

#[test]
fn the_order_of_convergence_is_as_promised() {
    let z0 = Tensor::linspace(-4.0, 4.0, 33, (Kind::Double, Device::Cpu)).view([1, 33, 1]);
    let exact = FIELD.end_of(&z0);
    for entry in BUILTIN {
        let (order, choice) = promise(entry.name());
        let error =
            |steps| (run(&choice, &FIELD, &z0, steps, &mut Replay::new()).z - &exact).abs().max().double_value(&[]);
        let observed = (error(80) / error(640)).log2() / 3.0;
        assert!((observed - order).abs() < 0.15, "{}: order {observed:.3}, promised {order}", entry.name());
        assert!(error(640) < 0.01, "{}: converges elsewhere", entry.name());
    }
}

#[test]
fn same_seed_same_bits_and_finite() {
    for entry in BUILTIN {
        let choice = SamplerChoice::named(entry.name());
        let sample = |seed: u64| {
            let mut noise = Seeded::new(vec![seed, seed + 1], Device::Cpu);
            let z0 = noise.normal("z0", &[2, 5, 3]).unwrap() * 2.0;
            run(&choice, &FIELD, &z0, 7, &mut noise).z
        };
        let (first, second) = (sample(1), sample(1));
        assert!(first.equal(&second), "{}", entry.name());
        assert!(!first.equal(&sample(2)), "{}", entry.name());
        assert!(first.isfinite().all().int64_value(&[]) == 1, "{}", entry.name());
        // A row's bits do not depend on its place.
        let mut noise = Seeded::new(vec![9, 1], Device::Cpu);
        let z0 = noise.normal("z0", &[2, 5, 3]).unwrap() * 2.0;
        assert!(run(&choice, &FIELD, &z0, 7, &mut noise).z.get(1).equal(&first.get(0)), "{}", entry.name());
    }
}

/// A field that sees to it that a sampler keeps its rules: times in [0, 1], and a clean condition in what it passes on.
struct Strict<'a> {
    inner: Conditioned<'a, GaussianField>,
    condition: &'a Condition,
    evaluations: std::cell::Cell<usize>,
}

impl Field for Strict<'_> {
    fn eval(&self, z: &Tensor, t: f64, hint: Option<&Tensor>) -> elf_flow::Result<elf_flow::Prediction> {
        assert!((0.0..=1.0).contains(&t), "evaluated at t = {t}");
        assert!(z.equal(&self.condition.pin(z)?), "z was evaluated at t = {t} without its condition");
        // A sampler has an estimate to pass on from its second evaluation on.
        assert_eq!(hint.is_some(), self.evaluations.replace(self.evaluations.get() + 1) > 0);
        self.inner.eval(z, t, hint)
    }

    fn pin(&self, z: Tensor) -> elf_flow::Result<Tensor> {
        self.inner.pin(z)
    }

    fn noise_scale(&self) -> f64 {
        self.inner.noise_scale()
    }
}

#[test]
fn condition_positions_are_clean_at_every_step() {
    let latents = Seeded::new((100..100 + 3).collect(), Device::Cpu).normal("drawn", &[3, 6, 4]).unwrap() * 5.0;
    let mask = Tensor::from_slice(&[
        1f32, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0,
    ]);
    let condition =
        Condition::new(&latents, &Tensor::zeros([3, 6], (Kind::Int64, Device::Cpu)), &mask.view([3, 6])).unwrap();
    assert_eq!(condition.lengths(), [2, 4, 0]);
    for entry in BUILTIN {
        let choice = SamplerChoice::named(entry.name());
        let field = Strict {
            inner: Conditioned::new(FIELD, &condition),
            condition: &condition,
            evaluations: Default::default(),
        };
        let mut noise = Seeded::new(vec![1, 2, 3], Device::Cpu);
        let z0 = noise.normal("z0", &[3, 6, 4]).unwrap();
        let mut checked = 0;
        let start = State::start(z0);
        let mut sampler = build(&choice);
        integrate(&field, &mut *sampler, start, &uniform(9), &mut noise, |_, state| {
            let x = state.x.as_ref().expect("every step leaves an estimate");
            assert!(state.z.equal(&condition.pin(&state.z)?), "{}", entry.name());
            assert!(x.equal(&condition.pin(x)?), "{}", entry.name());
            checked += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(checked, 9);
    }
}

#[test]
fn the_last_step_is_eulers() {
    for entry in BUILTIN {
        let mut sampler = build(&SamplerChoice::named(entry.name()));
        let z = Tensor::from_slice(&[0.3f64, -1.0]).view([1, 2, 1]);
        let span = Span { from: 0.6, to: 1.0 };
        // Without noise to draw from: a last step that draws fails here.
        let got = sampler.finish(&FIELD, State::start(z.copy()), span, &mut Replay::new()).unwrap();
        let v = FIELD.eval(&z, span.from, None).unwrap().v;
        assert!(got.z.allclose(&(&z + v * 0.4), 0.0, 1e-12, false), "{}", entry.name());
    }
}

#[test]
fn misspelt_names_and_settings_are_refused_with_what_there_is() {
    let registry = Registry::builtin();
    let message = |choice: SamplerChoice| registry.config(&choice).unwrap_err().to_string();
    for entry in BUILTIN {
        let misspelt = format!("{}x", entry.name());
        let text = message(SamplerChoice::named(&misspelt));
        assert!(
            text.contains(&format!("no sampler `{misspelt}`; there is: {}", entry.name())),
            "nearest first: {text}"
        );
        assert!(BUILTIN.iter().all(|e| text.contains(e.name())), "all are listed: {text}");

        let defaults = entry.defaults().unwrap();
        let text = message(SamplerChoice::named(entry.name()).with("no_such_setting", 1));
        assert!(text.contains("`no_such_setting`") && text.contains(entry.name()), "{text}");
        assert!(defaults.keys().all(|key| text.contains(key.as_str())), "all settings are listed: {text}");
        for (key, value) in &defaults {
            let wrong_type = SamplerChoice::named(entry.name()).with(key, serde_json::json!(["wrong"]));
            assert!(message(wrong_type).contains(entry.name()));
            registry
                .config(&SamplerChoice::named(entry.name()).with(key, value.clone()))
                .expect("the default is right");
        }
        entry
            .aliases()
            .iter()
            .for_each(|alias| _ = registry.config(&SamplerChoice::named(*alias)).expect("an alias is a name"));
    }
    assert!(message(SamplerChoice::named("sde").with("gama", 1.0)).contains("no setting `gama`; there is: gamma"));
    assert!(message(SamplerChoice::named("sde").with("gamma", -0.5)).contains("-0.5"));
}

#[test]
fn names_and_aliases_are_unique() {
    let mut names: Vec<_> = BUILTIN
        .iter()
        .flat_map(|e| std::iter::once(&e.name()).chain(e.aliases()).copied().collect::<Vec<_>>())
        .collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
}

#[test]
fn a_choice_is_read_from_a_configuration() {
    let choice: SamplerChoice = serde_json::from_str(r#"{"name": "sde", "gamma": 1.5}"#).unwrap();
    assert_eq!(choice, SamplerChoice::named("sde").with("gamma", 1.5));
    assert_eq!(serde_json::to_string(&choice).unwrap(), r#"{"name":"sde","gamma":1.5}"#);
    assert!(format!("{:?}", Registry::builtin().config(&choice).unwrap()).contains("1.5"));
}

#[test]
fn sde_without_gamma_is_euler_bit_for_bit() {
    let z0 = Seeded::new((100..100 + 2).collect(), Device::Cpu).normal("drawn", &[2, 4, 3]).unwrap();
    let sde = run(&SamplerChoice::named("sde").with("gamma", 0.0), &FIELD, &z0, 11, &mut Replay::new());
    assert!(sde.z.equal(&run(&SamplerChoice::named("euler"), &FIELD, &z0, 11, &mut Replay::new()).z));
}

#[test]
fn sde_steps_as_the_formula_says() {
    // gamma h = 0.3 and then gamma h > 1, which forgets everything.
    for (gamma, keep) in [(3.0, 0.7), (20.0, 0.0)] {
        let z = Tensor::from_slice(&[0.5f64, -2.0]).view([1, 2, 1]);
        let eps = Tensor::from_slice(&[1.0f64, 0.25]).view([1, 2, 1]);
        let mut noise = Replay::new();
        noise.push("sde", &eps);
        let mut sampler = build(&SamplerChoice::named("sde").with("gamma", gamma));
        let got = sampler.step(&FIELD, State::start(z.copy()), Span { from: 0.4, to: 0.5 }, &mut noise).unwrap();
        let (back, t) = (z * keep + eps * ((1.0 - keep) * 2.0), keep * 0.4);
        let v = FIELD.eval(&back, t, None).unwrap().v;
        assert!(got.z.allclose(&(back + v * (0.5 - t)), 0.0, 1e-12, false), "gamma {gamma}");
    }
}

/// Mean and standard deviation that the SDE sampler must give on Gaussian data, where every step is affine.
fn sde_moments(gamma: f64, steps: usize) -> (f64, f64) {
    let (mut mean, mut variance) = (0.0, FIELD.noise_scale * FIELD.noise_scale);
    for (i, pair) in uniform(steps).windows(2).enumerate() {
        let keep = if i + 1 == steps { 1.0 } else { (1.0 - gamma * (pair[1] - pair[0])).clamp(0.0, 1.0) };
        let (t, h) = (keep * pair[0], pair[1] - keep * pair[0]);
        (mean, variance) = (keep * mean, keep * keep * variance + ((1.0 - keep) * FIELD.noise_scale).powi(2));
        let stretch = 1.0 + h * FIELD.slope(t);
        mean = stretch * mean + h * FIELD.mean * (1.0 - FIELD.slope(t) * t);
        variance *= stretch * stretch;
    }
    (mean, variance.sqrt())
}

#[test]
fn sde_samples_have_the_moments_that_the_formula_gives() {
    let n = 40_000;
    for (gamma, steps) in [(0.0, 16), (1.0, 64), (1.5, 32), (2.0, 8)] {
        let mut noise = Seeded::new(vec![5], Device::Cpu);
        let z0 = noise.normal("z0", &[1, n, 1]).unwrap() * FIELD.noise_scale;
        let z = run(&SamplerChoice::named("sde").with("gamma", gamma), &FIELD, &z0, steps, &mut noise).z;
        let (mean, std) = (z.mean(Kind::Double).double_value(&[]), z.to_kind(Kind::Double).std(true).double_value(&[]));
        let (want_mean, want_std) = sde_moments(gamma, steps);
        let error = want_std / (n as f64).sqrt();
        assert!((mean - want_mean).abs() < 4.0 * error, "gamma {gamma}: mean {mean}, should be {want_mean}");
        assert!((std - want_std).abs() < 4.0 * error, "gamma {gamma}: std {std}, should be {want_std}");
        // The mean is the data's. The spread is at most the data's: the formula adds too little noise.
        assert!((want_mean - FIELD.mean).abs() < 1e-9);
        assert!(want_std < FIELD.std && want_std > 0.2 * FIELD.std, "gamma {gamma}: std {want_std}");
    }
}

#[test]
fn a_run_needs_a_step() {
    let start = State::start(Tensor::zeros([1, 1, 1], (Kind::Float, Device::Cpu)));
    let mut sampler = build(&SamplerChoice::named("euler"));
    let error = integrate(&FIELD, &mut *sampler, start, &[0.0], &mut Replay::new(), |_, _| Ok(())).unwrap_err();
    assert!(error.to_string().contains("times"));
}

/// A sampler from outside the crate, to be registered under a name of its own and under one of ours.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
struct Stay {
    patience: f64,
}

impl SamplerConfig for Stay {
    fn build(&self) -> Box<dyn Sampler> {
        Box::new(Stay { patience: self.patience })
    }
}

impl Sampler for Stay {
    fn step(&mut self, _: &dyn Field, state: State, _: Span, _: &mut dyn Noise) -> elf_flow::Result<State> {
        Ok(state)
    }
}

#[test]
fn a_registry_grows() {
    use elf_flow::sampler::Entry;
    let registry = Registry::builtin().with(Entry::of::<Stay>("stay")).with(Entry::of::<Stay>("heun"));
    for name in ["stay", "heun"] {
        let config = registry.config(&SamplerChoice::named(name).with("patience", 2.0)).unwrap();
        assert_eq!(format!("{config:?}"), "Stay { patience: 2.0 }");
    }
    // Refused although the type itself does not deny unknown fields.
    let error = registry.config(&SamplerChoice::named("stay").with("patiense", 2.0)).unwrap_err();
    assert!(error.to_string().contains("patiense") && error.to_string().contains("patience"));
}
