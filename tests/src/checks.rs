//! The reference numbers against this code in fp32, on any device.

use std::rc::Rc;

use elf_core::{Counting, Network, Noise, Precision, Replay, TrunkInput};
use elf_encoder::{EncoderMask, T5Encoder, TextEncoder};
use elf_flow::sampler::{Registry, SamplerChoice};
use elf_flow::{Condition, FlowPath, GenerateConfig, Generator, Request, TimeLaw, TrainedFlow};
use elf_model::Elf;
use elf_train::{Solo, StepMetrics, Trainer};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::comparisons::Comparisons;
use crate::recorded::{Metrics, Recorded};
use crate::small::network_on;
use crate::{Reference, parity_json, parity_path};

/// Absolute tolerance of one pass of the network or the encoder: that of the reference between two machines.
pub const OF_A_PASS: f64 = 1e-5;
/// Absolute tolerance of rollouts and of trained parameters; relative tolerance of losses and gradients.
pub const OF_MANY: f64 = 1e-4;

/// The folders of the recorded encoders.
pub const ENCODERS: [&str; 2] = ["t5_relu", "t5_gated_gelu"];

/// A check by its name.
pub type Check = (String, Box<dyn Fn(Device) -> Comparisons>);

/// All checks.
///
/// # Panics
/// If the reference numbers are missing; so do the checks.
pub fn all() -> Vec<Check> {
    let mut checks: Vec<Check> = vec![("one pass".into(), Box::new(passes))];
    checks.extend(
        ENCODERS
            .map(|folder| -> Check { (format!("encoder {folder}"), Box::new(move |device| encoder(folder, device))) }),
    );
    for rollout in parity_json::<Vec<Rollout>>("samplers.json") {
        checks.push((format!("rollout {}", rollout.name), Box::new(move |device| rollout.check(device))));
    }
    for recorded in parity_json::<Vec<Recorded>>("train.json") {
        checks.push((format!("training {}", recorded.name), Box::new(move |device| training(&recorded, device))));
    }
    checks
}

/// Passes of the network: denoising, decoding, rows of both, with a padding mask, and without self-conditioning or guidance.
///
/// # Panics
/// If the reference numbers are missing.
pub fn passes(device: Device) -> Comparisons {
    let reference = Reference::on("forward.safetensors", device);
    let [z, x_prev, t, w, gate] =
        ["in.z", "in.x_prev", "in.t", "in.sc_cfg_scale", "in.gate"].map(|name| reference.get(name));
    let [net, unguided] = ["model", "model_no_sc_tokens"].map(|weights| network_on(weights, device));
    let input = || TrunkInput { x_prev: Some(x_prev), guidance: Some(w), ..TrunkInput::new(z, t) };
    let all = t.ones_like();
    let mut found = Comparisons::default();
    let mut check = |net: &Elf, name: &str, hidden: elf_core::Result<Tensor>| {
        let hidden = hidden.unwrap();
        let before = found.0.len();
        if let Some(x) = reference.find(&format!("{name}.x")) {
            found.close(format!("{name}.x"), &net.clean(&hidden).unwrap(), x, OF_A_PASS);
        }
        if let Some(logits) = reference.find(&format!("{name}.logits")) {
            let flat = hidden.reshape([-1, net.shape().hidden_size]);
            found.close(format!("{name}.logits"), &net.logits(&flat).unwrap().view_as(logits), logits, OF_A_PASS);
        }
        assert!(found.0.len() > before, "no reference numbers for {name}");
    };
    check(&net, "denoise", net.trunk(&input()));
    check(&net, "decode", net.trunk(&TrunkInput { decode: Some(&all), ..input() }));
    check(&net, "mixed", net.trunk(&TrunkInput { decode: Some(gate), ..input() }));
    check(&net, "masked", net.trunk_with_mask(&input(), reference.get("in.attention_mask")));
    check(&net, "plain", net.trunk(&TrunkInput { x_prev: None, ..input() }));
    check(&unguided, "no_sc_tokens", unguided.trunk(&input()));
    found.equal("guidance of a network without its tokens", &unguided.shape().guidance_input, &false);
    found
}

