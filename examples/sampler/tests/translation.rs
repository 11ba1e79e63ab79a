//! The sampler, by itself and through a language model.

use elf_core::Replay;
use elf_flow::analytic::GaussianField;
use elf_flow::sampler::{Entry, Registry, SamplerChoice, State, integrate};
use elf_lm::{Model, SamplingPatch};
use sampler_example::two_stage::TwoStage;
use tch::Tensor;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/mini-de-en");
const INPUTS: [&str; 2] = ["Ein Programm zum Zeichnen", "Bibliothek zum Lesen von Bildern"];

/// Texts in two steps to clean latents, and the name of the setting.
fn translate(model: &Model, sampler: &str) -> (Vec<String>, String) {
    let patch = SamplingPatch::default().with("sampler", sampler).with("decode_at", 1.0);
    let sampling = model.sampling_with(&patch).unwrap().steps(2);
    (model.generate(&INPUTS, &sampling).unwrap(), sampling.name())
}

/// The error's message and those of its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = error.source().map(|cause| format!(": {}", chain(cause)));
    format!("{error}{}", causes.unwrap_or_default())
}

#[test]
fn a_model_writes_with_a_sampler_from_elsewhere() {
    let model = sampler_example::model(MODEL).unwrap();
    // With its second evaluation at the end of a step it is Heun's method, which is built in.
    let (texts, name) = translate(&model, "two-stage:place=1");
    assert_eq!(texts, translate(&model, "heun").0);
    assert!(name.starts_with("two-stage-2-") && name.contains("-place1"), "{name}");
    assert_eq!(texts.len(), 2);
    assert!(texts.iter().any(|text| !text.is_empty()), "{texts:?}");
    let (_, default) = translate(&model, "two-stage");
    assert!(default.contains("-place0.66666"), "{default}");
}

#[test]
fn mistakes_are_named() {
    let model = sampler_example::model(MODEL).unwrap();
    let message = |sampler: &str| {
        let patch = SamplingPatch::default().with("sampler", sampler);
        chain(&model.sampling_with(&patch).unwrap_err())
    };
    assert!(message("two-stages").contains("did you mean `two-stage`?"));
    assert!(message("two-stage:plaec=1").contains("did you mean `place`?"));
    assert!(message("two-stage:place=2").contains("2 is not in (0, 1]"));
    // Without the registry the name means nothing.
    let plain = Model::load(MODEL).unwrap();
    let patch = SamplingPatch::default().with("sampler", "two-stage");
    assert!(chain(&plain.sampling_with(&patch).unwrap_err()).contains("no sampler `two-stage`"));
}

#[test]
fn it_is_of_second_order() {
    let field = GaussianField { mean: 0.7, std: 0.5, noise_scale: 2.0 };
    let registry = Registry::builtin().with(Entry::of::<TwoStage>());
    for place in [0.5, 2.0 / 3.0, 1.0] {
        let config = registry.config(&SamplerChoice::of(&TwoStage { place })).unwrap();
        let error = |steps: u32| {
            let times: Vec<f64> = (0..=steps).map(|i| f64::from(i) / f64::from(steps)).collect();
            let z0 = Tensor::from_slice(&[-3.0f64, -1.0, 2.0]).view([1, 3, 1]);
            let start = State::start(z0.shallow_clone());
            let end = integrate(&field, &mut *config.build(), start, &times, &mut Replay::new(), |_, _| Ok(()));
            (end.unwrap().z - field.end_of(&z0)).abs().max().double_value(&[])
        };
        let order = (error(80) / error(640)).log2() / 3.0;
        assert!((order - 2.0).abs() < 0.15, "place {place}: order {order:.3}");
    }
}
