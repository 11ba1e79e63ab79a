//! Rollouts, decoded tokens and their trimming against the reference numbers.

use elf_core::Replay;
use elf_flow::sampler::{Registry, SamplerChoice};
use elf_flow::{FlowPath, GenerateConfig, Generator, Request, TrainedFlow, Trim, pad_from_eos, shift_left};
use elf_tests::checks::{Rollout, condition, rows};
use elf_tests::small::{network, network_of};
use elf_tests::{Reference, assert_close, parity_json};
use serde::Deserialize;
use tch::Device;

#[test]
fn parity_rollouts() {
    let rollouts: Vec<Rollout> = parity_json("samplers.json");
    assert!(!rollouts.is_empty());
    for rollout in &rollouts {
        println!("{}", rollout.name);
        rollout.check(Device::Cpu).assert();
    }
}

#[test]
fn parity_trimming() {
    let reference = Reference::open("samplers.safetensors");
    let ids = rows(reference.get("post.ids"));
    let shift = Vec::<i64>::try_from(reference.get("post.shift")).unwrap();
    let shifted = rows(reference.get("post.shift_left"));
    // The end-of-text token is part of the tensor's name.
    let masked = reference.under("post.mask_after_eos_");
    assert_eq!(masked.len(), 1);
    for (eos, masked) in masked {
        let (eos, pad) = (eos.parse().unwrap(), 0);
        for (i, row) in ids.iter().enumerate() {
            let mut got = row.clone();
            pad_from_eos(&mut got, eos, pad);
            assert_eq!(got, rows(masked)[i]);
            assert_eq!(shift_left(row, shift[i] as usize, pad), shifted[i]);
            // A text is made of both together.
            let trim = Trim { eos, pad, max_input_length: 0 };
            let mut expected = shifted[i].clone();
            pad_from_eos(&mut expected, eos, pad);
            assert_eq!(trim.row(row, shift[i] as usize), expected);
        }
    }
}

#[test]
fn parity_sde_without_noise_is_the_ode() {
    let rollouts: Vec<Rollout> = parity_json("samplers.json");
    let reference = Reference::open("samplers.safetensors");
    for rollout in rollouts.iter().filter(|r| r.method == "ode") {
        let get = |what: &str| reference.get(&format!("{}.{what}", rollout.name));
        let net = network_of(&rollout.weights);
        let times = Vec::<f32>::try_from(get("t_steps")).unwrap().into_iter().map(f64::from).collect();
        let (b, s, _) = get("z0").size3().unwrap();
        let condition = rollout.conditional.then(|| condition(&reference));
        let seeds = vec![0; b as usize];
        let request = Request { condition: condition.as_ref(), ..Request::new(&seeds, s) };
        let config = GenerateConfig { sampler: SamplerChoice::named("sde").with("gamma", 0.0), ..rollout.config() };
        let generator =
            Generator::new(&net, rollout.trained(), config, &Registry::builtin()).unwrap().with_times(times).unwrap();
        let mut noise = Replay::new();
        noise.push("z0", &(get("z0") / rollout.noise_scale));
        let got = generator.generate_from(&request, &mut noise, &mut ()).unwrap();
        assert_close(&rollout.name, &got.z, get("z_final"), 1e-4);
    }
}

#[test]
fn parity_weights_sample_rows_that_do_not_depend_on_their_batch() {
    #[derive(Deserialize)]
    struct Config {
        batch: usize,
        steps: usize,
        model: Model,
    }
    #[derive(Deserialize)]
    struct Model {
        max_length: i64,
    }
    let config: Config = parity_json("config.json");
    let net = network();
    let sampling = GenerateConfig { steps: config.steps, pad_to: Some(config.batch), ..GenerateConfig::default() };
    let trained = TrainedFlow { path: FlowPath::default(), self_conditioned: true, block_size: None };
    let generator = Generator::new(&net, trained, sampling, &Registry::builtin()).unwrap();
    let sample = |seeds: &[u64]| generator.generate(&Request::new(seeds, config.model.max_length), &mut ()).unwrap();
    let alone = sample(&[77]);
    let mut seeds: Vec<u64> = (0..config.batch as u64).collect();
    let last = seeds.len() - 1;
    seeds[last] = 77;
    let together = sample(&seeds);
    assert_eq!(alone.ids[0], together.ids[last]);
    assert_close("latents", &alone.z.get(0), &together.z.get(last as i64), 1e-5);
    assert!(last == 0 || elf_tests::max_difference(&together.z.get(0), &together.z.get(last as i64)) > 1e-2);
}