/// Hidden states of the encoder in `folder`, without a mask, with one for columns and with one for pairs.
///
/// # Panics
/// If the reference numbers are missing.
pub fn encoder(folder: &str, device: Device) -> Comparisons {
    let encoder = T5Encoder::load(&parity_path(folder), device, Precision::F32).unwrap();
    let cases = Reference::on(&format!("{folder}/cases.safetensors"), device);
    let masks = [
        ("no_mask", EncoderMask::None),
        ("mask_2d", EncoderMask::Columns(cases.get("mask_2d"))),
        ("mask_3d", EncoderMask::Pairs(cases.get("mask_3d"))),
    ];
    let mut found = Comparisons::default();
    for (name, mask) in masks {
        let hidden = encoder.encode(cases.get("input_ids"), mask).unwrap();
        found.equal(format!("kind of {name}"), &hidden.kind(), &Kind::Float);
        found.close(name, &hidden, cases.get(&format!("hidden.{name}")), OF_A_PASS);
    }
    found
}

/// One rollout of `samplers.json`.
#[derive(Deserialize)]
#[allow(missing_docs)] // the fields are the keys of the file
pub struct Rollout {
    pub name: String,
    pub weights: String,
    pub method: String,
    pub gamma: f64,
    pub cfg_scale: f64,
    pub self_cond_cfg_scale: f64,
    pub conditional: bool,
    pub noise_scale: f64,
    pub t_eps: f64,
    pub num_self_cond_cfg_tokens: i64,
    pub self_cond_prob: f64,
}

impl Rollout {
    fn self_conditioned(&self) -> bool {
        self.self_cond_prob > 0.0
    }

