//! What generation refuses, each by a message that names it.

mod toy;

use elf_core::{Network, TokenDraw};
use elf_flow::sampler::{Registry, SamplerChoice};
use elf_flow::{
    Condition, FlowPath, GenerateConfig, Generator, Guide, LogitNormal, PredictionTarget, Request, TimeLaw, TrainedFlow,
};
use tch::{Device, Kind, Tensor};
use toy::{C, Toy};

const S: i64 = 9;
const TRAINED: TrainedFlow = TrainedFlow {
    path: FlowPath { noise_scale: 2.0, t_eps: 0.05, prediction: PredictionTarget::Clean },
    self_conditioned: true,
    block_size: None,
};

fn config() -> GenerateConfig {
    GenerateConfig { steps: 6, self_conditioning_guidance: 1.0, ..GenerateConfig::default() }
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let net = Toy::new(true);
    let new = |config| Generator::new(&net, TRAINED, config, &Registry::builtin()).map(|_| ()).unwrap_err().to_string();
    let cases = [
        (GenerateConfig { steps: 0, ..config() }, "steps"),
        (GenerateConfig { steps: usize::MAX, ..config() }, "steps"),
        (GenerateConfig { condition_guidance: f64::NAN, ..config() }, "condition_guidance"),
        (GenerateConfig { self_conditioning_guidance: 1e300, ..config() }, "self_conditioning_guidance"),
        (GenerateConfig { grid: TimeLaw::LogitNormal(LogitNormal { mean: 1e300, std: 0.8 }), ..config() }, "grid"),
        (GenerateConfig { grid: TimeLaw::LogitNormal(LogitNormal { mean: 0.0, std: f64::NAN }), ..config() }, "grid"),
        (GenerateConfig { pad_to: Some(0), ..config() }, "pad_to"),
        (GenerateConfig { draw: TokenDraw { temperature: -0.5, ..TokenDraw::default() }, ..config() }, "temperature"),
        (GenerateConfig { draw: TokenDraw { top_p: 0.0, ..TokenDraw::default() }, ..config() }, "top_p"),
        (GenerateConfig { sampler: SamplerChoice::named("eular"), ..config() }, "did you mean `euler`?"),
    ];
    for (config, named) in cases {
        // The settings are checked without a network, with the same result.
        let checked = config.check(&net.shape(), &TRAINED, &Registry::builtin()).unwrap_err().to_string();
        let message = new(config);
        assert!(message.contains(named), "{message}");
        assert_eq!(message, checked);
    }
    config().check(&net.shape(), &TRAINED, &Registry::builtin()).unwrap();
}

#[test]
fn guides_requests_and_times_that_do_not_fit_are_refused() {
    let net = Toy::new(true);
    let guided = |trained: TrainedFlow, scale: f64, until: f64| {
        let generator = Generator::new(&net, TRAINED, config(), &Registry::builtin()).unwrap();
        generator.with_guide(Guide { net: &net, trained, scale, until }).map(|_| ()).unwrap_err().to_string()
    };
    let louder = TrainedFlow { path: FlowPath { noise_scale: 3.0, ..TRAINED.path }, ..TRAINED };
    assert!(guided(louder, 2.0, 1.0).contains("another scale"));
    assert!(guided(TRAINED, f64::INFINITY, 1.0).contains("guide"));
    for wrong in [0.0, 1.5, f64::NAN] {
        assert!(guided(TRAINED, 2.0, wrong).contains("guide_until"));
    }

    let seeds = [1, 2];
    let latents = Tensor::zeros([3, S, C], (Kind::Float, Device::Cpu));
    let ids = Tensor::zeros([3, S], (Kind::Int64, Device::Cpu));
    let condition = Condition::new(&latents, &ids, &Tensor::zeros([3, S], (Kind::Float, Device::Cpu))).unwrap();
    let run = |config, request: &Request| {
        let generator = Generator::new(&net, TRAINED, config, &Registry::builtin()).unwrap();
        generator.generate(request, &mut ()).unwrap_err().to_string()
    };
    let plain = Request::new(&seeds, S);
    let cases = [
        (config(), Request::new(&[], S), "seeds"),
        (config(), Request::new(&seeds, 0), "length"),
        (config(), Request { trace: &[1.5], ..plain }, "trace"),
        (config(), Request { condition: Some(&condition), ..plain }, "condition"),
        (GenerateConfig { condition_guidance: 2.0, ..config() }, plain, "without a condition"),
        (GenerateConfig { pad_to: Some(1), ..config() }, plain, "pad_to"),
    ];
    for (config, request, named) in cases {
        let message = run(config, &request);
        assert!(message.contains(named), "{message}");
    }
    let latents = Tensor::zeros([2, S, C], (Kind::Float, Device::Cpu));
    let ids = Tensor::zeros([2, S], (Kind::Int64, Device::Cpu));
    for mask in
        [Tensor::zeros([2, S + 1], (Kind::Float, Device::Cpu)), Tensor::full([2, S], 0.5, (Kind::Float, Device::Cpu))]
    {
        assert!(Condition::new(&latents, &ids, &mask).unwrap_err().to_string().contains("condition mask"));
    }
    let times = |times: Vec<f64>| {
        Generator::new(&net, TRAINED, config(), &Registry::builtin()).unwrap().with_times(times).is_err()
    };
    assert!(
        times(vec![]) && times(vec![0.0, 0.5]) && times(vec![0.0, 0.6, 0.5, 1.0]) && times(vec![0.0, f64::NAN, 1.0])
    );
}

#[test]
fn latents_that_are_not_finite_are_an_error() {
    let net = Toy::new(false);
    let damaged = net.params().get("to_x").unwrap().tensor.get(0);
    tch::no_grad(|| _ = damaged.shallow_clone().fill_(f64::NAN));
    let generator = Generator::new(&net, TRAINED, config(), &Registry::builtin()).unwrap();
    let error = generator.generate(&Request::new(&[1], S), &mut ()).unwrap_err().to_string();
    assert!(error.contains("not finite") && error.contains("checkpoint"), "{error}");
}

#[test]
fn a_configuration_round_trips_and_refuses_unknown_keys() {
    let config = GenerateConfig { pad_to: Some(8), ..GenerateConfig::default() };
    let text = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<GenerateConfig>(&text).unwrap(), config);
    assert!(serde_json::from_str::<GenerateConfig>(r#"{"stepps": 3}"#).unwrap_err().to_string().contains("stepps"));
}
