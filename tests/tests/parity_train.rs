//! Whole training steps against the released code's numbers: losses, clipped gradients, parameters and averages after four
//! micro-batches, for Muon, AdamW, a conditional task with label drop, and gradient accumulation; and learning rates.

use std::num::NonZeroU32;

use elf_core::{Network, Noise, Precision, PrecisionPolicy, Replay};
use elf_encoder::{EncoderMask, LatentStats, T5Encoder, TextEncoder};
use elf_flow::{ElfObjective, GuidanceLaw, LatentBatch, LogitNormal, Path, TimeLaw};
use elf_model::Elf;
use elf_tests::{Reference, assert_close, assert_close_relative, parity_json, parity_path};
use elf_train::optim::{AdamWConfig, MuonConfig, OptimizerConfig};
use elf_train::{Decay, Schedule, Solo, StepMetrics, Trainer, TrainerConfig};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

/// Relative, for losses and gradients; absolute, for parameters after all steps.
const TOLERANCE: f64 = 1e-4;

#[derive(Deserialize)]
struct Metrics {
    loss: f64,
    l2_loss: f64,
    ce_loss: f64,
}

/// One entry of `train.json`.
#[derive(Deserialize)]
struct Recorded {
    name: String,
    optimizer: String,
    pad_token: String,
    grad_accum_steps: NonZeroU32,
    lr: f64,
    warmup_steps: u64,
    weight_decay: f64,
    adam_b1: f64,
    adam_b2: f64,
    ema_decay: f64,
    decoder_prob: f64,
    decoder_noise_scale: f64,
    decoder_p_mean: f64,
    decoder_p_std: f64,
    denoiser_p_mean: f64,
    denoiser_p_std: f64,
    denoiser_noise_scale: f64,
    latent_mean: f64,
    latent_std: f64,
    self_cond_prob: f64,
    self_cond_cfg_min: f64,
    self_cond_cfg_max: f64,
    t_eps: f64,
    clip_norm: f64,
    num_steps: usize,
    encoder: String,
    metrics: Vec<Metrics>,
}

impl Recorded {
    fn objective(&self) -> ElfObjective {
        let objective = ElfObjective {
            path: Path { noise_scale: self.denoiser_noise_scale, t_eps: self.t_eps },
            time: TimeLaw::LogitNormal(LogitNormal { mean: self.denoiser_p_mean, std: self.denoiser_p_std }),
            guidance: GuidanceLaw { min: self.self_cond_cfg_min, max: self.self_cond_cfg_max },
            self_cond_prob: self.self_cond_prob,
            decoder_prob: self.decoder_prob,
            decoder_noise_scale: self.decoder_noise_scale,
            decoder: LogitNormal { mean: self.decoder_p_mean, std: self.decoder_p_std },
        };
        objective.check().unwrap();
        objective
    }

    fn config(&self) -> TrainerConfig {
        let optimizer = match self.optimizer.as_str() {
            "muon" => OptimizerConfig::Muon(MuonConfig::default()),
            "adamw" => {
                let (b1, b2, weight_decay) = (self.adam_b1, self.adam_b2, self.weight_decay);
                OptimizerConfig::Adamw(AdamWConfig { b1, b2, weight_decay, ..AdamWConfig::default() })
            }
            other => panic!("unknown optimizer {other}"),
        };
        TrainerConfig {
            optimizer,
            schedule: Schedule::constant(self.lr, self.warmup_steps),
            clip_norm: Some(self.clip_norm),
            ema_decay: self.ema_decay,
            accumulation: self.grad_accum_steps,
            seed: 0,
        }
    }

    /// The micro-batch of a recorded step, encoded.
    fn batch(&self, reference: &Reference, step: usize, encoder: &dyn TextEncoder) -> LatentBatch {
        let get = |name: &str| reference.get(&format!("step{step}.batch.{name}"));
        let (ids, condition, valid) = (get("input_ids"), get("cond_seq_mask"), get("attention_mask"));
        let dropped: Tensor = get("label_drop_mask").view([-1, 1, 1]);
        // The target's rows lose the condition's columns where the label is dropped.
        let hidden = dropped * (1.0 - condition.unsqueeze(-1)) * condition.unsqueeze(1);
        let mask = get("encoder_attention_mask") * (1.0 - hidden);
        let encoded = encoder.encode(ids, EncoderMask::Pairs(&mask)).unwrap();
        let loss_mask = match self.pad_token.as_str() {
            "pad" => valid * (1.0 - condition),
            "eos" => 1.0 - condition,
            other => panic!("unknown padding {other}"),
        };
        LatentBatch {
            latents: LatentStats::uniform(self.latent_mean, self.latent_std).unwrap().normalise(&encoded).unwrap(),
            ids: ids.shallow_clone(),
            loss_mask,
            condition: (condition.sum(Kind::Float).double_value(&[]) > 0.0).then(|| condition.shallow_clone()),
            dropped: Vec::<f32>::try_from(get("label_drop_mask")).unwrap().iter().map(|&d| d > 0.5).collect(),
        }
    }