    /// The sampler and its guidance.
    pub fn config(&self) -> GenerateConfig {
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

    /// The flow that it samples from.
    pub fn trained(&self) -> TrainedFlow {
        TrainedFlow {
            path: FlowPath { noise_scale: self.noise_scale, t_eps: self.t_eps, ..FlowPath::default() },
            self_conditioned: self.self_conditioned(),
            block_size: None,
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

    /// Latents, tokens and cost against those of the reference.
    ///
    /// # Panics
    /// If the reference numbers are missing.
    pub fn check(&self, device: Device) -> Comparisons {
        let reference = Reference::on("samplers.safetensors", device);
        let get = |what: &str| reference.get(&format!("{}.{what}", self.name));
        let net = Counting::new(network_on(&self.weights, device));
        let times: Vec<f64> = Vec::<f32>::try_from(get("t_steps")).unwrap().into_iter().map(f64::from).collect();
        let steps = times.len() as u64 - 1;

        let (b, s, _) = get("z0").size3().unwrap();
        let mut noise = Replay::new().on(device);
        noise.push("z0", &(get("z0") / self.noise_scale));
        let mut found = Comparisons::default();
        if let Some(eps) = reference.find(&format!("{}.eps", self.name)) {
            found.equal("draws: one a step but for the last", &(eps.size()[0] as u64), &(steps - 1));
            (0..eps.size()[0]).for_each(|i| _ = noise.push("sde", &eps.get(i)));
        }
        let condition = self.conditional.then(|| condition(&reference));
        let seeds = vec![0; b as usize];
        let request = Request { condition: condition.as_ref(), ..Request::new(&seeds, s) };

        let generator = Generator::new(&net, self.trained(), self.config(), &Registry::builtin()).unwrap();
        let got = generator.with_times(times).unwrap().generate_from(&request, &mut noise, &mut ()).unwrap();

        found.close("z_final", &got.z, get("z_final"), OF_MANY);
        found.equal("token ids", &got.ids, &rows(get("token_ids")));
        found.equal("passes", &got.cost.passes, &self.passes(steps));
        found.equal("rows that the network saw", &net.count().rows, &(got.cost.passes * b as u64));
        found.equal("positions with logits", &net.count().logit_positions, &((b * s) as u64));
        if let Some(condition) = &condition {
            found.equal("the clean condition", &condition.pin(&got.z).unwrap().equal(&got.z), &true);
        }
        found
    }
}

/// The recorded condition. Its token ids are not recorded, and no sampler of the paper needs them.
///
/// # Panics
/// If it is missing.
pub fn condition(reference: &Reference) -> Condition {
    let (latents, mask) = (reference.get("cond.latent"), reference.get("cond.mask"));
    Condition::new(latents, &Tensor::full(mask.size(), -1, (Kind::Int64, mask.device())), mask).unwrap()
}

/// Token ids by row.
///
/// # Panics
/// If the tensor has another form.
pub fn rows(ids: &Tensor) -> Vec<Vec<i64>> {
    Vec::try_from(ids).unwrap()
}

/// A recorded training: losses, clipped gradients, parameters and averages.
///
/// # Panics
/// If the reference numbers are missing.
pub fn training(recorded: &Recorded, device: Device) -> Comparisons {
    let reference = Reference::on(&format!("train_{}.safetensors", recorded.name), device);
    let encoder = T5Encoder::load(&parity_path(&recorded.encoder), device, Precision::F32).unwrap();
    let net = network_on("model", device);
    let mut trainer = Trainer::new(net, recorded.objective(), recorded.config(), Rc::new(Solo)).unwrap();
    let micro = |step: usize| {
        let noise: Box<dyn Noise> = Box::new(recorded.draws(&reference, step).on(device));
        Ok((recorded.batch(&reference, step, &encoder), noise))
    };
    let parts = recorded.grad_accum_steps.get() as usize;
    assert_eq!((recorded.num_steps % parts, recorded.metrics.len()), (0, recorded.num_steps));
    let mut found = Comparisons::default();
    for first in (0..recorded.num_steps).step_by(parts) {
        let report = trainer.step_with_noise((first..first + parts).map(micro)).unwrap().unwrap();
        for (part, expected) in report.micro.iter().zip(&recorded.metrics[first..]) {
            found.number(format!("loss of step {first}"), part.loss.double_value(&[]), expected.loss, OF_MANY);
            for (term, sum, count) in &part.terms {
                let mean = sum.double_value(&[]) / count.max(1.0);
                let expected = match *term {
                    "l2" => expected.l2_loss,
                    "ce" => expected.ce_loss,
                    other => panic!("unknown part {other}"),
                };
                found.number(format!("{term} of step {first}"), mean, expected, OF_MANY);
            }
        }
        compare_figures(&mut found, &report.read().unwrap(), &recorded.metrics[first..first + parts]);
        if first == 0 {
            // They are kept until the next step begins.
            let (params, clipped) = (trainer.net().params(), reference.under("grad_clipped_first."));
            assert_eq!(clipped.len(), params.len());
            for (name, p) in params.iter() {
                found.close_relative(format!("gradient of {name}"), &p.tensor.grad(), clipped[name], OF_MANY);
            }
        }
    }
    let (finals, averages) = (reference.under("param_final."), reference.under("ema_final."));
    assert_eq!((finals.len(), averages.len()), (trainer.net().params().len(), trainer.net().params().len()));
    for (name, p) in trainer.net().params().iter() {
        found.close(name, &p.tensor, finals[name], OF_MANY);
    }
    for (name, average) in trainer.ema().averages() {
        found.close(format!("average of {name}"), average, averages[name], OF_MANY);
    }
    found
}

/// The logged figures of a step follow from its micro-batches, and bins of time share out each part's positions and loss.
fn compare_figures(found: &mut Comparisons, read: &StepMetrics, recorded: &[Metrics]) {
    let mean = recorded.iter().map(|m| m.loss).sum::<f64>() / recorded.len() as f64;
    found.number("logged loss", read.loss, mean, OF_MANY);
    read.check().unwrap();
    for term in &read.terms {
        let of_part = format!("{}@", term.name);
        let bins = read.by_time.iter().filter(|bin| bin.name.starts_with(&of_part));
        let (sum, count) = bins.fold((0.0, 0.0), |(s, c), bin| (s + bin.mean * bin.count, c + bin.count));
        found.equal(format!("positions in the bins of {}", term.name), &count, &term.count);
        found.number(format!("the bins of {}", term.name), sum, term.mean * term.count, OF_MANY);
    }
}
