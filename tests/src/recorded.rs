//! The recorded training runs: settings, batches and draws.

use std::num::NonZeroU32;

use elf_core::Replay;
use elf_encoder::{EncoderMask, LatentStats, TextEncoder};
use elf_flow::{ElfObjective, FlowPath, GuidanceLaw, LatentBatch, LogitNormal, TimeLaw};
use elf_train::optim::{AdamWConfig, MuonConfig, OptimizerConfig};
use elf_train::{Schedule, TrainerConfig};
use serde::Deserialize;
use tch::{Kind, Tensor};

use crate::Reference;

/// A micro-batch's losses.
#[derive(Debug, Deserialize)]
#[allow(missing_docs)]
pub struct Metrics {
    pub loss: f64,
    pub l2_loss: f64,
    pub ce_loss: f64,
}

/// One entry of `train.json`.
#[derive(Debug, Deserialize)]
#[allow(missing_docs)] // the fields are the keys of the file
pub struct Recorded {
    pub name: String,
    pub optimizer: String,
    pub pad_token: String,
    pub grad_accum_steps: NonZeroU32,
    pub lr: f64,
    pub warmup_steps: u64,
    pub weight_decay: f64,
    pub adam_b1: f64,
    pub adam_b2: f64,
    pub ema_decay: f64,
    pub decoder_prob: f64,
    pub decoder_noise_scale: f64,
    pub decoder_p_mean: f64,
    pub decoder_p_std: f64,
    pub denoiser_p_mean: f64,
    pub denoiser_p_std: f64,
    pub denoiser_noise_scale: f64,
    pub latent_mean: f64,
    pub latent_std: f64,
    pub self_cond_prob: f64,
    pub self_cond_cfg_min: f64,
    pub self_cond_cfg_max: f64,
    pub t_eps: f64,
    pub clip_norm: f64,
    pub num_steps: usize,
    pub encoder: String,
    pub metrics: Vec<Metrics>,
}

impl Recorded {
    /// The objective of the run.
    ///
    /// # Panics
    /// If its settings are impossible.
    pub fn objective(&self) -> ElfObjective {
        let objective = ElfObjective {
            path: FlowPath { noise_scale: self.denoiser_noise_scale, t_eps: self.t_eps, ..FlowPath::default() },
            time: TimeLaw::LogitNormal(LogitNormal { mean: self.denoiser_p_mean, std: self.denoiser_p_std }),
            guidance: GuidanceLaw { min: self.self_cond_cfg_min, max: self.self_cond_cfg_max },
            self_cond_prob: self.self_cond_prob,
            decoder_prob: self.decoder_prob,
            decoder_noise_scale: self.decoder_noise_scale,
            decoder: LogitNormal { mean: self.decoder_p_mean, std: self.decoder_p_std },
            ..ElfObjective::default()
        };
        objective.check().unwrap();
        objective
    }

    /// The settings of the run.
    ///
    /// # Panics
    /// If it names an unknown optimiser.
    pub fn config(&self) -> TrainerConfig {
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
    ///
    /// # Panics
    /// If the reference lacks something.
    pub fn batch(&self, reference: &Reference, step: usize, encoder: &dyn TextEncoder) -> LatentBatch {
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
    ///
    /// # Panics
    /// If the reference lacks something.
    pub fn draws(&self, reference: &Reference, step: usize) -> Replay {
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
