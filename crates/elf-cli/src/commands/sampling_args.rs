//! How texts are sampled, as a user says it.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;

use elf_lm::config::{
    RunPlan, SAMPLING, SamplingSetting, TimeScheduleName, check_names, check_own_guide, read_own_sampling_settings,
    read_sampling_settings,
};

/// Settings of a flow's sampler.
#[derive(Debug, Clone, Args)]
pub struct SamplingArgs {
    /// A file of sampling settings; every combination in it is run. The options below override one setting each.
    /// Default: the sampling.yml in the model's folder, if there is one.
    #[arg(long)]
    pub sampling_config: Option<PathBuf>,
    /// The sampler: euler (or ode), heun, sde. Default: sde; ode with an input text.
    #[arg(long)]
    pub sampler: Option<String>,
    /// Sampling steps of a flow or of masked diffusion. Default: 32; 64 with an input text; for a distilled model, the
    /// number it was distilled for.
    #[arg(long)]
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
    pub uniform_grid: bool,
    /// Autoguidance: a weaker version of the model to guide sampling away from, such as an earlier checkpoint or a
    /// shorter run on the same latents. Doubles the cost.
    #[arg(long, value_name = "MODEL")]
    pub guide: Option<PathBuf>,
    /// Autoguidance scale; 1 disables it.
    #[arg(long)]
    pub guide_scale: Option<f64>,
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
    /// Generate this many candidates per text, and keep the one the model decodes with the highest confidence: fewer
    /// broken texts, less variety. Multiplies the cost.
    #[arg(long)]
    pub best_of: Option<usize>,
}

impl SamplingArgs {
    /// What is asked for: what a file says, the one named or the one that comes with the model at `model`, or what suits the model; with what these
    /// options change.
    ///
    /// # Errors
    /// If the file cannot be used, or an option has no effect.
    pub fn settings(&self, model: &Path, plan: &RunPlan) -> Result<Vec<SamplingSetting>> {
        let beside = Some(model.join(SAMPLING)).filter(|path| self.sampling_config.is_none() && path.is_file());
        let mut settings: Vec<SamplingSetting> = match (&self.sampling_config, &beside) {
            (Some(path), _) => {
                eprintln!("sampling settings: {}", path.display());
                read_sampling_settings(path)?
            }
            (None, Some(path)) => {
                eprintln!("sampling settings: {}", path.display());
                read_own_sampling_settings(model)?
            }
            (None, None) => {
                if let Some(path) = &plan.config.sampling_configs_path {
                    eprintln!(
                        "note: the training of this model names {path} for its evaluations; --sampling-config {path} samples so, too"
                    );
                }
                vec![SamplingSetting::default_for(plan)]
            }
        };
        for setting in &mut settings {
            if let Some(sampler) = &self.sampler {
                setting.sampling_method.clone_from(sampler);
            }
            setting.num_sampling_steps = self.steps.unwrap_or(setting.num_sampling_steps);
            setting.self_cond_cfg_scale = self.self_cond_cfg_scale.unwrap_or(setting.self_cond_cfg_scale);
            setting.cfg = self.cfg.unwrap_or(setting.cfg);
            if self.sde_gamma.is_some() && setting.sampling_method != "sde" {
                bail!(
                    "--sde-gamma has no effect on the sampler `{}`: leave it out, or take --sampler sde",
                    setting.sampling_method
                );
            }
            setting.sde_gamma = self.sde_gamma.unwrap_or(setting.sde_gamma);
            if self.uniform_grid {
                setting.time_schedule = TimeScheduleName::Uniform;
            }
            setting.guide = self.guide.clone().or(setting.guide.take());
            if self.guide_scale.is_some() && setting.guide.is_none() {
                bail!("--guide-scale has no effect without a guide: name a lesser version of the model with --guide");
            }
            setting.guide_scale = self.guide_scale.unwrap_or(setting.guide_scale);
            if setting.guide_scale == 1.0 {
                setting.guide = None;
            }
            if let (Some(guide), Some(_), None) = (&setting.guide, &beside, &self.guide) {
                check_own_guide(model, guide)?;
            }
            setting.decode_at = self.decode_at.unwrap_or(setting.decode_at);
            setting.temperature = self.temperature.unwrap_or(setting.temperature);
            setting.top_p = self.top_p.unwrap_or(setting.top_p);
            setting.best_of = self.best_of.unwrap_or(setting.best_of);
        }
        // Where an option takes the place of a file's list, what was several is one.
        let mut different: Vec<SamplingSetting> = Vec::new();
        for setting in settings {
            if !different.contains(&setting) {
                different.push(setting);
            }
        }
        check_names(&different)?;
        Ok(different)
    }
}

/// What a user should know of settings that are possible, but not what this model has learned.
pub fn notes(plan: &RunPlan, settings: &[SamplingSetting]) -> impl Iterator<Item = String> {
    [fewer_steps_than_learned(plan, settings), guided_by_what_is_not_learned(plan, settings)].into_iter().flatten()
}

/// What a user should know who asks a distilled model for longer steps than it has learned.
fn fewer_steps_than_learned(plan: &RunPlan, settings: &[SamplingSetting]) -> Option<String> {
    let learned = plan.distillation.as_ref()?.step.student_steps();
    let fewest = settings.iter().map(|s| s.num_sampling_steps).min().filter(|&steps| steps < learned)?;
    Some(format!(
        "note: this model was distilled for {learned} steps; with {fewest} its steps are longer than any that it has learned"
    ))
}

/// What a user should know who asks for guidance by a condition that was never left out in training.
fn guided_by_what_is_not_learned(plan: &RunPlan, settings: &[SamplingSetting]) -> Option<String> {
    let unlearned = plan.span.max_input_length.is_some() && plan.label_drop_prob == 0.0;
    let scale = settings.iter().map(|s| s.cfg).find(|&scale| unlearned && scale != 1.0)?;
    Some(format!(
        "note: this model never wrote without a condition in training (label_drop_prob 0), so condition guidance of {scale} leads away \
         from texts that it has not learned; --cfg 1 does without"
    ))
}
