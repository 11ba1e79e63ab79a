//! The keys of a training configuration, group by group.

use elf_data::GivenShares;
use elf_flow::{LogitNormal, PredictionTarget, TimeLaw};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::names::{OptimizerName, PadTokenName, ScheduleName, TimeScheduleName};

/// Training and validation data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Token shards to train on: a folder, a file or a Hugging Face id.
    pub data_path: Option<String>,
    /// Token shards to validate on.
    pub eval_data_path: Option<String>,
    /// Positions per row (S).
    pub max_length: usize,
    /// Longest condition of a conditional task; `null` for unconditional text.
    pub max_input_length: Option<usize>,
    /// Whether conditions end in EOS. `null`: as in the training data; for an external model, yes, as the released
    /// models were trained.
    pub condition_eos: Option<bool>,
    /// How rows are padded: `pad` with `<pad>`, without loss; `eos` with `</s>`, with loss. `null`: `pad` for
    /// unconditional text, `eos` for conditional tasks.
    pub pad_token: Option<PadTokenName>,
    /// A tokenizer.json, the folder containing it, or a Hugging Face id; `null`: the encoder's folder.
    pub tokenizer_name: Option<String>,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            data_path: None,
            eval_data_path: None,
            max_length: 1024,
            max_input_length: None,
            condition_eos: None,
            pad_token: None,
            tokenizer_name: None,
        }
    }
}

/// The text encoder and the normalisation of its latents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EncoderConfig {
    /// A folder with the text encoder's config.json and model.safetensors, or a Hugging Face id.
    pub encoder_model_name: String,
    /// Other weights for the encoder, a file or a folder; configuration, tokenizer and latent_stats.json remain those
    /// of `encoder_model_name`.
    pub encoder_checkpoint: Option<String>,
    /// The encoder's layer whose output is taken as latents, counted from 1; 0 for its embeddings, `null` for the last.
    /// For encoders of the BERT family; of a T5, 0 alone: its token table.
    pub encoder_layer: Option<usize>,
    /// Mean of the encoder's output; `null`: from the encoder's latent_stats.json, or 0.
    pub latent_mean: Option<f64>,
    /// Standard deviation of the encoder's output; `null`: from the encoder's latent_stats.json, or 0.2.
    pub latent_std: Option<f64>,
}

impl Default for EncoderConfig {
    fn default() -> Self {
        Self {
            encoder_model_name: "t5-small".into(),
            encoder_checkpoint: None,
            encoder_layer: None,
            latent_mean: None,
            latent_std: None,
        }
    }
}

/// The sizes and parts of the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkConfig {
    /// `ELF-B`, `ELF-M` or `ELF-L`; the next three keys override its sizes.
    pub model: String,
    /// Width of the blocks, if different from the preset's.
    pub hidden_size: Option<i64>,
    /// Number of blocks, if different from the preset's.
    pub depth: Option<i64>,
    /// Number of attention heads, if different from the preset's.
    pub num_heads: Option<i64>,
    /// Width of the bottleneck between latents and blocks.
    pub bottleneck_dim: i64,
    /// Prefix tokens for the time.
    pub num_time_tokens: i64,
    /// Prefix tokens for the guidance scale; 0 for none.
    pub num_self_cond_cfg_tokens: i64,
    /// Prefix tokens for the mode.
    pub num_model_mode_tokens: i64,
    /// Dropout in the middle half of the blocks.
    pub proj_dropout: f64,
    /// Learn a latent for each vocabulary entry jointly with the network, instead of using the encoder's latents; the
    /// encoder then only determines their width. For unconditional text.
    pub learned_latents: bool,
    /// Encode targets causally: each position from itself and the positions before it only.
    pub causal_latents: bool,
    /// Generate text in blocks of this many tokens, each conditioned on all before it; `null`: all tokens at once, as
    /// in the paper. Needs `causal_latents`.
    pub block_size: Option<usize>,
    /// Feed in the tokens of a condition, and with a `block_size` those before a block, through a learned embedding table
    /// as well as through their latents. Models learn to follow a source many times faster with it. Not in the paper.
    pub context_table: bool,
    /// Normalise the input of the vocabulary head. Not in the paper.
    pub vocab_head_norm: bool,
    /// Keep with the model what each noisy latent says of its word without any context, along this many principal axes of the
    /// latents of the training data, which are measured before the first step: sampling with `word_guide` is led away from that. The
    /// network does not use it. 0: none. Not in the paper.
    pub word_guide_dims: i64,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
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
            word_guide_dims: 0,
        }
    }
}

