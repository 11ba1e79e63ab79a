//! The judge of generative perplexity.

use std::path::Path;

use anyhow::{Context, Result};
use elf_core::{Precision, PrecisionPolicy};
use elf_gpt2::{Gpt2Scorer, ScorerSettings};
use tch::Device;

/// The judge of generative perplexity.
#[derive(Debug, Clone, Copy)]
pub struct JudgeSettings<'a> {
    /// As the user calls it, for the report.
    pub name: &'a str,
    /// A folder with a GPT-2.
    pub folder: &'a Path,
    /// Longest text, in the judge's tokens.
    pub max_length: usize,
    /// Longest texts that it reads at once, at most; none for as many as suit the device.
    pub batch_size: Option<usize>,
    /// Where it runs.
    pub device: Device,
    /// In which precision.
    pub precision: Precision,
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
        let reading = ScorerSettings {
            precision: PrecisionPolicy::with_blocks(settings.precision),
            max_length: settings.max_length,
            ..ScorerSettings::new(settings.device)
        };
        let batch_tokens = settings.batch_size.map_or(reading.batch_tokens, |n| n.saturating_mul(settings.max_length));
        // A larger batch than the device is known to like only costs memory.
        let reading = ScorerSettings { batch_tokens: reading.batch_tokens.min(batch_tokens), ..reading };
        let scorer = Gpt2Scorer::load(settings.folder, &reading)
            .with_context(|| format!("the judge {} cannot be used", settings.folder.display()))?;
        Ok(Self { name: settings.name.to_owned(), scorer })
    }

    /// The same, as evaluations take it.
    pub fn named(&self) -> elf_eval::evaluation::Judge<'_> {
        elf_eval::evaluation::Judge { name: &self.name, scorer: &self.scorer }
    }
}
