//! From texts to an [`Evaluation`].

use std::path::Path;

use super::{Collapse, CollapseWarning, Evaluation, Metric, SampleFile, name};
use crate::bleu::{Bleu, BleuCounts};
use crate::chrf::{Chrf, ChrfCounts};
use crate::diversity::{distinct, repeats, words};
use crate::jsonl::{self, FilledGap};
use crate::novelty::CopyIndex;
use crate::perplexity::{GenerativePerplexity, Scorer, unigram_entropy};
use crate::rouge::{self, Rouge};
use crate::stats::{Bootstrap, Spread, quantile};
use crate::ter::{Ter, TerCounts};
use crate::{Error, Result};

/// Most texts of the data whose entropy is measured, evenly spaced.
const MAX_DATA_TEXTS: usize = 5000;

/// Texts of one system and one seed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SampleSet {
    /// Their name, such as that of their file.
    pub name: String,
    /// The texts.
    pub texts: Vec<String>,
    /// The references of each text, one or several, for conditional tasks.
    pub references: Option<Vec<Vec<String>>>,
    /// The gaps of all texts, if these were filled in.
    pub gaps: Vec<FilledGap>,
    /// Whether at least one of them was generated from an input.
    pub has_inputs: bool,
}

impl SampleSet {
    /// Reads a file of JSON lines, with references if a line has one.
    ///
    /// # Errors
    /// If the file cannot be read or is empty, or a line lacks a field that others have; the message names the line.
    pub fn read(path: &Path) -> Result<Self> {
        let lines = jsonl::read_samples(path)?;
        let mut set = Self { name: path.display().to_string(), ..Self::default() };
        let mut references = Vec::new();
        for line in lines {
            set.has_inputs |= line.input.is_some();
            set.texts.push(line.text);
            references.extend(line.references);
            set.gaps.extend(line.gaps);
        }
        set.references = (!references.is_empty()).then_some(references);
        Ok(set)
    }
}

/// A judge of generative perplexity, and its name.
#[derive(Clone, Copy)]
pub struct Judge<'a> {
    /// Its name.
    pub name: &'a str,
    /// The judge.
    pub scorer: &'a dyn Scorer,
}

impl std::fmt::Debug for Judge<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Judge").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Settings of an evaluation, and the texts that samples are compared with.
#[derive(Debug, Clone, Copy)]
pub struct Evaluator<'a> {
    /// The judge of perplexity and entropy.
    pub judge: Option<Judge<'a>>,
    /// Texts of the data, such as a test split, whose entropy is compared with that of the samples. Without them the samples' own
    /// references are taken, or else the training texts.
    pub data: Option<&'a [String]>,
    /// The model's training texts, for novelty.
    pub training: Option<&'a [String]>,
    /// Number of words of training texts that are searched for copies (default 50 million): the index needs about 50 bytes per
    /// word.
    pub training_words: usize,
    /// A copied run of more words than this is long (default 10).
    pub long_run: usize,
    /// Settings of BLEU (default [`Bleu::lowercase_effective`]).
    pub bleu: Bleu,
    /// Whether chrF is computed as well (default no).
    pub chrf: bool,
    /// Whether TER is computed as well (default no).
    pub ter: bool,
    /// Settings of intervals over examples; `None` for no intervals.
    pub bootstrap: Option<Bootstrap>,
}

impl Default for Evaluator<'_> {
    fn default() -> Self {
        Self {
            judge: None,
            data: None,
            training: None,
            training_words: 50_000_000,
            long_run: 10,
            bleu: Bleu::lowercase_effective(),
            chrf: false,
            ter: false,
            bootstrap: None,
        }
    }
}

