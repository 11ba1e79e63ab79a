//! Rollouts, decoded tokens and their trimming against the reference numbers.

use elf_core::{Counting, Replay};
use elf_flow::sampler::{Registry, SamplerChoice};
use elf_flow::{
    Condition, FlowPath, GenerateConfig, Generator, Request, TimeLaw, TrainedFlow, Trim, pad_from_eos, shift_left,
};
use elf_tests::small::{network, network_of};
use elf_tests::{Reference, assert_close, parity_json};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

/// One rollout of `samplers.json`.
#[derive(Deserialize)]
struct Rollout {
    name: String,
    weights: String,
    method: String,
    gamma: f64,
    cfg_scale: f64,
    self_cond_cfg_scale: f64,
    conditional: bool,
    noise_scale: f64,
    t_eps: f64,
    num_self_cond_cfg_tokens: i64,
    self_cond_prob: f64,
}

impl Rollout {
    fn self_conditioned(&self) -> bool {
        self.self_cond_prob > 0.0
    }

    fn config(&self) -> GenerateConfig {
        let sampler = SamplerChoice::named(&self.method);
        GenerateConfig {
            sampler: if self.method == "sde" { sampler.with("gamma", self.gamma) } else { sampler },
            steps: 1,
            grid: TimeLaw::Uniform,
            self_conditioning_guidance: self.self_cond_cfg_scale,
            condition_guidance: self.cfg_scale,
            ..GenerateConfig::default()
        }
    }

    /// Passes that this rollout needs, the decoding one included.
    fn passes(&self, steps: u64) -> u64 {
        let two_pass_guidance =
            self.self_conditioned() && self.num_self_cond_cfg_tokens == 0 && self.self_cond_cfg_scale != 1.0;
        let condition_guidance = self.conditional && self.cfg_scale != 1.0;
        // The first step has no earlier estimate, and so no guidance.
        let evaluations = if two_pass_guidance { 2 * steps - 1 } else { steps };
        evaluations * if condition_guidance { 2 } else { 1 } + 1
    }
}

/// The recorded condition. Its token ids are not recorded, and no sampler of the paper needs them.
fn condition(reference: &Reference) -> Condition {
    let (latents, mask) = (reference.get("cond.latent"), reference.get("cond.mask"));
    Condition::new(latents, &Tensor::full(mask.size(), -1, (Kind::Int64, Device::Cpu)), mask).unwrap()
}

fn rows(ids: &Tensor) -> Vec<Vec<i64>> {
    Vec::try_from(ids).unwrap()
}

#[test]
fn parity_rollouts() {
    let rollouts: Vec<Rollout> = parity_json("samplers.json");
    assert!(!rollouts.is_empty());
    let reference = Reference::open("samplers.safetensors");
    let mut wrong = Vec::new();
    for rollout in &rollouts {
        let get = |what: &str| reference.get(&format!("{}.{what}", rollout.name));
        let net = Counting::new(network_of(&rollout.weights));
        let trained = TrainedFlow {
            path: FlowPath { noise_scale: rollout.noise_scale, t_eps: rollout.t_eps, ..FlowPath::default() },
            self_conditioned: rollout.self_conditioned(),
            block_size: None,
        };
        let times: Vec<f64> = Vec::<f32>::try_from(get("t_steps")).unwrap().into_iter().map(f64::from).collect();
        let steps = times.len() as u64 - 1;

        let (b, s, _) = get("z0").size3().unwrap();
        let mut noise = Replay::new();
        noise.push("z0", &(get("z0") / rollout.noise_scale));
        if let Some(eps) = reference.find(&format!("{}.eps", rollout.name)) {
            assert_eq!(eps.size()[0] as u64, steps - 1, "one draw a step but for the last");
            (0..eps.size()[0]).for_each(|i| _ = noise.push("sde", &eps.get(i)));
        }
        let condition = rollout.conditional.then(|| condition(&reference));
        let seeds = vec![0; b as usize];
        let request = Request { condition: condition.as_ref(), ..Request::new(&seeds, s) };

        let generator =
            Generator::new(&net, trained, rollout.config(), &Registry::builtin()).unwrap().with_times(times).unwrap();
        let got = generator.generate_from(&request, &mut noise, &mut ()).unwrap();

        let difference = elf_tests::max_difference(&got.z, get("z_final"));
        println!("{}: z_final differs by {difference:e}, {} passes", rollout.name, got.cost.passes);
        if difference > 1e-4 || got.ids != rows(get("token_ids")) {
            wrong.push(format!("{}: z_final differs by {difference:e}, ids {:?}", rollout.name, got.ids));
        }
        assert_eq!(got.cost.passes, rollout.passes(steps), "{}", rollout.name);
        assert_eq!(net.count().rows, got.cost.passes * b as u64, "{}: the cost is what the network saw", rollout.name);
        assert_eq!(net.count().logit_positions, (b * s) as u64, "{}", rollout.name);
        if let Some(condition) = &condition {
            let pinned = condition.pin(&got.z).unwrap();
            assert!(pinned.equal(&got.z), "{}: the condition is not clean", rollout.name);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
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
        let trained = TrainedFlow {
            path: FlowPath { noise_scale: rollout.noise_scale, t_eps: rollout.t_eps, ..FlowPath::default() },
            self_conditioned: rollout.self_conditioned(),
            block_size: None,
        };
        let times = Vec::<f32>::try_from(get("t_steps")).unwrap().into_iter().map(f64::from).collect();
        let (b, s, _) = get("z0").size3().unwrap();
        let condition = rollout.conditional.then(|| condition(&reference));
        let seeds = vec![0; b as usize];
        let request = Request { condition: condition.as_ref(), ..Request::new(&seeds, s) };
        let config = GenerateConfig { sampler: SamplerChoice::named("sde").with("gamma", 0.0), ..rollout.config() };
        let generator = Generator::new(&net, trained, config, &Registry::builtin()).unwrap().with_times(times).unwrap();
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
