//! What every sampler must do. The tests walk [`BUILTIN`], so that a new one is held to them as soon as it is listed.

use elf_core::{Noise, Replay, Seeded};
use elf_flow::analytic::GaussianField;
use elf_flow::sampler::{
    BUILTIN, Churn, Registry, Sampler, SamplerChoice, SamplerConfig, ScheduledSde, Sde, Span, State, integrate,
};
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

#[test]
fn the_order_of_convergence_is_as_promised() {
    let z0 = Tensor::linspace(-4.0, 4.0, 33, (Kind::Double, Device::Cpu)).view([1, 33, 1]);
    let exact = FIELD.end_of(&z0);
    for entry in BUILTIN {
        let (order, choice) = (f64::from(entry.order()), entry.noise_free().unwrap());
        // A sampler that draws fails here: there are no draws to replay.
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
            text.contains(&format!("no sampler `{misspelt}`; did you mean `{}`?", entry.name())),
            "the nearest is named: {text}"
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
    assert!(message(SamplerChoice::named("euler").with("gamma", 1.0)).contains("there are no settings"));
    assert!(
        message(SamplerChoice::named("sde").with("gama", 1.0)).contains("no setting `gama`; did you mean `gamma`?")
    );
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
fn every_sampler_describes_itself() {
    for entry in BUILTIN {
        assert!(entry.summary().len() > 20 && !entry.summary().contains('\n'), "{}", entry.name());
        let (line, defaults) = (entry.to_string(), entry.defaults().unwrap());
        for part in std::iter::once(entry.name()).chain(defaults.keys().map(String::as_str)).chain([entry.summary()]) {
            assert!(line.contains(part), "{line}");
        }
        for (_, setting) in entry.released_keys() {
            assert!(defaults.contains_key(*setting), "{} has no setting {setting}", entry.name());
        }
    }
}

/// Both ways of writing a choice give the same sampler, the same name for files, and the same stored form.
#[test]
fn a_choice_in_the_released_form_is_the_same_choice() {
    let registry = Registry::builtin();
    for entry in BUILTIN {
        let flat = entry.released_keys().iter().map(|(key, _)| (key.to_string(), serde_json::json!(0.75))).collect();
        let settings = entry.released_keys().iter().map(|(_, setting)| setting);
        let nested = settings.fold(SamplerChoice::named(entry.name()), |choice, setting| choice.with(*setting, 0.75));
        let released = registry.released(entry.name(), &flat).unwrap();
        assert_eq!(released, nested);
        let stored = registry.config(&released).unwrap().choice().clone();
        assert_eq!(stored.settings.keys().collect::<Vec<_>>(), entry.defaults().unwrap().keys().collect::<Vec<_>>());
        assert_eq!(registry.config(&stored).unwrap().choice(), &stored);
        let read: SamplerChoice = serde_json::from_value(serde_json::to_value(&stored).unwrap()).unwrap();
        assert_eq!(read, stored);
    }
    let flat = serde_json::json!({ "sde_gamma": 1.5, "num_sampling_steps": 8 });
    let released = |name| registry.released(name, flat.as_object().unwrap());
    assert_eq!(released("sde").unwrap(), SamplerChoice::of(&Sde { gamma: 1.5 }));
    // As in the released code, where a file for the ODE may hold the SDE's setting.
    assert_eq!(released("ode").unwrap(), SamplerChoice::named("ode"));
    assert!(released("sdee").unwrap_err().to_string().contains("did you mean `sde`?"));
    assert!(registry.released_keys().any(|key| key == ("sde_gamma", "gamma")));
}

#[test]
fn lists_of_settings_are_run_in_every_combination() {
    let registry = Registry::builtin();
    let labels = |json: serde_json::Value| {
        let choice: SamplerChoice = serde_json::from_value(json).unwrap();
        let all = registry.combinations(&choice).map_err(|e| e.to_string())?;
        Ok::<_, String>(all.iter().map(SamplerChoice::settings_label).collect::<Vec<_>>())
    };
    assert_eq!(
        labels(serde_json::json!({ "name": "sde", "gamma": [1, 1.5, 2.0] })).unwrap(),
        ["-gamma1", "-gamma1.5", "-gamma2"]
    );
    assert_eq!(labels(serde_json::json!({ "name": "sde" })).unwrap(), ["-gamma1.5"]);
    assert_eq!(labels(serde_json::json!("ode")).unwrap(), [""]);
    assert_eq!(
        labels(serde_json::json!({ "name": "sde-schedule", "power": [1, 2], "gamma_end": [0, 0.5] })).unwrap(),
        [(0.0, 1), (0.0, 2), (0.5, 1), (0.5, 2)]
            .map(|(end, power)| format!("-gamma_end{end}-gamma_start3-power{power}"))
    );
    for (wrong, named) in [
        (serde_json::json!({ "name": "sde", "gamma": [] }), "gamma is an empty list"),
        (serde_json::json!({ "name": "sde", "gamma": [1, -1] }), "-1"),
        (serde_json::json!({ "name": "sde", "gama": [1] }), "`gamma`"),
        (serde_json::json!({ "name": "sde", "gamma": ["much"] }), "sampler `sde`"),
    ] {
        let message = labels(wrong).unwrap_err();
        assert!(message.contains(named), "{message}");
    }
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

#[test]
fn a_schedule_of_equal_gammas_is_sde_bit_for_bit() {
    for (gamma, power) in [(1.5, 1.0), (0.3, 2.5)] {
        let sample = |choice: SamplerChoice| {
            let mut noise = Seeded::new(vec![3, 4], Device::Cpu);
            let z0 = noise.normal("z0", &[2, 4, 3]).unwrap();
            run(&choice, &FIELD, &z0, 11, &mut noise).z
        };
        let schedule = ScheduledSde { gamma_start: gamma, gamma_end: gamma, power };
        assert!(sample(SamplerChoice::of(&schedule)).equal(&sample(SamplerChoice::of(&Sde { gamma }))));
    }
}

#[test]
fn a_schedule_out_of_its_range_is_refused_by_name() {
    let right = ScheduledSde::default();
    for (wrong, setting) in [
        (ScheduledSde { gamma_start: -1.0, ..right }, "gamma_start"),
        (ScheduledSde { gamma_end: -0.1, ..right }, "gamma_end"),
        (ScheduledSde { power: 0.0, ..right }, "power"),
    ] {
        let message = Registry::builtin().config(&SamplerChoice::of(&wrong)).unwrap_err().to_string();
        assert!(message.contains(setting), "{message}");
    }
}

/// Mean and standard deviation that an SDE sampler with `gamma(t)` must give on Gaussian data, where every step is affine.
fn sde_moments(gamma: &dyn Fn(f64) -> f64, steps: usize) -> (f64, f64) {
    let (mut mean, mut variance) = (0.0, FIELD.noise_scale * FIELD.noise_scale);
    for (i, pair) in uniform(steps).windows(2).enumerate() {
        let keep = if i + 1 == steps { 1.0 } else { (1.0 - gamma(pair[0]) * (pair[1] - pair[0])).clamp(0.0, 1.0) };
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
    let schedule = |gamma_start, gamma_end, power| SamplerChoice::of(&ScheduledSde { gamma_start, gamma_end, power });
    let constant = |gamma| SamplerChoice::of(&Sde { gamma });
    type Case<'a> = (SamplerChoice, &'a dyn Fn(f64) -> f64, usize);
    let cases: [Case; 7] = [
        (constant(0.0), &|_| 0.0, 16),
        (constant(1.0), &|_| 1.0, 64),
        (constant(1.5), &|_| 1.5, 32),
        (constant(2.0), &|_| 2.0, 8),
        (schedule(3.0, 0.0, 1.0), &|t| 3.0 * (1.0 - t), 32),
        (schedule(2.0, 0.5, 2.0), &|t| 0.5 + 1.5 * (1.0 - t) * (1.0 - t), 16),
        (schedule(0.0, 2.0, 0.5), &|t| 2.0 - 2.0 * (1.0 - t).sqrt(), 16),
    ];
    for (choice, gamma, steps) in cases {
        let mut noise = Seeded::new(vec![5], Device::Cpu);
        let z0 = noise.normal("z0", &[1, n, 1]).unwrap() * FIELD.noise_scale;
        let z = run(&choice, &FIELD, &z0, steps, &mut noise).z;
        let (mean, std) = (z.mean(Kind::Double).double_value(&[]), z.to_kind(Kind::Double).std(true).double_value(&[]));
        let (want_mean, want_std) = sde_moments(gamma, steps);
        let error = want_std / (n as f64).sqrt();
        assert!((mean - want_mean).abs() < 4.0 * error, "{choice:?}: mean {mean}, should be {want_mean}");
        assert!((std - want_std).abs() < 4.0 * error, "{choice:?}: std {std}, should be {want_std}");
        // The mean is the data's. The spread is at most the data's: the formula adds too little noise.
        assert!((want_mean - FIELD.mean).abs() < 1e-9);
        assert!(want_std < FIELD.std && want_std > 0.2 * FIELD.std, "{choice:?}: std {want_std}");
    }
}

#[test]
fn churn_keeps_the_spread_that_sde_loses() {
    let n = 40_000;
    for (gamma, steps) in [(1.0, 64), (3.0, 128)] {
        let spread = |choice: &SamplerChoice| {
            let mut noise = Seeded::new(vec![5], Device::Cpu);
            let z0 = noise.normal("z0", &[1, n, 1]).unwrap() * FIELD.noise_scale;
            let z = run(choice, &FIELD, &z0, steps, &mut noise).z.to_kind(Kind::Double);
            assert!((z.mean(Kind::Double).double_value(&[]) - FIELD.mean).abs() < 0.03 * FIELD.std, "{choice:?}");
            z.std(true).double_value(&[]) / FIELD.std
        };
        let (kept, lost) = (spread(&SamplerChoice::of(&Churn { gamma })), spread(&SamplerChoice::of(&Sde { gamma })));
        assert!((0.9..1.05).contains(&kept) && lost < 0.6, "gamma {gamma}: {kept} of the spread, with sde {lost}");
    }
}

#[test]
fn a_run_needs_a_step() {
    let start = State::start(Tensor::zeros([1, 1, 1], (Kind::Float, Device::Cpu)));
    let mut sampler = build(&SamplerChoice::named("euler"));
    let error = integrate(&FIELD, &mut *sampler, start, &[0.0], &mut Replay::new(), |_, _| Ok(())).unwrap_err();
    assert!(error.to_string().contains("times"));
}

/// A sampler from outside the crate, under a name of its own or under one of ours.
#[derive(Debug, Default, Clone, serde::Serialize, serde::Deserialize)]
struct Stay<const OURS: bool> {
    patience: f64,
}

impl<const OURS: bool> SamplerConfig for Stay<OURS> {
    const NAME: &'static str = if OURS { "heun" } else { "stay" };
    const SUMMARY: &'static str = "stays where it is";

    fn build(&self) -> Box<dyn Sampler> {
        Box::new(self.clone())
    }
}

impl<const OURS: bool> Sampler for Stay<OURS> {
    fn step(&mut self, _: &dyn Field, state: State, _: Span, _: &mut dyn Noise) -> elf_flow::Result<State> {
        Ok(state)
    }
}

#[test]
fn a_registry_grows() {
    use elf_flow::sampler::Entry;
    let registry = Registry::builtin().with(Entry::of::<Stay<false>>()).with(Entry::of::<Stay<true>>());
    for name in ["stay", "heun"] {
        let config = registry.config(&SamplerChoice::named(name).with("patience", 2)).unwrap();
        assert_eq!(config.choice(), &SamplerChoice::named(name).with("patience", 2.0));
    }
    // Refused although the type itself does not deny unknown fields.
    let error = registry.config(&SamplerChoice::named("stay").with("patiense", 2.0)).unwrap_err();
    assert!(error.to_string().contains("patiense") && error.to_string().contains("did you mean `patience`?"));
}

/// A setting whose name the stored form needs for the sampler itself.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
struct Nameless {
    name: String,
}

impl SamplerConfig for Nameless {
    const NAME: &'static str = "nameless";
    const SUMMARY: &'static str = "has a setting that it may not have";

    fn build(&self) -> Box<dyn Sampler> {
        Box::new(Stay::<false>::default())
    }
}

#[test]
fn a_setting_is_not_called_name() {
    let registry = Registry::builtin().with(elf_flow::sampler::Entry::of::<Nameless>());
    let message = registry.config(&SamplerChoice::named("nameless")).unwrap_err().to_string();
    assert!(message.contains("cannot be called `name`"), "{message}");
}