impl Evaluator<'_> {
    /// All metrics of these texts. Several sets are several seeds of one system: each metric is computed for each of them, and its
    /// mean and standard error are reported.
    ///
    /// # Errors
    /// If there are no texts, only some sets have references, numbers of texts and references differ, the judge fails, or
    /// a setting is out of its range.
    pub fn evaluate(&self, title: &str, sets: &[SampleSet]) -> Result<Evaluation> {
        if sets.is_empty() || sets.iter().any(|set| set.texts.is_empty()) {
            return Err(Error::Nothing { what: "texts" });
        }
        let files = sets.iter().map(|s| SampleFile { name: s.name.clone(), texts: s.texts.len() }).collect();
        let mut found = Evaluation { samples: files, bootstrap: self.bootstrap, ..Evaluation::new(title) };
        self.against_references(&mut found, sets)?;
        self.in_gaps(&mut found, sets)?;
        let texts: Vec<Vec<Vec<&str>>> = sets.iter().map(|set| set.texts.iter().map(|t| words(t)).collect()).collect();
        self.of_words(&mut found, &texts)?;
        if let Some(training) = self.training {
            self.novelty(&mut found, &texts, training)?;
        }
        if let Some(judge) = &self.judge {
            self.judged(&mut found, sets, judge)?;
        }
        Ok(found)
    }

    fn against_references(&self, found: &mut Evaluation, sets: &[SampleSet]) -> Result<()> {
        let Some(pairs) = paired(sets)? else { return Ok(()) };
        let bleu = self.bleu;
        let counts = each(&pairs, |(texts, references)| bleu.counts_per_pair(texts, references))?;
        let corpus = |drawn: &[&BleuCounts]| bleu.score(&drawn.iter().map(|c| **c).sum()).score;
        let references: Vec<Vec<String>> =
            pairs.iter().flat_map(|(_, references)| references.iter().cloned()).collect();
        self.push(found, name::BLEU, &counts, corpus, Some(&bleu.signature(&references)))?;
        bleu.tokenizer.hint(references.iter().flatten()).into_iter().for_each(|hint| found.warn(hint));
        if self.chrf {
            let chrf = Chrf::default();
            let counts = each(&pairs, |(texts, references)| chrf.counts_per_pair(texts, references))?;
            let corpus = |drawn: &[&ChrfCounts]| chrf.score(&drawn.iter().map(|c| **c).sum());
            self.push(found, name::CHRF, &counts, corpus, Some(&chrf.signature(&references)))?;
        }
        if self.ter {
            let ter = Ter::default();
            let counts = each(&pairs, |(texts, references)| ter.counts_per_pair(texts, references))?;
            let corpus = |drawn: &[&TerCounts]| ter.score(&drawn.iter().map(|c| **c).sum());
            self.push(found, name::TER, &counts, corpus, Some(&ter.signature(&references)))?;
        }
        let rouge = each(&pairs, |(texts, references)| rouge::score_pairs(texts, references))?;
        let f1 = |of: fn(&Rouge) -> f64| per_text(&rouge, |r| 100.0 * of(r));
        for (name, values) in [
            (name::ROUGE_1, f1(|r| r.rouge1.f1)),
            (name::ROUGE_2, f1(|r| r.rouge2.f1)),
            (name::ROUGE_L, f1(|r| r.rouge_l.f1)),
        ] {
            self.push_mean(found, name, &values, Some("F1, Porter stemming"))?;
        }
        Ok(())
    }

    /// What was written into gaps against what they hide. Nothing if a set has no gaps.
    fn in_gaps(&self, found: &mut Evaluation, sets: &[SampleSet]) -> Result<()> {
        if sets.iter().any(|set| set.gaps.is_empty()) {
            return Ok(());
        }
        let bleu = self.bleu;
        let counts = each(sets, |set| {
            let (filled, hidden): (Vec<String>, Vec<Vec<String>>) =
                set.gaps.iter().map(|gap| (gap.filled.clone(), vec![gap.hidden.clone()])).unzip();
            bleu.counts_per_pair(&filled, &hidden)
        })?;
        let corpus = |drawn: &[&BleuCounts]| bleu.score(&drawn.iter().map(|c| **c).sum()).score;
        self.push(found, name::GAP_BLEU, &counts, corpus, Some("of what was filled in"))?;
        let right: Vec<Vec<(usize, usize)>> =
            sets.iter().map(|set| set.gaps.iter().map(right_words).collect()).collect();
        let share = |drawn: &[&(usize, usize)]| {
            let (right, all) = drawn.iter().fold((0, 0), |sum, gap| (sum.0 + gap.0, sum.1 + gap.1));
            right as f64 / all.max(1) as f64
        };
        self.push(found, name::GAP_WORDS, &right, share, Some("share, word by word from the left of each gap"))
    }

    fn of_words(&self, found: &mut Evaluation, texts: &[Vec<Vec<&str>>]) -> Result<()> {
        let entropies: Vec<Vec<f64>> =
            texts.iter().map(|set| set.iter().filter_map(|w| unigram_entropy(w)).collect()).collect();
        self.push_mean(found, name::WORD_ENTROPY, &entropies, Some("per text, averaged"))?;
        for (i, name) in name::DISTINCT.into_iter().enumerate() {
            // No interval: sets drawn with replacement hold texts twice, and so always fewer different n-grams.
            let values: Option<Vec<f64>> = texts.iter().map(|set| distinct(set, i + 1)).collect();
            self.push_values(found, name, values, Some("words, over all texts of a file"))?;
        }
        let share = |yes: bool| f64::from(u8::from(yes));
        let repeated = per_text(texts, |words| share(repeats(words, 5)));
        self.push_mean(found, name::REPEATED_5GRAM, &repeated, Some("share"))?;
        self.push_mean(found, name::LENGTH, &per_text(texts, |words| words.len() as f64), None)?;
        let lengths: Vec<Vec<f64>> = texts.iter().map(|set| sorted(set.iter().map(|w| w.len() as f64))).collect();
        for (name, q) in name::LENGTH_QUANTILES.into_iter().zip([0.05, 0.25, 0.5, 0.75, 0.95]) {
            self.push_values(found, name, Some(lengths.iter().map(|l| quantile(l, q)).collect()), None)?;
        }
        self.push_mean(found, name::EMPTY, &per_text(texts, |words| share(words.is_empty())), Some("share"))
    }

    fn novelty(&self, found: &mut Evaluation, texts: &[Vec<Vec<&str>>], training: &[String]) -> Result<()> {
        let index = CopyIndex::new(training.iter().map(|t| words(t)), self.training_words);
        if index.documents() < training.len() {
            found.warn(format!(
                "Copies were searched for in the first {} training texts only, which have no more than {} words: copies of later \
                 texts are not found.",
                index.documents(),
                self.training_words
            ));
        }
        let novelty = each(texts, |set| index.novelty(set))?;
        let copies: Vec<Vec<f64>> =
            novelty.iter().map(|n| n.copies.iter().map(|c| f64::from(u8::from(*c))).collect()).collect();
        let runs: Vec<Vec<f64>> = novelty.iter().map(|n| n.runs.iter().map(|r| *r as f64).collect()).collect();
        let long = per_text(&runs, |run| f64::from(u8::from(*run > self.long_run as f64)));
        let longest = novelty.iter().map(|n| n.longest_run as f64).collect();
        self.push_mean(found, name::EXACT_COPIES, &copies, Some("share"))?;
        self.push_mean(found, name::COPIED_RUN, &runs, Some("words, mean"))?;
        self.push_values(found, name::COPIED_RUN_MAX, Some(longest), Some("words"))?;
        self.push_mean(found, name::LONG_RUNS, &long, Some(&format!("share, more than {} words", self.long_run)))
    }

    fn judged(&self, found: &mut Evaluation, sets: &[SampleSet], judge: &Judge) -> Result<()> {
        let blank = |text: &String| text.trim().is_empty();
        if let Some(set) = sets.iter().find(|set| set.texts.iter().all(blank)) {
            found.warn(format!("All texts of {} are blank: there is no perplexity.", set.name));
            return Ok(());
        }
        let results = each(sets, |set| GenerativePerplexity::measure(judge.scorer, &set.texts))?;
        let method = format!("judge {}", judge.name);
        let scored: Vec<Vec<(f64, f64)>> = results
            .iter()
            .map(|r| {
                r.samples.iter().flatten().map(|s| (s.nll, s.weight)).filter(|(_, weight)| *weight > 0.0).collect()
            })
            .collect();
        let perplexity = |drawn: &[&(f64, f64)]| {
            let (nll, weight) = drawn.iter().fold((0.0, 0.0), |(n, w), d| (n + d.0, w + d.1));
            (nll / weight).exp()
        };
        self.push(found, name::GEN_PPL, &scored, perplexity, Some(&method))?;
        let entropies: Vec<Vec<f64>> =
            results.iter().map(|r| r.samples.iter().flatten().filter_map(|s| s.entropy).collect()).collect();
        self.push_mean(found, name::ENTROPY, &entropies, Some(&method))?;
        let (skipped, total) =
            results.iter().fold((0, 0), |(skipped, total), r| (skipped + r.skipped, total + r.samples.len()));
        if skipped > 0 {
            found.warn(format!("{skipped} of {total} samples are blank and were skipped."));
        }
        let value = |found: &Evaluation, name| found.get(name).map(|m: &Metric| m.value);
        let measured = value(found, name::ENTROPY).zip(value(found, name::GEN_PPL));
        match (measured, self.data_entropy(sets, judge)?) {
            (Some((entropy, perplexity)), Some((data, data_entropy, n))) => {
                let method = Some(format!("{data}, {method}"));
                found.push(Metric { n: Some(n), method, ..Metric::new(name::DATA_ENTROPY, data_entropy) })?;
                found.set_collapse(Collapse::judge(entropy, perplexity, data_entropy, data)?);
            }
            _ => results.iter().filter_map(|r| CollapseWarning::default().check(r)).for_each(|text| found.warn(text)),
        }
        Ok(())
    }

    /// The texts that represent the data, their entropy in the judge's tokens, and their number.
    fn data_entropy(&self, sets: &[SampleSet], judge: &Judge) -> Result<Option<(&'static str, f64, usize)>> {
        // Of several references the first.
        let first = |references: &Vec<Vec<String>>| references.iter().filter_map(|r| r.first().cloned()).collect();
        let own: Option<Vec<String>> = sets.first().and_then(|set| set.references.as_ref()).map(first);
        let (what, texts) = match (self.data.or(own.as_deref()), self.training) {
            (Some(references), _) => ("references", references),
            (None, Some(training)) => ("training texts", training),
            (None, None) => return Ok(None),
        };
        let texts: Vec<&String> = texts.iter().filter(|t| !t.trim().is_empty()).collect();
        let every = texts.len().div_ceil(MAX_DATA_TEXTS).max(1);
        let texts: Vec<String> = texts.into_iter().step_by(every).cloned().collect();
        if texts.is_empty() {
            return Ok(None);
        }
        let ids = judge.scorer.tokenize(&texts).map_err(|source| Error::Judge { source })?;
        if ids.len() != texts.len() {
            return Err(Error::JudgeCount { expected: texts.len(), got: ids.len() });
        }
        let entropies: Vec<f64> = ids.iter().filter_map(|ids| unigram_entropy(ids)).collect();
        Ok((!entropies.is_empty()).then(|| (what, mean(&entropies), entropies.len())))
    }

    /// Adds the mean of one value per text.
    fn push_mean(&self, found: &mut Evaluation, name: &str, values: &[Vec<f64>], method: Option<&str>) -> Result<()> {
        let mean = |drawn: &[&f64]| drawn.iter().copied().sum::<f64>() / drawn.len() as f64;
        self.push(found, name, values, mean, method)
    }

    /// Adds a statistic of the texts of each file, with an interval over texts. Adds nothing if a file has no values.
    fn push<T: Sync>(
        &self,
        found: &mut Evaluation,
        name: &str,
        files: &[Vec<T>],
        statistic: impl Fn(&[&T]) -> f64 + Sync,
        method: Option<&str>,
    ) -> Result<()> {
        if files.iter().any(Vec::is_empty) {
            return Ok(());
        }
        let values = files.iter().map(|file| statistic(&file.iter().collect::<Vec<_>>())).collect();
        let interval = self.bootstrap.map(|b| b.mean_over_files(files, &statistic)).transpose()?;
        let n = Some(files.iter().map(Vec::len).sum());
        found.push(Metric { n, interval, ..over_files(name, values, method) })
    }

    /// Adds one number per file, if all files have one.
    fn push_values(
        &self,
        found: &mut Evaluation,
        name: &str,
        values: Option<Vec<f64>>,
        method: Option<&str>,
    ) -> Result<()> {
        let n = found.samples.iter().map(|s| s.texts).sum();
        values.map_or(Ok(()), |values| found.push(Metric { n: Some(n), ..over_files(name, values, method) }))
    }
}

