//! What follows from a configuration, checked.

use crate::Result;
use crate::error::fail;
use elf_core::PrecisionPolicy;
use elf_data::{Batch, CollateConfig, Collator, PadToken, Tokenizer};
use elf_encoder::LatentStats;
use elf_flow::{ElfObjective, FlowPath, GuidanceLaw, LogitNormal, OwnEstimates};
use elf_model::{ElfConfig, Preset};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use tch::Device;

use super::{BaselinePlan, DistillationPlan, LengthLaw, PadTokenName, RunConfig};

/// How long a run is, in optimiser steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TrainLength {
    /// Optimiser steps of one pass over the data.
    pub steps_per_epoch: f64,
    /// All optimiser steps.
    pub total: u64,
    /// Of these, warm-up.
    pub warmup: u64,
    /// Between evaluations.
    pub eval_every: u64,
    /// Between checkpoints.
    pub save_every: u64,
}

/// Positions of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// S.
    pub max_length: usize,
    /// Longest condition, for conditional tasks.
    pub max_input_length: Option<usize>,
    /// The filling.
    pub pad_token: PadTokenName,
}

impl Span {
    /// In the words of elf-data.
    pub fn collate(&self) -> CollateConfig {
        CollateConfig {
            max_length: self.max_length,
            max_input_length: self.max_input_length,
            pad_token: match self.pad_token {
                PadTokenName::Pad => PadToken::Pad,
                PadTokenName::Eos => PadToken::Eos,
            },
        }
    }
}

/// What a plan must know beside the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// The encoder's width; of no account for a baseline, which has none.
    pub latent_dim: i64,
    /// Entries of the tokenizer's vocabulary.
    pub vocab_size: i64,
    /// Rows of the training data.
    pub rows: u64,
    /// Whether the conditions end in EOS that the model is, or was, trained with.
    pub condition_eos: bool,
    /// How many processes share the run.
    pub ranks: usize,
}

/// What a model's parameters mean something with, known by content: nothing else may take its place unnoticed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunInputs {
    /// The tokenizer's fingerprint.
    pub tokenizer: String,
    /// Number and fingerprint of the rows that are trained on.
    pub training_data: String,
    /// The text encoder; none for baselines.
    pub encoder: Option<EncoderRecord>,
}

/// Where an encoder lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderFiles {
    /// The folder of config.json and, usually, of everything else.
    pub folder: PathBuf,
    /// Where the weights are, if elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<PathBuf>,
}

/// Which text encoder it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderRecord {
    /// Where it lay, as absolute paths.
    pub files: EncoderFiles,
    /// The fingerprint of its parameters.
    pub blake3: String,
    /// What its output is normalised by.
    pub stats: LatentStats,
}

/// What differs between two plans with other encoders, in words that follow "another".
pub const OTHER_ENCODER: &str = "text encoder (encoder_model_name, encoder_checkpoint)";

/// What differs between two plans whose latents are normalised otherwise, in words that follow "another".
pub const OTHER_STATS: &str = "latent_mean, latent_std or latent_stats.json of the text encoder";

/// A run with everything derived and checked. Stored with the run, so that sampling and resuming need nothing else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunPlan {
    /// The configuration as written, overrides included; for a baseline without the settings of latents.
    pub config: RunConfig,
    /// The network.
    pub model: ElfConfig,
    /// The loss.
    pub objective: ElfObjective,
    /// Rows.
    pub span: Span,
    /// Share of rows trained without their condition.
    pub label_drop_prob: f64,
    /// Whether conditions end in EOS.
    pub condition_eos: bool,
    /// Precision of each part.
    pub precision: PrecisionPolicy,
    /// Rows of one batch over all ranks.
    pub batch_rows: usize,
    /// Learning rate after warm-up.
    pub lr: f64,
    /// Length.
    pub length: TrainLength,
    /// For baselines: what is trained instead of [`RunPlan::model`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<BaselinePlan>,
    /// What it is trained with and on; unknown for models from elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs: Option<RunInputs>,
    /// For texts that are generated all at once in rows of their own length: the lengths to draw from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lengths: Option<LengthLaw>,
    /// For distilled models: what by and what for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distillation: Option<DistillationPlan>,
}