    /// The draws of a recorded step.
    fn draws(&self, reference: &Reference, step: usize) -> Replay {
        let get = |name: &str| reference.get(&format!("step{step}.draw.{name}"));
        let mut replay = Replay::new();
        for name in ["self_cond_u", "t_normal", "cfg_scale_u", "noise", "decoder_lambda_normal", "decoder_noise_normal"]
        {
            replay.push(name, get(name));
        }
        // The recording holds the outcome, 1 for decode; the objective wants a number that is below the probability then.
        replay.push("decoder_coin", &(1.0 - get("decoder_coin")));
        replay
    }
}

fn train(name: &str) {
    let all: Vec<Recorded> = parity_json("train.json");
    let recorded = all.into_iter().find(|r| r.name == name).unwrap();
    let reference = Reference::open(&format!("train_{name}.safetensors"));
    let encoder = T5Encoder::load(&parity_path(&recorded.encoder), Device::Cpu, Precision::F32).unwrap();
    let net = Elf::load(&parity_path("model.safetensors"), PrecisionPolicy::F32, Device::Cpu).unwrap();
    let mut trainer = Trainer::new(net, recorded.objective(), recorded.config(), Box::new(Solo)).unwrap();

    let micro = |step: usize| {
        let noise: Box<dyn Noise> = Box::new(recorded.draws(&reference, step));
        Ok((recorded.batch(&reference, step, &encoder), noise))
    };
    let parts = recorded.grad_accum_steps.get() as usize;
    assert_eq!((recorded.num_steps % parts, recorded.metrics.len()), (0, recorded.num_steps));
    let clipped = reference.under("grad_clipped_first.");
    for first in (0..recorded.num_steps).step_by(parts) {
        let report = trainer.step_with_noise((first..first + parts).map(micro)).unwrap().unwrap();
        for (part, expected) in report.micro.iter().zip(&recorded.metrics[first..]) {
            compare("loss", first, part.loss.double_value(&[]), expected.loss);
            for (term, sum, count) in &part.terms {
                compare(
                    term,
                    first,
                    sum.double_value(&[]) / count.max(1.0),
                    match *term {
                        "l2" => expected.l2_loss,
                        "ce" => expected.ce_loss,
                        other => panic!("unknown part {other}"),
                    },
                );
            }
        }
        check_sum(&report.read().unwrap(), &recorded.metrics[first..first + parts]);
        if first == 0 {
            // They stay where they are until the next step begins.
            let params = trainer.net().params();
            assert_eq!(clipped.len(), params.len());
            for (name, p) in params.iter() {
                assert_close_relative(&format!("gradient of {name}"), &p.tensor.grad(), clipped[name], TOLERANCE);
            }
        }
    }

    let (finals, averages) = (reference.under("param_final."), reference.under("ema_final."));
    assert_eq!((finals.len(), averages.len()), (trainer.net().params().len(), trainer.net().params().len()));
    let mut worst = 0f64;
    for (name, p) in trainer.net().params().iter() {
        assert_close(name, &p.tensor, finals[name], TOLERANCE);
        worst = worst.max(elf_tests::max_difference(&p.tensor, finals[name]));
    }
    for (name, average) in trainer.ema().averages() {
        assert_close(&format!("average of {name}"), average, averages[name], TOLERANCE);
    }
    println!("{name}: parameters differ by at most {worst:.1e}");
}

fn compare(what: &str, step: usize, got: f64, want: f64) {
    assert!((got - want).abs() <= TOLERANCE * want.abs(), "step {step}: {what} is {got}, should be {want}");
}

/// What is logged for a step follows from its micro-batches.
fn check_sum(metrics: &StepMetrics, recorded: &[Metrics]) {
    let mean = recorded.iter().map(|m| m.loss).sum::<f64>() / recorded.len() as f64;
    assert!((metrics.loss - mean).abs() <= TOLERANCE * mean);
    metrics.check().unwrap();
}

#[test]
fn parity_muon_unconditional() {
    train("muon_uncond");
}

#[test]
fn parity_adamw_unconditional() {
    train("adamw_uncond");
}

#[test]
fn parity_muon_conditional_with_label_drop() {
    train("muon_cond");
}

#[test]
fn parity_muon_with_gradient_accumulation() {
    train("muon_accum");
}

#[test]
fn parity_all_recorded_runs_are_tested() {
    let mut names: Vec<String> = parity_json::<Vec<Recorded>>("train.json").into_iter().map(|r| r.name).collect();
    names.sort();
    assert_eq!(names, ["adamw_uncond", "muon_accum", "muon_cond", "muon_uncond"]);
}

/// `lr.json`.
#[derive(Deserialize)]
struct Rates {
    num_train_steps: u64,
    num_warmup_steps: u64,
    learning_rate: f64,
    cosine_min_lr: f64,
    steps: Vec<u64>,
    constant: Vec<f64>,
    cosine: Vec<f64>,
}

#[test]
fn parity_learning_rates() {
    let rates: Rates = parity_json("lr.json");
    let constant = Schedule::constant(rates.learning_rate, rates.num_warmup_steps);
    let cosine =
        Schedule { decay: Decay::Cosine, min_lr: rates.cosine_min_lr, total_steps: rates.num_train_steps, ..constant };
    for (i, &step) in rates.steps.iter().enumerate() {
        for (schedule, want) in [(constant, rates.constant[i]), (cosine, rates.cosine[i])] {
            let got = schedule.lr_at(step);
            assert!((got - want).abs() <= 1e-12 * rates.learning_rate, "step {step}: {got} instead of {want}");
        }
    }
}