/// The hidden words that stand at the same place in what was filled in, in any case, and all hidden words.
fn right_words(gap: &FilledGap) -> (usize, usize) {
    let (filled, hidden) = (gap.filled.to_lowercase(), gap.hidden.to_lowercase());
    let (filled, hidden) = (words(&filled), words(&hidden));
    (filled.iter().zip(&hidden).filter(|(filled, hidden)| filled == hidden).count(), hidden.len())
}

/// Mean over files and its standard error.
fn over_files(name: &str, values: Vec<f64>, method: Option<&str>) -> Metric {
    Metric {
        standard_error: Spread::of_sample(&values).map(|s| s.standard_error),
        method: method.map(str::to_owned),
        per_file: if values.len() > 1 { values.clone() } else { Vec::new() },
        ..Metric::new(name, mean(&values))
    }
}

/// Texts of one file and the references of each.
type Pairs<'a> = (&'a [String], &'a [Vec<String>]);

/// Texts and references of all sets, or none if no set has references.
fn paired(sets: &[SampleSet]) -> Result<Option<Vec<Pairs<'_>>>> {
    let pairs: Vec<Pairs> =
        sets.iter().filter_map(|set| Some((set.texts.as_slice(), set.references.as_deref()?))).collect();
    match pairs.len() {
        0 => Ok(None),
        n if n == sets.len() => Ok(Some(pairs)),
        n => Err(Error::SomeReferences { with: n, files: sets.len() }),
    }
}

fn each<T, U>(items: &[T], f: impl Fn(&T) -> Result<U>) -> Result<Vec<U>> {
    items.iter().map(f).collect()
}

fn per_text<T>(files: &[Vec<T>], f: impl Fn(&T) -> f64) -> Vec<Vec<f64>> {
    files.iter().map(|file| file.iter().map(&f).collect()).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values
}