/// The path from noise to latents, and its times.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FlowConfig {
    /// Mean of the logit-normal distribution of times.
    pub denoiser_p_mean: f64,
    /// Standard deviation of the logit-normal distribution of times.
    pub denoiser_p_std: f64,
    /// Standard deviation of the noise at t = 0.
    pub denoiser_noise_scale: f64,
    /// Lower bound on the divisor 1 - t of the velocity (x - z) / (1 - t).
    pub t_eps: f64,
    /// What the network predicts: `x`, the clean latents, or `v`, the velocity.
    #[schemars(with = "String")]
    pub prediction: PredictionTarget,
    /// The distribution of training times.
    pub time_schedule: TimeScheduleName,
}

impl Default for FlowConfig {
    fn default() -> Self {
        Self {
            denoiser_p_mean: -1.5,
            denoiser_p_std: 0.8,
            denoiser_noise_scale: 2.0,
            t_eps: 0.05,
            prediction: PredictionTarget::Clean,
            time_schedule: TimeScheduleName::LogitNormal,
        }
    }
}

/// The training of decoding, from latents to tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DecoderConfig {
    /// Fraction of rows that train decoding (decode rows).
    pub decoder_prob: f64,
    /// Standard deviation of the noise in decode rows; `null`: 5 for unconditional text, 1 for conditional tasks.
    pub decoder_noise_scale: Option<f64>,
    /// Mean of the logit-normal distribution of each token's clean fraction in decode rows.
    pub decoder_p_mean: f64,
    /// Standard deviation of that distribution.
    pub decoder_p_std: f64,
    /// Leave the condition of decode rows clean, so that they learn how the target follows from it; the released code
    /// corrupts it.
    pub decoder_clean_condition: bool,
    /// Fraction of decode rows that hold the network's own clean estimates, which is what sampling reads, in place of noisy latents.
    /// Not in the released code, and neither are the next three.
    pub decoder_estimate_prob: f64,
    /// The earliest time at which these estimates are made.
    pub decoder_estimate_from: f64,
    /// The latest one.
    pub decoder_estimate_to: f64,
    /// The scale by which they are led away from what the model keeps of words without context (`word_guide_dims`), as texts will be;
    /// 1 is none.
    pub decoder_estimate_guide: f64,
}

impl Default for DecoderConfig {
    fn default() -> Self {
        Self {
            decoder_prob: 0.2,
            decoder_noise_scale: None,
            decoder_p_mean: 0.8,
            decoder_p_std: 0.8,
            decoder_clean_condition: false,
            decoder_estimate_prob: 0.0,
            decoder_estimate_from: 0.2,
            decoder_estimate_to: 0.5,
            decoder_estimate_guide: 1.0,
        }
    }
}

/// The inputs that are dropped in training, for guidance in sampling.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GuidanceConfig {
    /// Fraction of rows trained without their condition; `null`: 0 for unconditional text, 0.1 for conditional tasks.
    pub label_drop_prob: Option<f64>,
    /// Fraction of self-conditioned rows; 0 makes a network that takes only z as input.
    pub self_cond_prob: f64,
    /// Smallest self-conditioning guidance scale in training.
    pub self_cond_cfg_min: f64,
    /// Largest self-conditioning guidance scale in training.
    pub self_cond_cfg_max: f64,
}

impl Default for GuidanceConfig {
    fn default() -> Self {
        Self { label_drop_prob: None, self_cond_prob: 0.5, self_cond_cfg_min: 0.5, self_cond_cfg_max: 5.0 }
    }
}

