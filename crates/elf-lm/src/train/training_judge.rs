//! The judge of generative perplexity in evaluations during training.

use std::cell::OnceCell;

use elf_hub::What;
use tch::Device;

use crate::config::RunConfig;
use crate::error::{Context, fail};
use crate::eval::judge::{Judge, JudgeSettings};
use crate::{Host, Result};

/// The judge of generative perplexity that a configuration names: found before training begins, loaded by the first
/// evaluation, and kept for the others.
#[derive(Debug)]
pub struct TrainingJudge {
    settings: JudgeSettings,
    loaded: OnceCell<Judge>,
}

impl TrainingJudge {
    /// The judge, if evaluations generate unconditional texts and one is named: as in the released code, conditional tasks are
    /// held against references only.
    ///
    /// # Errors
    /// If there is no such folder, here or on the hub, or a setting is impossible.
    pub fn find(config: &RunConfig, device: Device, host: &Host) -> Result<Option<Self>> {
        let Some(name) = config
            .evaluation
            .eval_ppl_model
            .as_ref()
            .filter(|_| config.evaluation.online_eval && config.data.max_input_length.is_none())
        else {
            return Ok(None);
        };
        for (key, value) in [
            ("eval_ppl_batch_size", config.evaluation.eval_ppl_batch_size),
            ("eval_ppl_max_length", config.evaluation.eval_ppl_max_length),
        ] {
            if value == 0 {
                fail!(setting(key), "{key} must be at least 1");
            }
        }
        let folder = host.locate(name, What::Gpt2).context("eval_ppl_model")?;
        let settings = JudgeSettings {
            name: name.clone(),
            folder,
            max_length: config.evaluation.eval_ppl_max_length,
            batch_size: Some(config.evaluation.eval_ppl_batch_size),
            device,
            precision: config.precision(device),
        };
        settings.check().context("eval_ppl_model")?;
        Ok(Some(Self { settings, loaded: OnceCell::new() }))
    }

    /// What the configuration calls it.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    pub(super) fn judge(&self) -> Result<&Judge> {
        if let Some(judge) = self.loaded.get() {
            return Ok(judge);
        }
        let judge = Judge::load(&self.settings).context("eval_ppl_model")?;
        Ok(self.loaded.get_or_init(|| judge))
    }
}
