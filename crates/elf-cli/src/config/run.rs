//! The keys of a training configuration.

use elf_core::Precision;
use elf_flow::{LogitNormal, PredictionTarget, TimeLaw};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Device;

use super::ObjectiveName;

/// How rows are filled up, and whether the filling is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PadTokenName {
    /// `<pad>`, without loss.
    Pad,
    /// `</s>`, with loss.
    Eos,
}

/// A law of times by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TimeScheduleName {
    /// Logit-normal.
    LogitNormal,
    /// Uniform.
    Uniform,
}

impl TimeScheduleName {
    /// The law of that name; a logit-normal one is that of the training's times.
    pub fn law(self, config: &RunConfig) -> TimeLaw {
        match self {
            Self::LogitNormal => {
                TimeLaw::LogitNormal(LogitNormal { mean: config.denoiser_p_mean, std: config.denoiser_p_std })
            }
            Self::Uniform => TimeLaw::Uniform,
        }
    }
}

/// A learning-rate schedule by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleName {
    /// Constant after warm-up.
    Constant,
    /// Cosine to `min_lr` after warm-up.
    Cosine,
}

/// An optimiser by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    /// Muon for matrices, Nesterov-Adam for the rest.
    Muon,
    /// AdamW.
    Adamw,
}

/// A run as its author writes it. Keys and their meaning are those of the released code; values that are left out are those
/// of the released recipes. `null` means: derived from the others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// What is learned: `elf`, or a baseline to hold it against, `gpt2` or `mdlm`. Keys about latents, noise, guidance and
    /// encoder have no effect on a baseline.
    pub objective: ObjectiveName,
    /// Token shards to train on: a folder, a file or a Hugging Face id.
    pub data_path: Option<String>,
    /// Token shards to validate on.
    pub eval_data_path: Option<String>,
    /// S, positions of a row.
    pub max_length: usize,
    /// Longest condition of a conditional task; `null` for unconditional text.
    pub max_input_length: Option<usize>,
    /// Whether conditions end in EOS; `null`: as those of the training data do, and with a model from elsewhere that they
    /// do, as those that the released models were trained with.
    pub condition_eos: Option<bool>,
    /// How rows are filled up; `null`: `pad` for unconditional text, `eos` for conditional tasks.
    pub pad_token: Option<PadTokenName>,
    /// A folder with tokenizer.json, or the file, or a Hugging Face id; `null`: the encoder's folder.
    pub tokenizer_name: Option<String>,

    /// A folder with the text encoder's config.json and model.safetensors, or a Hugging Face id.
    pub encoder_model_name: String,
    /// Other weights for it, a file or a folder; configuration, tokenizer and latent_stats.json stay those of `encoder_model_name`.
    pub encoder_checkpoint: Option<String>,
    /// Mean of the encoder's output; `null`: from the encoder's latent_stats.json, or 0.
    pub latent_mean: Option<f64>,
    /// Standard deviation of the encoder's output; `null`: from the encoder's latent_stats.json, or 0.2.
    pub latent_std: Option<f64>,

    /// `ELF-B`, `ELF-M` or `ELF-L`; the next three keys change its sizes.
    pub model: String,
    /// Width of the blocks, if other than the preset's.
    pub hidden_size: Option<i64>,
    /// Number of blocks, if other than the preset's.
    pub depth: Option<i64>,
    /// Attention heads, if other than the preset's.
    pub num_heads: Option<i64>,
    /// Width of the bottleneck between latents and blocks.
    pub bottleneck_dim: i64,
    /// Prefix tokens for the time.
    pub num_time_tokens: i64,
    /// Prefix tokens for the guidance scale; 0 for none.
    pub num_self_cond_cfg_tokens: i64,
    /// Prefix tokens for the mode.
    pub num_model_mode_tokens: i64,
    /// Dropout in the middle half of the depth.
    pub proj_dropout: f64,
    /// Learn a latent for each entry of the vocabulary with the network, in place of the encoder's latents; the encoder then gives their width.
    /// For unconditional text.
    pub learned_latents: bool,
    /// Encode each position of a target by itself and what stands before it alone.
    pub causal_latents: bool,
    /// Write texts in blocks of so many tokens, each knowing all before it; `null`: all tokens together, as in the paper. Needs
    /// `causal_latents`.
    pub block_size: Option<usize>,
    /// Let the words before a block come in through a learned table besides through their latents. For models with a `block_size`, which learn to follow
    /// a source many times faster with it. Not in the paper.
    pub context_table: bool,
    /// Normalise what the vocabulary head reads. Not in the paper.
    pub vocab_head_norm: bool,

    /// Mean of the logit-normal law of times.
    pub denoiser_p_mean: f64,
    /// Standard deviation of the logit-normal law of times.
    pub denoiser_p_std: f64,
    /// Standard deviation of the noise at t = 0.
    pub denoiser_noise_scale: f64,
    /// The smallest remaining time that a velocity is divided by.
    pub t_eps: f64,
    /// What the network's head says: `x`, the clean latents, or `v`, the velocity.
    #[schemars(with = "String")]
    pub prediction: PredictionTarget,
    /// The law of training times.
    pub time_schedule: TimeScheduleName,

    /// Share of decode rows.
    pub decoder_prob: f64,
    /// Standard deviation of the noise in decode rows; `null`: 5 for unconditional text, 1 for conditional tasks.
    pub decoder_noise_scale: Option<f64>,
    /// Mean of the logit-normal law of decode tokens' clean shares.
    pub decoder_p_mean: f64,
    /// Its standard deviation.
    pub decoder_p_std: f64,
    /// Leave the condition of decode rows clean, so that they learn how a target follows from it; the released code corrupts it.
    pub decoder_clean_condition: bool,

    /// Share of rows trained without their condition; `null`: 0 for unconditional text, 0.1 for conditional tasks.
    pub label_drop_prob: Option<f64>,
    /// Share of self-conditioned rows; 0 makes a network that takes z alone.
    pub self_cond_prob: f64,
    /// Smallest guidance scale in training.
    pub self_cond_cfg_min: f64,
    /// Largest guidance scale in training.
    pub self_cond_cfg_max: f64,

    /// Passes over the data.
    pub epochs: f64,
    /// Optimiser steps, instead of `epochs`.
    pub max_steps: Option<u64>,
    /// Wall-clock minutes after which training stops and saves, whatever the other two say.
    pub max_minutes: Option<f64>,
    /// Warm-up in epochs, used if `warmup_steps` is -1.
    pub warmup_epochs: Option<f64>,
    /// Warm-up in optimiser steps; -1 means `warmup_epochs`.
    pub warmup_steps: i64,
    /// Rows of one device's batch; `null`: `global_batch_size` shared out over the devices.
    pub batch_size: Option<usize>,
    /// Rows of a batch over all devices.
    pub global_batch_size: usize,
    /// Put rows of like length into the same batch. For models with a `block_size`, whose batches are cut to their longest row.
    pub group_by_length: bool,
    /// Learning rate; `null`: `blr` times rows per optimiser step over 256.
    pub lr: Option<f64>,
    /// Learning rate for 256 rows.
    pub blr: f64,
    /// Learning rate at the end of a cosine schedule.
    pub min_lr: f64,
    /// The schedule after warm-up.
    pub lr_schedule: ScheduleName,
    /// Decoupled weight decay (AdamW only).
    pub weight_decay: f64,
    /// The optimiser.
    pub optimizer: OptimizerName,
    /// Orthogonalise Muon's updates in bf16 where the device multiplies it natively; the reference does it in fp32.
    pub muon_bf16: bool,
    /// AdamW's first decay.
    pub adam_b1: f64,
    /// AdamW's second decay.
    pub adam_b2: f64,
    /// Batches per optimiser step.
    pub grad_accum_steps: usize,
    /// bf16 blocks where the device multiplies bf16 natively.
    pub use_bf16: bool,
    /// The vocabulary head and the maps between latents and blocks in bf16 too, as far as blocks are; the reference has them in
    /// fp32.
    pub heads_bf16: bool,
    /// Recompute activations in the backward pass instead of keeping them.
    pub gradient_checkpointing: bool,
    /// Decay of the averaged parameters.
    pub ema_decay1: f64,
    /// Seed of parameters, data order and noise.
    pub seed: u64,

    /// A file with sampling settings, for evaluation in training and for `elf sample`.
    pub sampling_configs_path: Option<String>,
    /// Texts to generate at an evaluation.
    pub num_samples: usize,
    /// Held-out rows whose loss is taken at an evaluation.
    pub eval_rows: usize,
    /// Whether evaluations in training also generate text.
    pub online_eval: bool,
    /// The judge of generative perplexity of unconditional texts: a folder with a GPT-2 or a Hugging Face id, gpt2-large in the
    /// released code; `null`: evaluations in training do without one.
    pub eval_ppl_model: Option<String>,
    /// Longest texts that the judge reads at once, at most.
    pub eval_ppl_batch_size: usize,
    /// Longest text that the judge reads, in its tokens.
    pub eval_ppl_max_length: usize,
    /// Epochs between evaluations; below 1 a fraction of an epoch.
    pub eval_freq: f64,

    /// The run's folder.
    pub output_dir: Option<String>,
    /// Epochs between checkpoints; below 1 a fraction of an epoch.
    pub save_freq: f64,
    /// Checkpoints to keep; the latest are.
    pub keep_checkpoints: usize,
    /// Stop after so many evaluations in a row whose validation loss was no better than the best, and keep that one's checkpoint;
    /// `null`: never.
    pub early_stopping: Option<u64>,
    /// Optimiser steps between lines of metrics.jsonl.
    pub log_freq: u64,
    /// A run folder or a checkpoint to go on from; `null`: the latest checkpoint in `output_dir`, if any.
    pub resume: Option<String>,
    /// A model whose weights a new run begins with, in place of random ones: a run, a checkpoint, a file of the released code or a Hugging
    /// Face id. Its sizes and tokenizer must be the run's; its optimiser and steps are not taken over.
    pub init_from: Option<String>,
}

