//! Evaluation of texts in files.

use std::path::{Path, PathBuf};

use elf_data::source::{PlainText, Source, TEXT_COLUMN};
use elf_eval::bleu::Bleu;
use elf_eval::diversity;
use elf_eval::evaluation::{Evaluation, Evaluator, SampleSet};
use elf_eval::stats::Bootstrap;
use elf_hub::What;

use super::judge::{Judge, JudgeSettings};
use crate::error::fail;
use crate::{Host, Result, Silent};

/// The texts to evaluate, and what to compare them with.
#[derive(Debug, Clone)]
pub struct EvaluateOptions {
    /// JSONL files of texts; several files are several seeds of one system.
    pub samples: Vec<PathBuf>,
    /// Reference texts, as a file or `FILE:COLUMN`. If samples were generated from an input, or with `paired`, they are
    /// the references of the samples, in order. Otherwise their entropy is compared with that of the samples.
    pub references: Option<PathBuf>,
    /// Whether the references have one text for each sample, in order, and replace those that the samples contain.
    pub paired: bool,
    /// Training texts to find copies of, as files or `FILE:COLUMN`.
    pub training: Vec<PathBuf>,
    /// The column of training files given without one.
    pub training_column: String,
    /// Number of words of the training texts to search for copies.
    pub training_words: usize,
    /// A copied passage of more words than this counts as long.
    pub long_run: usize,
    /// How BLEU splits and counts words.
    pub bleu: Bleu,
    /// Whether to compute chrF as well, which compares characters instead of words.
    pub chrf: bool,
    /// Whether TER is computed as well.
    pub ter: bool,
    /// The judge of perplexity.
    pub judge: Option<JudgeSettings>,
    /// Bootstrap resamples for intervals; 0 for none.
    pub bootstrap: usize,
    /// The title; by default the name of the first file.
    pub title: Option<String>,
}

impl EvaluateOptions {
    /// An evaluation of these files against the references that they contain, without a judge.
    pub fn new(samples: Vec<PathBuf>) -> Self {
        let usual = Evaluator::default();
        Self {
            samples,
            references: None,
            paired: false,
            training: Vec::new(),
            training_column: TEXT_COLUMN.to_owned(),
            training_words: usual.training_words,
            long_run: usual.long_run,
            bleu: usual.bleu,
            chrf: usual.chrf,
            ter: usual.ter,
            judge: None,
            bootstrap: 0,
            title: None,
        }
    }
}

impl EvaluateOptions {
    /// Checks that references and training texts can be opened, before hours are spent on samples.
    ///
    /// # Errors
    /// If there is no such file or column.
    pub fn check_texts(&self, host: &Host) -> Result<()> {
        let references = self.references.iter().map(|name| (name, TEXT_COLUMN));
        let mut all = references.chain(self.training.iter().map(|name| (name, &*self.training_column)));
        all.try_for_each(|(name, otherwise)| open(name, otherwise, PlainText::Lines, host).map(drop))
    }
}

/// Evaluates texts.
///
/// ```
/// # let folder = tempfile::tempdir()?;
/// let file = folder.path().join("texts.jsonl");
/// std::fs::write(&file, "{\"prediction\": \"a red house\", \"reference\": \"the red house\"}\n")?;
/// let found = elf_lm::evaluate(&elf_lm::eval::EvaluateOptions::new(vec![file]))?;
/// assert!(found.metrics().iter().any(|metric| metric.name == "BLEU"));
/// # Ok::<(), elf_lm::Error>(())
/// ```
///
/// # Errors
/// If a file cannot be read, the numbers of texts and references differ, or the judge fails.
pub fn evaluate(asked: &EvaluateOptions) -> Result<Evaluation> {
    evaluate_for(asked, &Host::new(&mut Silent))
}

