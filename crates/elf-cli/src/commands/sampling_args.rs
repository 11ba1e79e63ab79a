//! How texts are sampled, as a user says it.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use elf_lm::config::SamplingOf;
use elf_lm::model::DescribedModel;
use elf_lm::{Host, Sampling, SamplingPatch};
use serde::Serialize;

/// Settings of a flow's sampler.
#[derive(Debug, Clone, Args, Serialize)]
pub struct SamplingArgs {
    /// A file of sampling settings; every combination in it is run. The options below override one setting each.
    /// Default: the sampling.yml in the model's folder, if there is one.
    #[arg(long)]
    #[serde(skip)]
    pub sampling_config: Option<PathBuf>,
    /// The sampler, with settings of its own as NAME:SETTING=VALUE,...: euler (or ode), heun, sde and others. Default: sde;
    /// ode with an input text.
    #[arg(long)]
    pub sampler: Option<String>,
    /// Sampling steps of a flow or of masked diffusion. Default: 32; 64 with an input text; for a distilled model, the
    /// number it was distilled for.
    #[arg(long)]
    #[serde(rename = "num_sampling_steps")]
    pub steps: Option<usize>,
    /// Self-conditioning guidance scale w; 1 disables guidance. Default: 3; 1 with an input text.
    #[arg(long)]
    pub self_cond_cfg_scale: Option<f64>,
    /// Condition guidance scale s; 1 disables guidance, anything else doubles the cost. Default: 2 with an input text.
    #[arg(long)]
    pub cfg: Option<f64>,
    /// How much noise the SDE sampler adds; 0 makes it the Euler sampler. Default: 1.5.
    #[arg(long)]
    pub sde_gamma: Option<f64>,
    /// Use a uniform time grid instead of a logit-normal one.
    #[arg(long)]
    #[serde(skip)]
    pub uniform_grid: bool,
    /// Autoguidance: a weaker version of the model to guide sampling away from, such as an earlier checkpoint or a
    /// shorter run on the same latents. Doubles the cost.
    #[arg(long, value_name = "MODEL")]
    pub guide: Option<PathBuf>,
    /// Autoguidance away from what the model keeps of words without context, for models trained with word_guide_dims.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", conflicts_with = "guide")]
    pub word_guide: Option<bool>,
    /// Autoguidance scale; 1 disables it.
    #[arg(long)]
    pub guide_scale: Option<f64>,
    /// The time in (0, 1] from which on the guide does not guide. Default: 1, the whole way.
    #[arg(long, value_name = "TIME")]
    pub guide_until: Option<f64>,
    /// The time in (0, 1] from which the last step leads to the end; the others lie before it. Default: 1, the grid's own times.
    #[arg(long, value_name = "TIME")]
    pub leap_at: Option<f64>,
    /// The time in (0, 1] at which integration ends and the text is decoded. Default: 1.
    #[arg(long)]
    pub decode_at: Option<f64>,
    /// Temperature at which each word is drawn; 0 takes the likeliest. Default: 0 for a flow, as in the paper; 1 for an
    /// unconditional autoregressive model; masked diffusion always uses 1. A model's own sampling.yml overrides this
    /// default.
    #[arg(long)]
    pub temperature: Option<f64>,
    /// Top-p (nucleus) sampling: draw each word among the likeliest that together have this probability (1: all).
    #[arg(long)]
    pub top_p: Option<f64>,
    /// Read texts as sequences of whole words, those of the list in the model's folder (words.txt; see `elf data words`). Default: tokens by
    /// themselves.
    #[arg(long, num_args = 0..=1, default_missing_value = "true")]
    pub whole_words: Option<bool>,
    /// Generate this many candidates per text, and keep the one the model decodes with the highest confidence: fewer
    /// broken texts, less variety. Multiplies the cost.
    #[arg(long)]
    pub best_of: Option<usize>,
    /// Generate this many candidates per text, and keep the one of minimum Bayes risk: the one most like the others, by
    /// BLEU. For translation and the like, where candidates agree on what is right. Multiplies the cost.
    #[arg(long, value_name = "N")]
    pub mbr: Option<usize>,
}

impl SamplingArgs {
    /// The settings of the file that is named, of the one that comes with the model, or what suits the model; with what these
    /// options change.
    ///
    /// # Errors
    /// If the file cannot be used, or an option has no effect.
    pub fn settings(&self, model: &DescribedModel, host: &Host) -> Result<Vec<Sampling>> {
        let mut patch = SamplingPatch::of(self)?;
        if self.uniform_grid {
            patch = patch.with("time_schedule", "uniform");
        }
        let of = SamplingOf { folder: model.folder(), plan: &model.plan, samplers: host.samplers() };
        Ok(of.settings(self.sampling_config.as_deref(), &patch, host)?)
    }
}