impl RunPlan {
    /// Derives and checks everything.
    ///
    /// # Errors
    /// Names the setting that is impossible, and why.
    pub fn new(config: &RunConfig, facts: Facts, device: Device) -> Result<Self> {
        let conditional = config.data.max_input_length.is_some();
        config.check()?;
        let model = model(config, facts.latent_dim, facts.vocab_size)?;
        model.check()?;
        let baseline = BaselinePlan::new(config, &model)?;
        let objective = objective(config);
        objective.check()?;
        let batch_rows = batch_rows(config, facts.ranks)?;
        let rows_per_step = batch_rows.saturating_mul(config.optimization.grad_accum_steps);
        let precision = config.precision(device);
        Ok(Self {
            config: config.clone(),
            model,
            objective,
            span: Span {
                max_length: config.data.max_length,
                max_input_length: config.data.max_input_length,
                pad_token: config.pad_token(),
            },
            label_drop_prob: match (&baseline, config.guidance.label_drop_prob) {
                // No guidance away from the condition is done with baselines, so none learns to do without it.
                (Some(_), _) => 0.0,
                (None, Some(given)) => given,
                (None, None) => {
                    if conditional {
                        0.1
                    } else {
                        0.0
                    }
                }
            },
            condition_eos: config.data.condition_eos.unwrap_or(facts.condition_eos),
            precision: match config.compute.heads_bf16 {
                true => PrecisionPolicy::uniform(precision),
                false => PrecisionPolicy::with_blocks(precision),
            },
            batch_rows,
            lr: config.optimization.lr.unwrap_or(config.optimization.blr * rows_per_step as f64 / 256.0),
            length: length(config, facts.rows, rows_per_step)?,
            baseline,
            inputs: None,
            lengths: None,
            distillation: None,
        })
    }

    /// The text encoder, where it is known by content.
    pub fn encoder(&self) -> Option<&EncoderRecord> {
        self.inputs.as_ref()?.encoder.as_ref()
    }

    /// What of the text encoder is another one in the other plan, if both are known by content.
    pub fn other_encoder(&self, other: &Self) -> Option<&'static str> {
        let (one, other) = self.encoder().zip(other.encoder())?;
        if one.blake3 != other.blake3 {
            return Some(OTHER_ENCODER);
        }
        (one.stats != other.stats).then_some(OTHER_STATS)
    }

    /// What makes batches.
    ///
    /// # Errors
    /// If lengths contradict each other, or the tokenizer lacks the filling.
    pub fn collator(&self, tokenizer: &Tokenizer) -> Result<Collator> {
        Ok(Collator::new(self.span.collate(), tokenizer)?)
    }

    /// Positions of a row that no text gets, whatever its condition: as in the released code those of the longest condition, unless
    /// rows have a length of their own.
    pub fn reserved_positions(&self) -> usize {
        if self.has_rows_of_equal_length() { 0 } else { self.span.max_input_length.unwrap_or(0) }
    }

    /// Whether training batches have rows of equal length and no filling, and texts a length of their own.
    pub fn has_rows_of_equal_length(&self) -> bool {
        self.config.batches.group_by_length && self.config.network.block_size.is_none()
    }

    /// A batch of token rows without the filling that this plan's models never see: in blocks, no token sees the filling of a
    /// row; in batches of equal length there is none.
    pub fn without_filling(&self, batch: Batch) -> Batch {
        match self.config.network.block_size.is_some() || self.has_rows_of_equal_length() {
            true => batch.trimmed(),
            false => batch,
        }
    }

    /// For a GPT-2 that learns to fill gaps: the id that stands for a token to write, which follows those of the tokenizer.
    pub fn gap_mark(&self) -> Option<i64> {
        let fills = matches!(self.baseline, Some(BaselinePlan::Gpt2(_))) && !self.config.given.shares().is_none();
        fills.then_some(self.model.vocab_size)
    }

    /// Numbers over all parameters of what is trained.
    pub fn parameter_count(&self) -> u64 {
        self.baseline.as_ref().map_or_else(|| self.model.parameter_count(), BaselinePlan::parameter_count)
    }
}