/// [`evaluate`], with notes to `host`.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_for(asked: &EvaluateOptions, host: &Host) -> Result<Evaluation> {
    let mut sets = asked.samples.iter().map(|file| SampleSet::read(file)).collect::<Result<Vec<_>, _>>()?;
    let references = asked.references.as_deref().map(|name| references(name, host)).transpose()?;
    let mut data: Option<Vec<String>> =
        references.as_ref().map(|rows| rows.iter().filter_map(|texts| texts.first().cloned()).collect());
    let have_references = sets.iter().any(|set| set.references.is_some());
    if asked.paired && have_references {
        host.note("note: --references and --paired replace the references that the samples contain");
    }
    if asked.paired || (!have_references && sets.iter().any(|set| set.has_inputs)) {
        data = None;
        sets.iter_mut().for_each(|set| set.references.clone_from(&references));
    }
    let training = training(asked, host)?;
    let judge = asked.judge.as_ref().map(Judge::load).transpose()?;
    let evaluator = Evaluator {
        judge: judge.as_ref().map(Judge::named),
        data: data.as_deref(),
        training: (!training.is_empty()).then_some(training.as_slice()),
        training_words: asked.training_words,
        long_run: asked.long_run,
        bleu: asked.bleu,
        chrf: asked.chrf,
        ter: asked.ter,
        bootstrap: (asked.bootstrap > 0).then(|| Bootstrap { resamples: asked.bootstrap, ..Bootstrap::default() }),
    };
    let title = asked.title.clone().unwrap_or_else(|| match sets.as_slice() {
        [first, .., _] => format!("{} and {} more", first.name, sets.len() - 1),
        [only] => only.name.clone(),
        [] => String::new(),
    });
    Ok(evaluator.evaluate(&title, &sets)?)
}

/// The references of FILE:COLUMN, one or several per row. Every line of a plain text file is a row.
fn references(name: &Path, host: &Host) -> Result<Vec<Vec<String>>> {
    let references =
        open(name, TEXT_COLUMN, PlainText::EveryLine, host)?.text_lists().collect::<Result<Vec<_>, _>>()?;
    if references.is_empty() {
        fail!(place(name), "{} holds no texts", name.display());
    }
    Ok(references)
}

/// The training texts in which copies are searched; the rest is not read into memory.
fn training(asked: &EvaluateOptions, host: &Host) -> Result<Vec<String>> {
    let mut all = Vec::new();
    let mut words = 0;
    for name in &asked.training {
        if words > asked.training_words {
            break;
        }
        all.extend(texts(name, &asked.training_column, host, &mut |text| {
            // As in the index, each text counts its words and one more. One text too many is read, so that the index
            // sees it.
            let more = words <= asked.training_words;
            words += diversity::words(text).len() + 1;
            more
        })?);
    }
    Ok(all)
}

/// The texts of FILE:COLUMN, or of a file's column `otherwise`, until `wanted` returns `false`.
fn texts(name: &Path, otherwise: &str, host: &Host, wanted: &mut dyn FnMut(&str) -> bool) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for text in open(name, otherwise, PlainText::Lines, host)?.texts() {
        let text = text?;
        if !wanted(&text) {
            return Ok(texts);
        }
        texts.push(text);
    }
    if texts.is_empty() {
        fail!(place(name), "{} holds no texts", name.display());
    }
    Ok(texts)
}

/// Opens FILE:COLUMN, or a file's column `otherwise`.
fn open(name: &Path, otherwise: &str, lines: PlainText, host: &Host) -> Result<Source> {
    let (file, column) = file_and_column(name, otherwise);
    Ok(Source::open(&[host.locate(&file, What::Dataset)?], &[&column], lines)?)
}

/// The parts of FILE:COLUMN; without a column, `otherwise`.
fn file_and_column(name: &Path, otherwise: &str) -> (PathBuf, String) {
    match name.to_string_lossy().rsplit_once(':') {
        Some((file, column)) if !name.exists() && !column.is_empty() && !column.contains(['/', '\\']) => {
            (file.into(), column.to_owned())
        }
        _ => (name.to_owned(), otherwise.to_owned()),
    }
}
