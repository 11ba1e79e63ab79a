//! Metrics of generated text, gathered into one report.

use std::path::Path;

use anyhow::{Context, Result, bail};
use elf_core::{Precision, PrecisionPolicy};
use elf_eval::bleu::Bleu;
use elf_eval::diversity::{Diversity, words};
use elf_eval::novelty::CopyIndex;
use elf_eval::perplexity::{GenerativePerplexity, unigram_entropy};
use elf_eval::evaluation::{CollapseWarning, Evaluation as Report, Metric};
use elf_eval::rouge;
use elf_gpt2::{Gpt2Scorer, ScorerSettings};
use tch::Device;

/// Texts to judge, and what to hold them against.
#[derive(Debug, Default)]
pub struct Judged<'a> {
    /// The texts.
    pub texts: &'a [String],
    /// What each should have been, for conditional tasks.
    pub references: Option<&'a [String]>,
    /// The texts the model was trained on, for novelty.
    pub training: Option<&'a [String]>,
}

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
}

/// Everything that can be said about these texts.
///
/// # Errors
/// If there are no texts, numbers of texts and references differ, or the judge fails.
pub fn report(title: &str, judged: &Judged, judge: Option<&Judge>) -> Result<Report> {
    let texts = judged.texts;
    if texts.is_empty() {
        bail!("there are no texts to judge");
    }
    let mut report = Report::new(title);
    let of_words: Vec<Vec<&str>> = texts.iter().map(|t| words(t)).collect();
    let n = Some(texts.len());
    let mut push = |name: &str, value: Option<f64>, method: Option<&str>| -> Result<()> {
        if let Some(value) = value {
            report.push(Metric { n, method: method.map(str::to_owned), ..Metric::new(name, value) })?;
        }
        Ok(())
    };
    if let Some(references) = judged.references {
        let bleu = Bleu::lowercase_effective();
        push("BLEU", Some(bleu.corpus(texts, references)?.score), Some(&bleu.signature(1)))?;
        let rouge = rouge::mean(&rouge::score_pairs(texts, references)?);
        for (name, value) in [("ROUGE-1", rouge.rouge1), ("ROUGE-2", rouge.rouge2), ("ROUGE-L", rouge.rouge_l)] {
            push(name, Some(value), Some("F1, Porter stemming"))?;
        }
    }
    let diversity = Diversity::of(&of_words)?;
    let entropies: Vec<f64> = of_words.iter().filter_map(|w| unigram_entropy(w)).collect();
    let mean = |values: &[f64]| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
    push("Entropy of words (nats)", mean(&entropies), Some("per text, averaged"))?;
    for (i, value) in diversity.distinct.iter().enumerate() {
        push(&format!("distinct-{}", i + 1), *value, Some("words, over all texts"))?;
    }
    push("Texts with a repeated 5-gram", Some(diversity.repeated_5gram), Some("share"))?;
    push("Words per text", Some(diversity.lengths.mean), None)?;
    push("Empty texts", Some(diversity.lengths.empty as f64), None)?;
    if let Some(training) = judged.training {
        let documents = training.iter().map(|t| words(t).into_iter().map(str::to_owned).collect::<Vec<_>>());
        let index = CopyIndex::new(documents, MAX_TRAINING_WORDS)?;
        let samples: Vec<Vec<String>> = of_words.iter().map(|w| w.iter().map(|w| (*w).to_owned()).collect()).collect();
        let novelty = index.novelty(&samples)?;
        push("Exact copies of training texts", Some(novelty.exact_copies), Some("share"))?;
        push("Longest run copied from training texts", Some(novelty.mean_longest_run), Some("words, mean"))?;
    }
    if let Some(judge) = judge {
        let result = GenerativePerplexity::measure(&judge.scorer, texts)?;
        report.push_perplexity(&result, &judge.name, &CollapseWarning::default())?;
    }
    Ok(report)
}

/// The largest training corpus that novelty is held against; its index takes some 50 bytes a word.
const MAX_TRAINING_WORDS: usize = 50_000_000;