fn objective(config: &RunConfig) -> ElfObjective {
    let conditional = config.data.max_input_length.is_some();
    ElfObjective {
        path: FlowPath {
            noise_scale: config.flow.denoiser_noise_scale,
            t_eps: config.flow.t_eps,
            prediction: config.flow.prediction,
        },
        time: config.flow.law(config.flow.time_schedule),
        guidance: GuidanceLaw { min: config.guidance.self_cond_cfg_min, max: config.guidance.self_cond_cfg_max },
        self_cond_prob: config.guidance.self_cond_prob,
        decoder_prob: config.decoder.decoder_prob,
        decoder_noise_scale: config.decoder.decoder_noise_scale.unwrap_or(if conditional { 1.0 } else { 5.0 }),
        decoder: LogitNormal { mean: config.decoder.decoder_p_mean, std: config.decoder.decoder_p_std },
        decoder_clean_condition: config.decoder.decoder_clean_condition,
        decoder_estimates: (config.decoder.decoder_estimate_prob != 0.0).then_some(OwnEstimates {
            prob: config.decoder.decoder_estimate_prob,
            from: config.decoder.decoder_estimate_from,
            to: config.decoder.decoder_estimate_to,
            guide_scale: config.decoder.decoder_estimate_guide,
        }),
        block_size: config.network.block_size.map(|size| i64::try_from(size).unwrap_or(i64::MAX)),
    }
}

/// Rows of one batch over all ranks. As in the released code: batch_size is what one device takes at once, global_batch_size what
/// all take together.
fn batch_rows(config: &RunConfig, ranks: usize) -> Result<usize> {
    let rows = config.batches.batch_size.map_or(config.batches.global_batch_size, |rows| rows.saturating_mul(ranks));
    if !rows.is_multiple_of(ranks) {
        fail!(
            setting("global_batch_size"),
            "{ranks} ranks cannot share batches of {rows} rows evenly: choose a global_batch_size that is a multiple of {ranks}"
        );
    }
    Ok(rows)
}

fn length(config: &RunConfig, rows: u64, rows_per_step: usize) -> Result<TrainLength> {
    if rows < rows_per_step as u64 {
        fail!(
            setting("batch_size"),
            "the data has {rows} rows, but one optimiser step takes {rows_per_step}: lower batch_size (or global_batch_size) or grad_accum_steps"
        );
    }
    let steps_per_epoch = (rows / rows_per_step as u64) as f64;
    let steps = |epochs: f64| (epochs * steps_per_epoch).round() as u64;
    Ok(TrainLength {
        steps_per_epoch,
        total: config.length.max_steps.unwrap_or(steps(config.length.epochs)).max(1),
        warmup: u64::try_from(config.length.warmup_steps).unwrap_or(steps(config.length.warmup_epochs.unwrap_or(0.0))),
        eval_every: steps(config.evaluation.eval_freq).max(1),
        save_every: steps(config.output.save_freq).max(1),
    })
}