impl RunConfig {
    /// How rows are filled up.
    pub fn pad_token(&self) -> PadTokenName {
        let usual = if self.max_input_length.is_some() { PadTokenName::Eos } else { PadTokenName::Pad };
        self.pad_token.unwrap_or(usual)
    }

    /// What matrix products are done in.
    pub fn precision(&self, device: Device) -> Precision {
        if self.use_bf16 { Precision::native(device) } else { Precision::F32 }
    }
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            objective: ObjectiveName::Elf,
            data_path: None,
            eval_data_path: None,
            max_length: 1024,
            max_input_length: None,
            condition_eos: None,
            pad_token: None,
            tokenizer_name: None,
            encoder_model_name: "t5-small".into(),
            encoder_checkpoint: None,
            latent_mean: None,
            latent_std: None,
            model: "ELF-B".into(),
            hidden_size: None,
            depth: None,
            num_heads: None,
            bottleneck_dim: 128,
            num_time_tokens: 4,
            num_self_cond_cfg_tokens: 4,
            num_model_mode_tokens: 4,
            proj_dropout: 0.0,
            learned_latents: false,
            causal_latents: false,
            block_size: None,
            context_table: false,
            vocab_head_norm: false,
            denoiser_p_mean: -1.5,
            denoiser_p_std: 0.8,
            denoiser_noise_scale: 2.0,
            t_eps: 0.05,
            prediction: PredictionTarget::Clean,
            time_schedule: TimeScheduleName::LogitNormal,
            decoder_prob: 0.2,
            decoder_noise_scale: None,
            decoder_p_mean: 0.8,
            decoder_p_std: 0.8,
            decoder_clean_condition: false,
            label_drop_prob: None,
            self_cond_prob: 0.5,
            self_cond_cfg_min: 0.5,
            self_cond_cfg_max: 5.0,
            epochs: 5.0,
            max_steps: None,
            max_minutes: None,
            warmup_epochs: Some(0.5),
            warmup_steps: -1,
            batch_size: None,
            global_batch_size: 512,
            group_by_length: false,
            lr: None,
            blr: 1e-3,
            min_lr: 0.0,
            lr_schedule: ScheduleName::Constant,
            weight_decay: 0.0,
            optimizer: OptimizerName::Muon,
            muon_bf16: false,
            adam_b1: 0.9,
            adam_b2: 0.95,
            grad_accum_steps: 1,
            use_bf16: true,
            heads_bf16: false,
            gradient_checkpointing: false,
            ema_decay1: 0.9999,
            seed: 42,
            sampling_configs_path: None,
            num_samples: 1000,
            eval_rows: 512,
            online_eval: true,
            eval_ppl_model: None,
            eval_ppl_batch_size: 64,
            eval_ppl_max_length: 1024,
            eval_freq: 10.0,
            output_dir: None,
            save_freq: 1.0,
            keep_checkpoints: 3,
            early_stopping: None,
            log_freq: 100,
            resume: None,
            init_from: None,
        }
    }
}
