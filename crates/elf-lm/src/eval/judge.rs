//! The judge of generative perplexity.

use std::path::{Path, PathBuf};

use crate::Result;
use crate::error::{Context, fail};
use elf_core::{ParamBuilder, Precision, PrecisionPolicy};
use elf_gpt2::{Gpt2, Gpt2Scorer, ScorerSettings};
use tch::Device;

use crate::config::BaselinePlan;
use crate::model::run_folder::RunModel;

/// The judge's model and its options.
#[derive(Debug, Clone)]
pub struct JudgeSettings {
    /// The judge's name in the report.
    pub name: String,
    /// A folder with a GPT-2, or a run that trained one, of which the averaged parameters are used.
    pub folder: PathBuf,
    /// Longest text, in the judge's tokens.
    pub max_length: usize,
    /// Maximum batch size for texts of the maximum length; `None` for a size that suits the device.
    pub batch_size: Option<usize>,
    /// The device to compute on.
    pub device: Device,
    /// The precision to compute in.
    pub precision: Precision,
}

impl JudgeSettings {
    /// Checks that the judge's folder exists, without loading it.
    ///
    /// # Errors
    /// If it does not exist.
    pub fn check(&self) -> Result<()> {
        if !self.folder.is_dir() {
            fail!(
                place(&self.folder),
                "the judge {} is not a folder: name one with config.json, model.safetensors and tokenizer.json",
                self.folder.display()
            );
        }
        Ok(())
    }
}

/// A judge of generative perplexity, loaded.
#[derive(Debug)]
pub struct Judge {
    name: String,
    scorer: Gpt2Scorer,
}

impl Judge {
    /// Loads a judge.
    ///
    /// # Errors
    /// If its folder holds no GPT-2 with its tokenizer.
    pub fn load(settings: &JudgeSettings) -> Result<Self> {
        settings.check()?;
        let reading = ScorerSettings {
            precision: PrecisionPolicy::with_blocks(settings.precision),
            max_length: settings.max_length,
            ..ScorerSettings::new(settings.device)
        };
        let batch_tokens = settings.batch_size.map_or(reading.batch_tokens, |n| n.saturating_mul(settings.max_length));
        // A larger batch than the device's default only costs memory.
        let reading = ScorerSettings { batch_tokens: reading.batch_tokens.min(batch_tokens), ..reading };
        let scorer = scorer(&settings.folder, &reading)
            .with_context(|| format!("the judge {} cannot be used", settings.folder.display()))?;
        Ok(Self { name: settings.name.clone(), scorer })
    }

    /// This judge in the form that `elf-eval` takes.
    pub fn named(&self) -> elf_eval::evaluation::Judge<'_> {
        elf_eval::evaluation::Judge { name: &self.name, scorer: &self.scorer }
    }
}

fn scorer(folder: &Path, reading: &ScorerSettings) -> Result<Gpt2Scorer> {
    if !RunModel::is_at(folder) {
        return Ok(Gpt2Scorer::load(folder, reading)?);
    }
    let found = RunModel::at(folder)?;
    let model = trained_gpt2(&found, true, reading.precision, reading.device)?;
    Ok(Gpt2Scorer::new(model, &found.run.tokenizer_path(), reading)?)
}

/// The GPT-2 that a run trained, with its averaged parameters or those as trained.
///
/// # Errors
/// If the run trained something else, or its checkpoint is damaged.
pub fn trained_gpt2(found: &RunModel, averaged: bool, policy: PrecisionPolicy, device: Device) -> Result<Gpt2> {
    let Some(BaselinePlan::Gpt2(sizes)) = &found.plan.baseline else {
        let what = found.plan.baseline.as_ref().map_or("an embedded language flow", BaselinePlan::describe);
        fail!(
            place(found.checkpoint.path()),
            "{} holds {what}, not a GPT-2: name a run that was trained with objective gpt2",
            found.checkpoint.path().display()
        );
    };
    let eos_token_id = Some(i64::from(found.run.tokenizer()?.eos_id()?));
    let sizes = elf_gpt2::Gpt2Config { eos_token_id, ..sizes.clone() };
    let model = Gpt2::new(&sizes, ParamBuilder::unset(device), policy)?;
    match averaged {
        true => found.checkpoint.load_averages(model.params())?,
        false => found.checkpoint.load_params(model.params())?,
    }
    Ok(model)
}