fn model(config: &RunConfig, latent_dim: i64, vocab_size: i64) -> Result<ElfConfig> {
    let Some((_, preset)) = Preset::ALL.iter().find(|(name, _)| *name == config.network.model) else {
        let names: Vec<_> = Preset::ALL.iter().map(|(name, _)| *name).collect();
        fail!(
            setting("model"),
            "there is no model `{}`: use one of {}, with hidden_size, depth and num_heads for other sizes",
            config.network.model,
            names.join(", ")
        );
    };
    let mut model = preset.config(latent_dim, vocab_size);
    model.hidden_size = config.network.hidden_size.unwrap_or(model.hidden_size);
    model.depth = config.network.depth.unwrap_or(model.depth);
    model.num_heads = config.network.num_heads.unwrap_or(model.num_heads);
    model.bottleneck_dim = config.network.bottleneck_dim;
    model.num_time_tokens = config.network.num_time_tokens;
    model.num_self_cond_cfg_tokens = config.network.num_self_cond_cfg_tokens;
    model.num_model_mode_tokens = config.network.num_model_mode_tokens;
    model.proj_dropout = config.network.proj_dropout;
    model.learned_latents = config.network.learned_latents;
    model.context_table = config.network.context_table;
    model.vocab_head_norm = config.network.vocab_head_norm;
    model.word_guide_dims = config.network.word_guide_dims;
    Ok(model)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(change: impl FnOnce(&mut RunConfig)) -> Result<RunPlan> {
        let mut config = RunConfig::default();
        change(&mut config);
        let facts = Facts { latent_dim: 512, vocab_size: 32100, rows: 10_000, condition_eos: false, ranks: 1 };
        RunPlan::new(&config, facts, Device::Cpu)
    }

    #[test]
    fn conditional_tasks_take_the_conditional_recipe() {
        let free = plan(|_| {}).unwrap();
        assert_eq!(
            (free.objective.decoder_noise_scale, free.label_drop_prob, free.span.pad_token),
            (5.0, 0.0, PadTokenName::Pad)
        );
        let task = plan(|c| c.data.max_input_length = Some(64)).unwrap();
        assert_eq!(
            (task.objective.decoder_noise_scale, task.label_drop_prob, task.span.pad_token),
            (1.0, 0.1, PadTokenName::Eos)
        );
    }

    #[test]
    fn lengths_follow_from_epochs_and_rows() {
        let plan = plan(|c| {
            c.batches.batch_size = Some(50);
            c.optimization.grad_accum_steps = 2;
            c.length.warmup_steps = -1;
            c.output.save_freq = 0.1;
        })
        .unwrap();
        assert_eq!(
            plan.length,
            TrainLength { steps_per_epoch: 100.0, total: 500, warmup: 50, eval_every: 1000, save_every: 10 }
        );
        assert_eq!(plan.lr, 1e-3 * 100.0 / 256.0);
    }

    #[test]
    fn ranks_share_the_global_batch() {
        let plan = |change: fn(&mut RunConfig), ranks| {
            let mut config = RunConfig::default();
            change(&mut config);
            let facts = Facts { latent_dim: 512, vocab_size: 32100, rows: 10_000, condition_eos: false, ranks };
            RunPlan::new(&config, facts, Device::Cpu)
        };
        let alone = plan(|c| c.batches.global_batch_size = 60, 1).unwrap();
        assert_eq!(
            plan(|c| c.batches.global_batch_size = 60, 3).unwrap(),
            alone,
            "the plan does not depend on the ranks"
        );
        let each = plan(|c| c.batches.batch_size = Some(20), 3).unwrap();
        assert_eq!((each.batch_rows, each.length, each.lr), (60, alone.length, alone.lr));
        assert!(
            plan(|c| c.batches.global_batch_size = 64, 3).unwrap_err().to_string().contains("3 ranks cannot share")
        );
    }

    #[test]
    fn impossible_combinations_are_named() {
        let message = |change: fn(&mut RunConfig)| plan(change).unwrap_err().to_string();
        assert!(message(|c| c.data.max_input_length = Some(1024)).contains("max_input_length 1024"));
        assert!(message(|c| c.batches.global_batch_size = 20_000).contains("10000 rows"));
        assert!(message(|c| c.network.model = "ELF-X".into()).contains("ELF-B, ELF-M, ELF-L"));
        assert!(message(|c| c.network.num_heads = Some(7)).contains("num_heads 7"));
        assert!(message(|c| c.guidance.label_drop_prob = Some(0.2)).contains("max_input_length"));
        assert!(message(|c| c.decoder.decoder_prob = 2.0).contains("decoder_prob"));
        assert!(message(|c| c.optimization.grad_accum_steps = 0).contains("grad_accum_steps"));
    }
}
