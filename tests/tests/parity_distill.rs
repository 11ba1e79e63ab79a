//! One step of progressive distillation against the released code's numbers: the student's targets, losses and clipped
//! gradients, for every recorded number of the teacher's steps.

use elf_core::{Network, Noise, Precision, PrecisionPolicy, Replay};
use elf_encoder::{EncoderMask, LatentStats, T5Encoder, TextEncoder};
use elf_flow::{DistillObjective, DistillStep, ElfObjective, FlowPath, GuidanceLaw, LatentBatch, LogitNormal, TimeLaw};
use elf_model::{Elf, ElfConfig};
use elf_tests::recorded::{Metrics, Recorded};
use elf_tests::small::network_of;
use elf_tests::{Reference, assert_close_relative, max_difference, parity_json, parity_path};
use elf_train::optim::{AdamWConfig, OptimizerConfig};
use elf_train::{Schedule, Solo, Trainer, TrainerConfig};
use serde::Deserialize;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};

/// Absolute tolerance of targets.
const TARGETS: f64 = 1e-4;
/// Relative tolerance of losses.
const LOSSES: f64 = 1e-5;
/// Tolerance of gradients, as a share of each one's largest element.
const GRADIENTS: f64 = 1e-4;
/// The released code's limit of the gradient norm.
const CLIP_NORM: f64 = 1.0;

/// One entry of `distill.json`; the fields are its keys.
#[derive(Deserialize)]
struct Case {
    name: String,
    teacher: String,
    metrics: Metrics,
    latent_mean: f64,
    latent_std: f64,
    decoder_prob: f64,
    decoder_noise_scale: f64,
    decoder_p_mean: f64,
    decoder_p_std: f64,
    denoiser_p_mean: f64,
    denoiser_p_std: f64,
    denoiser_noise_scale: f64,
    t_eps: f64,
    self_cond_prob: f64,
    self_cond_cfg_min: f64,
    self_cond_cfg_max: f64,
    pad_token: String,
    ema_decay1: f64,
    pd_teacher_steps: usize,
    pd_step_size: f64,
    pd_student_schedule: String,
    pd_teacher_schedule: String,
}

impl Case {
    fn times(&self, schedule: &str) -> TimeLaw {
        match schedule {
            "logit_normal" => {
                TimeLaw::LogitNormal(LogitNormal { mean: self.denoiser_p_mean, std: self.denoiser_p_std })
            }
            "uniform" => TimeLaw::Uniform,
            other => panic!("unknown schedule {other}"),
        }
    }

    fn objective<'t>(&self, teacher: &'t dyn Network) -> DistillObjective<'t> {
        let base = ElfObjective {
            path: FlowPath { noise_scale: self.denoiser_noise_scale, t_eps: self.t_eps, ..FlowPath::default() },
            guidance: GuidanceLaw { min: self.self_cond_cfg_min, max: self.self_cond_cfg_max },
            self_cond_prob: self.self_cond_prob,
            decoder_prob: self.decoder_prob,
            decoder_noise_scale: self.decoder_noise_scale,
            decoder: LogitNormal { mean: self.decoder_p_mean, std: self.decoder_p_std },
            ..ElfObjective::default()
        };
        let step = DistillStep {
            step_size: self.pd_step_size,
            substeps: self.pd_teacher_steps,
            student_times: self.times(&self.pd_student_schedule),
            teacher_times: self.times(&self.pd_teacher_schedule),
            own_runs: None,
        };
        DistillObjective::new(base, step, teacher).unwrap()
    }

    fn batch(&self, reference: &Reference, encoder: &dyn TextEncoder) -> LatentBatch {
        let get = |name: &str| reference.get(&format!("{}.batch.{name}", self.name));
        let (ids, condition, valid) = (get("input_ids"), get("cond_seq_mask"), get("attention_mask"));
        let encoded = encoder.encode(ids, EncoderMask::Pairs(get("encoder_attention_mask"))).unwrap();
        LatentBatch {
            latents: LatentStats::uniform(self.latent_mean, self.latent_std).unwrap().normalise(&encoded).unwrap(),
            ids: ids.shallow_clone(),
            loss_mask: match self.pad_token.as_str() {
                "pad" => valid * (1.0 - condition),
                "eos" => 1.0 - condition,
                other => panic!("unknown padding {other}"),
            },
            condition: (condition.sum(Kind::Float).double_value(&[]) > 0.0).then(|| condition.shallow_clone()),
            dropped: Vec::new(),
        }
    }

    fn draws(&self, reference: &Reference) -> Replay {
        let mut replay = Replay::new();
        for (name, tensor) in reference.under(&format!("{}.draw.", self.name)) {
            match name {
                // The recording holds outcomes, 1 for yes; the objective takes a number that is below the probability in that case.
                "decoder_coin" => replay.push(name, &(1.0 - tensor)),
                "self_cond_coin" => replay.push("self_cond_u", &(1.0 - tensor)),
                _ => replay.push(name, tensor),
            };
        }
        // If there is only one scale, the released code draws none: 0 is the smallest one.
        if reference.find(&format!("{}.draw.cfg_scale_u", self.name)).is_none() {
            replay.push("cfg_scale_u", &reference.get(&format!("{}.draw.decoder_coin", self.name)).zeros_like());
        }
        replay
    }
}