/// The tokens of texts that are given in training, so that the model can fill in the rest (`elf infill`). For unconditional text that is
/// generated all at once. Not in the released code.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GivenConfig {
    /// Fraction of rows whose first tokens are given, any number of them.
    pub given_prefix_prob: f64,
    /// Fraction of rows whose last tokens are given, any number of them.
    pub given_suffix_prob: f64,
    /// Fraction of rows in which spans of three tokens on average are hidden, any number of tokens in all, and the rest is given.
    pub given_spans_prob: f64,
    /// Fraction of rows in which tokens are given one by one, any share of them.
    pub given_words_prob: f64,
}

/// The length of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LengthConfig {
    /// Passes over the training data.
    pub epochs: f64,
    /// Optimiser steps, instead of `epochs`.
    pub max_steps: Option<u64>,
    /// Wall-clock minutes after which training stops and saves, regardless of `epochs` and `max_steps`.
    pub max_minutes: Option<f64>,
    /// Warm-up in epochs, used if `warmup_steps` is -1.
    pub warmup_epochs: Option<f64>,
    /// Warm-up in optimiser steps; -1 means `warmup_epochs`.
    pub warmup_steps: i64,
}

impl Default for LengthConfig {
    fn default() -> Self {
        Self { epochs: 5.0, max_steps: None, max_minutes: None, warmup_epochs: Some(0.5), warmup_steps: -1 }
    }
}

/// The sizes of batches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BatchConfig {
    /// Rows per batch on each device; `null`: `global_batch_size` divided among the devices.
    pub batch_size: Option<usize>,
    /// Rows per batch over all devices.
    pub global_batch_size: usize,
    /// Put rows of similar length into the same batch, and cut each batch to its longest row. With a `block_size` this
    /// only saves work. Without one, batches have rows of equal length and no padding, and sampling takes each text's
    /// length from those of the training data: drawn, or, for conditional tasks, the median of the lengths of answers to
    /// inputs of that length.
    pub group_by_length: bool,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self { batch_size: None, global_batch_size: 512, group_by_length: false }
    }
}

/// Optimiser and learning rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizationConfig {
    /// Learning rate; `null`: `blr` * (rows per optimiser step) / 256.
    pub lr: Option<f64>,
    /// Learning rate for 256 rows.
    pub blr: f64,
    /// Learning rate at the end of a schedule that falls.
    pub min_lr: f64,
    /// The schedule after warm-up.
    pub lr_schedule: ScheduleName,
    /// Share of all steps, the last ones, in which `lr_schedule: wsd` falls.
    pub lr_decay_share: f64,
    /// Decoupled weight decay (AdamW only).
    pub weight_decay: f64,
    /// The optimiser.
    pub optimizer: OptimizerName,
    /// Orthogonalise Muon's updates in bf16 where the device supports it natively; the reference uses fp32.
    pub muon_bf16: bool,
    /// AdamW's first-moment decay (beta1).
    pub adam_b1: f64,
    /// AdamW's second-moment decay (beta2).
    pub adam_b2: f64,
    /// Batches per optimiser step.
    pub grad_accum_steps: usize,
}

impl Default for OptimizationConfig {
    fn default() -> Self {
        Self {
            lr: None,
            blr: 1e-3,
            min_lr: 0.0,
            lr_schedule: ScheduleName::Constant,
            lr_decay_share: 0.2,
            weight_decay: 0.0,
            optimizer: OptimizerName::Muon,
            muon_bf16: false,
            adam_b1: 0.9,
            adam_b2: 0.95,
            grad_accum_steps: 1,
        }
    }
}

/// Precision and memory use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ComputeConfig {
    /// Compute blocks in bf16 where the device supports it natively.
    pub use_bf16: bool,
    /// Also compute the vocabulary head and the projections between latents and blocks in bf16, wherever blocks are;
    /// the reference uses fp32.
    pub heads_bf16: bool,
    /// Recompute activations in the backward pass instead of keeping them.
    pub gradient_checkpointing: bool,
    /// Megabytes of memory for the latents of training rows, which are kept in half precision so that later passes over
    /// the data need no encoder; 0 for none. For rows without padding, or all padded to `max_length`.
    pub latent_cache_mb: u64,
}

