//! Time laws, guidance scales and grids against the reference numbers.

use elf_core::Replay;
use elf_flow::{GuidanceLaw, LogitNormal, TimeLaw};
use elf_tests::{Reference, assert_close, parity_json};
use serde::Deserialize;
use tch::{Kind, Tensor};

#[derive(Deserialize)]
struct Config {
    p_mean: f64,
    p_std: f64,
}

impl Config {
    fn law(&self) -> LogitNormal {
        LogitNormal { mean: self.p_mean, std: self.p_std }
    }
}

#[test]
fn parity_training_times() {
    let config: Config = parity_json("config.json");
    let reference = Reference::open("schedules.safetensors");
    let normal = reference.get("normal");
    let mut noise = Replay::new();
    noise.push("t_normal", normal);
    let t = TimeLaw::LogitNormal(config.law()).draw(normal.size()[0], &mut noise).unwrap();
    assert_close("t_logit_normal", &t, reference.get("t_logit_normal"), 1e-6);
}

#[test]
fn parity_guidance_scales() {
    let reference = Reference::open("schedules.safetensors");
    let scales = reference.under("cfg_scale_");
    assert!(!scales.is_empty());
    for (range, want) in scales {
        // The range is part of the tensor's name.
        let (min, max) = range.split_once('_').unwrap();
        let law = GuidanceLaw { min: min.parse().unwrap(), max: max.parse().unwrap() };
        assert_close(range, &law.transform(reference.get("u")), want, 1e-5);
    }
}

#[test]
fn parity_grids() {
    let config: Config = parity_json("config.json");
    let reference = Reference::open("schedules.safetensors");
    let check = |name: &str, grid: TimeLaw, noise: &mut Replay| {
        let want = reference.get(name);
        let got = grid.grid(want.size()[0] as usize - 1, noise).unwrap();
        assert_close(name, &Tensor::from_slice(&got), &want.to_kind(Kind::Double), 1e-6);
    };
    check("grid_uniform", TimeLaw::Uniform, &mut Replay::new());
    let mut noise = Replay::new();
    noise.push("grid_normal", reference.get("grid_normal"));
    check("grid_logit_normal", TimeLaw::LogitNormal(config.law()), &mut noise);
}