/// The recorded student, of the teacher's sizes.
fn student(case: &Case, config: &ElfConfig, reference: &Reference) -> Elf {
    let net = Elf::unset(config.clone(), PrecisionPolicy::F32, Device::Cpu).unwrap();
    net.params().load("the reference", reference.under(&format!("{}.student.", case.name))).unwrap();
    net
}

/// Cases, their tensors, and the encoder of all recorded training.
fn open() -> (Vec<Case>, Reference, T5Encoder) {
    let encoder = parity_json::<Vec<Recorded>>("train.json").swap_remove(0).encoder;
    let encoder = T5Encoder::load(&parity_path(&encoder), Device::Cpu, Precision::F32).unwrap();
    let cases: Vec<Case> = parity_json("distill.json");
    assert!(!cases.is_empty());
    (cases, Reference::open("distill.safetensors"), encoder)
}

#[test]
fn parity_distillation_targets() {
    let (cases, reference, encoder) = open();
    for case in cases {
        let teacher = network_of(&case.teacher);
        let batch = case.batch(&reference, &encoder);
        let targets = case.objective(&teacher).targets(&batch, &mut case.draws(&reference)).unwrap();
        let decoded = reference.get(&format!("{}.draw.decoder_coin", case.name)).sum(Kind::Float).double_value(&[]);
        let (rows, positions, _) = batch.sizes().unwrap();
        assert_eq!(targets.rows.len() as f64, rows as f64 - decoded, "{}: every denoise row has one", case.name);
        let places = Tensor::from_slice(&targets.rows);
        let expected = reference.get(&format!("{}.teacher_target", case.name)).index_select(0, &places);
        // All positions but those of conditions, which are given and never predicted.
        let free = match &batch.condition {
            Some(condition) => 1.0 - condition.index_select(0, &places),
            None => Tensor::ones([places.size()[0], positions], (Kind::Float, Device::Cpu)),
        };
        let free = free.unsqueeze(-1);
        let difference = max_difference(&(&targets.target * &free), &(expected * &free));
        assert!(difference <= TARGETS, "{}: targets differ by {difference:e}", case.name);
        println!("{}: {} targets differ by at most {difference:.1e}", case.name, targets.rows.len());
    }
}

#[test]
fn parity_distillation_losses_and_gradients() {
    let (cases, reference, encoder) = open();
    for case in cases {
        let teacher = network_of(&case.teacher);
        let student = student(&case, teacher.config(), &reference);
        let config = TrainerConfig {
            optimizer: OptimizerConfig::Adamw(AdamWConfig::default()),
            schedule: Schedule::constant(1e-3, 0),
            clip_norm: Some(CLIP_NORM),
            ema_decay: case.ema_decay1,
            accumulation: 1.try_into().unwrap(),
            seed: 0,
        };
        let mut trainer = Trainer::new(student, case.objective(&teacher), config, Rc::new(Solo)).unwrap();
        let noise: Box<dyn Noise> = Box::new(case.draws(&reference));
        let batch = case.batch(&reference, &encoder);
        let report = trainer.step_with_noise([Ok((batch, noise))]).unwrap().unwrap();

        let compare = |what: &str, got: f64, want: f64| {
            let close = (got - want).abs() <= LOSSES * want.abs();
            assert!(close, "{}: {what} is {got}, should be {want}", case.name);
        };
        let part = &report.micro[0];
        compare("loss", part.loss.double_value(&[]), case.metrics.loss);
        for (name, expected) in [("l2", case.metrics.l2_loss), ("ce", case.metrics.ce_loss)] {
            // A batch without rows of a kind has no such part, and the reference records 0.
            let part = part.terms.iter().find(|(term, ..)| *term == name);
            compare(name, part.map_or(0.0, |(_, sum, count)| sum.double_value(&[]) / count), expected);
        }
        // The clipped gradients are kept until the next step begins.
        let prefix = format!("{}.grad_clipped.", case.name);
        let clipped = reference.under(&prefix);
        let params = trainer.net().params();
        assert_eq!(clipped.len(), params.len());
        for (name, p) in params.iter() {
            let what = format!("{}: gradient of {name}", case.name);
            assert_close_relative(&what, &p.tensor.grad(), clipped[name], GRADIENTS);
        }
        // The teacher has not changed.
        assert!(teacher.params().iter().all(|(_, p)| !p.tensor.requires_grad()));
    }
}