impl Default for ComputeConfig {
    fn default() -> Self {
        Self { use_bf16: true, heads_bf16: false, gradient_checkpointing: false, latent_cache_mb: 0 }
    }
}

/// Running averages of the parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AverageConfig {
    /// Decay of the running averages of the parameters (EMA).
    pub ema_decay1: f64,
}

impl Default for AverageConfig {
    fn default() -> Self {
        Self { ema_decay1: 0.9999 }
    }
}

/// Evaluation during training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EvaluationConfig {
    /// A file with sampling settings, for evaluation in training and for `elf sample`.
    pub sampling_configs_path: Option<String>,
    /// Texts to generate per evaluation.
    pub num_samples: usize,
    /// Held-out rows on which the loss is measured per evaluation.
    pub eval_rows: usize,
    /// Whether evaluations in training also generate text.
    pub online_eval: bool,
    /// The judge of generative perplexity of unconditional texts: a folder with a GPT-2 or a Hugging Face id,
    /// gpt2-large in the released code; `null`: no judge in evaluations during training.
    pub eval_ppl_model: Option<String>,
    /// Maximum batch size of the judge, for texts of the greatest length.
    pub eval_ppl_batch_size: usize,
    /// Longest text that the judge reads, in its tokens.
    pub eval_ppl_max_length: usize,
    /// Epochs between evaluations; below 1 a fraction of an epoch.
    pub eval_freq: f64,
}

impl Default for EvaluationConfig {
    fn default() -> Self {
        Self {
            sampling_configs_path: None,
            num_samples: 1000,
            eval_rows: 512,
            online_eval: true,
            eval_ppl_model: None,
            eval_ppl_batch_size: 64,
            eval_ppl_max_length: 1024,
            eval_freq: 10.0,
        }
    }
}

/// Output, checkpoints and initial weights of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OutputConfig {
    /// The run's folder.
    pub output_dir: Option<String>,
    /// Epochs between checkpoints; below 1 a fraction of an epoch.
    pub save_freq: f64,
    /// Number of checkpoints to keep (the latest).
    pub keep_checkpoints: usize,
    /// Stop after this many consecutive evaluations without an improvement on the best validation loss, and keep the
    /// best one's checkpoint; `null`: never.
    pub early_stopping: Option<u64>,
    /// Optimiser steps between lines of metrics.jsonl.
    pub log_freq: u64,
    /// Whether the run's folder also gets event files, in which TensorBoard finds the same metrics, generated texts and the
    /// configuration.
    pub tensorboard: bool,
    /// A run folder or a checkpoint to resume from; `null`: the latest checkpoint in `output_dir`, if any.
    pub resume: Option<String>,
    /// A model to initialise a new run's weights from, instead of at random: a run, a checkpoint, a file of the
    /// released code or a Hugging Face id. Its sizes and tokenizer must match the run's; its optimiser state and step
    /// count are not taken over.
    pub init_from: Option<String>,
}

impl Default for OutputConfig {
    fn default() -> Self {
        Self {
            output_dir: None,
            save_freq: 1.0,
            keep_checkpoints: 3,
            early_stopping: None,
            log_freq: 100,
            tensorboard: true,
            resume: None,
            init_from: None,
        }
    }
}

impl GivenConfig {
    /// The shares of rows.
    pub fn shares(&self) -> GivenShares {
        GivenShares {
            prefix: self.given_prefix_prob,
            suffix: self.given_suffix_prob,
            spans: self.given_spans_prob,
            words: self.given_words_prob,
        }
    }
}

impl FlowConfig {
    /// The distribution of times of that name; a logit-normal one has the parameters of the training times.
    pub fn law(&self, schedule: TimeScheduleName) -> TimeLaw {
        match schedule {
            TimeScheduleName::LogitNormal => {
                TimeLaw::LogitNormal(LogitNormal { mean: self.denoiser_p_mean, std: self.denoiser_p_std })
            }
            TimeScheduleName::Uniform => TimeLaw::Uniform,
        }
    }
}
