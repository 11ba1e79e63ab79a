//! The results of an evaluation with their uncertainty: the JSON that `elf eval` writes, and a Markdown table.
//!
//! The JSON has a version, [`SCHEMA`]; files of another version are refused. Within a version, fields are only added, with
//! a default.

mod collapse;
mod measure;

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

pub use collapse::{Collapse, CollapseWarning, ENTROPY_MARGIN};
pub use measure::{Evaluator, Judge, SampleSet};

use crate::stats::{Bootstrap, Interval};
use crate::{Error, Result};

/// Version of the JSON form of [`Evaluation`].
pub const SCHEMA: u32 = 1;

/// Names of metrics, by which they are found in an [`Evaluation`].
pub mod name {
    /// Corpus BLEU, 0 to 100.
    pub const BLEU: &str = "BLEU";
    /// chrF, 0 to 100.
    pub const CHRF: &str = "chrF";
    /// Translation edit rate in percent; lower is better.
    pub const TER: &str = "TER";
    /// Corpus BLEU of what was written into gaps against what they hide, 0 to 100.
    pub const GAP_BLEU: &str = "BLEU in gaps";
    /// Share of hidden words that were written at their place, 0 to 1.
    pub const GAP_WORDS: &str = "Words right in gaps";
    /// ROUGE-1, mean F1 x 100.
    pub const ROUGE_1: &str = "ROUGE-1";
    /// ROUGE-2, mean F1 x 100.
    pub const ROUGE_2: &str = "ROUGE-2";
    /// ROUGE-L, mean F1 x 100.
    pub const ROUGE_L: &str = "ROUGE-L";
    /// Unigram entropy of a text's words in nats, averaged over texts.
    pub const WORD_ENTROPY: &str = "Entropy of words (nats)";
    /// Different n-grams of words over n-grams, n = 1 to 4, over all texts, 0 to 1.
    pub const DISTINCT: [&str; 4] = ["distinct-1", "distinct-2", "distinct-3", "distinct-4"];
    /// Share of texts with a 5-gram of words that occurs twice, 0 to 1.
    pub const REPEATED_5GRAM: &str = "Texts with a repeated 5-gram";
    /// Mean number of words of a text.
    pub const LENGTH: &str = "Words per text";
    /// Quantiles of the number of words of a text: 5%, 25%, 50%, 75%, 95%.
    pub const LENGTH_QUANTILES: [&str; 5] = [
        "Words per text, 5% quantile",
        "Words per text, 25% quantile",
        "Words per text, median",
        "Words per text, 75% quantile",
        "Words per text, 95% quantile",
    ];
    /// Share of texts without a word, 0 to 1.
    pub const EMPTY: &str = "Empty texts";
    /// Share of texts that are training texts, word for word, 0 to 1.
    pub const EXACT_COPIES: &str = "Exact copies of training texts";
    /// Mean over texts of the longest run of words that a training text contains as well.
    pub const COPIED_RUN: &str = "Longest run copied from training texts";
    /// The longest copied run of all texts.
    pub const COPIED_RUN_MAX: &str = "Longest run copied from training texts, maximum";
    /// Share of texts whose longest copied run has more words than [`crate::evaluation::Evaluator::long_run`], 0 to 1; the method states the
    /// number.
    pub const LONG_RUNS: &str = "Texts with a long copied run";
    /// Perplexity under a judge.
    pub const GEN_PPL: &str = "Gen. PPL";
    /// Unigram entropy of a text's tokens, as the judge splits it, in nats, averaged over texts.
    pub const ENTROPY: &str = "Entropy (nats)";
    /// Unigram entropy of the references or the training texts, in the same tokens.
    pub const DATA_ENTROPY: &str = "Entropy of the data (nats)";
}

/// One number of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metric {
    /// Name of the metric, such as "BLEU".
    pub name: String,
    /// The number.
    pub value: f64,
    /// Number of examples behind it, over all sample files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<usize>,
    /// Its value in each sample file, such as one per seed, if there are several; `value` is then their mean.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub per_file: Vec<f64>,
    /// Standard error of that mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standard_error: Option<f64>,
    /// Interval over examples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Interval>,
    /// The method, such as a BLEU signature or the judge's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
}

impl Metric {
    /// A bare number; its other fields are public.
    pub fn new(name: impl Into<String>, value: f64) -> Self {
        Self {
            name: name.into(),
            value,
            n: None,
            per_file: Vec::new(),
            standard_error: None,
            interval: None,
            method: None,
        }
    }

    fn finite(&self) -> Result<()> {
        let numbers = [Some(self.value), self.standard_error]
            .into_iter()
            .chain(self.per_file.iter().map(|v| Some(*v)))
            .chain(self.interval.iter().flat_map(|i| [Some(i.low), Some(i.high)]));
        match numbers.flatten().find(|v| !v.is_finite()) {
            Some(value) => Err(Error::MetricNotFinite { name: self.name.clone(), value }),
            None => Ok(()),
        }
    }
}

/// A file of samples that was evaluated.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleFile {
    /// Its name.
    pub name: String,
    /// Number of texts in it.
    pub texts: usize,
}

/// Metrics and warnings of one evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// Version of this form.
    schema: u32,
    /// What was evaluated.
    title: String,
    /// The sample files; several are several seeds of one system.
    #[serde(default)]
    samples: Vec<SampleFile>,
    /// Settings of the intervals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bootstrap: Option<Bootstrap>,
    metrics: Vec<Metric>,
    /// The verdict on collapse; `None` without perplexity or without data to compare with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    collapse: Option<Collapse>,
    #[serde(default)]
    warnings: Vec<String>,
}

impl Default for Evaluation {
    fn default() -> Self {
        Self {
            schema: SCHEMA,
            title: String::new(),
            samples: Vec::new(),
            bootstrap: None,
            metrics: Vec::new(),
            collapse: None,
            warnings: Vec::new(),
        }
    }
}

impl Evaluation {
    /// An evaluation without metrics.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), ..Self::default() }
    }

    /// Adds a metric at the end.
    ///
    /// # Errors
    /// If one of its numbers is not finite, which JSON cannot express.
    pub fn push(&mut self, metric: Metric) -> Result<()> {
        metric.finite()?;
        self.metrics.push(metric);
        Ok(())
    }

    /// Adds a warning at the end.
    pub fn warn(&mut self, warning: impl Into<String>) {
        self.warnings.push(warning.into());
    }

    /// Stores the verdict on collapse, and warns if the samples collapsed.
    pub fn set_collapse(&mut self, collapse: Collapse) {
        if collapse.collapsed {
            self.warn(collapse.sentence.clone());
        }
        self.collapse = Some(collapse);
    }

    /// The verdict on collapse, if there is one.
    pub fn collapse(&self) -> Option<&Collapse> {
        self.collapse.as_ref()
    }

    /// Whether the verdict is that the samples collapsed.
    pub fn is_collapsed(&self) -> bool {
        self.collapse.as_ref().is_some_and(|collapse| collapse.collapsed)
    }

    /// The files that were evaluated.
    pub fn samples(&self) -> &[SampleFile] {
        &self.samples
    }

    /// What was evaluated.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// The metrics, in order.
    pub fn metrics(&self) -> &[Metric] {
        &self.metrics
    }

    /// The warnings, in order.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The metric of a name.
    pub fn get(&self, name: &str) -> Option<&Metric> {
        self.metrics.iter().find(|m| m.name == name)
    }

    /// A Markdown section: title, table, warnings.
    pub fn to_markdown(&self) -> String {
        let mut out = format!("## {}\n\n", one_line(&self.title));
        out.push_str("| metric | value | uncertainty | n | method |\n| --- | ---: | --- | ---: | --- |\n");
        for metric in &self.metrics {
            let mut uncertainty = Vec::new();
            if let Some(error) = metric.standard_error {
                uncertainty.push(format!("± {} s.e.", number(error)));
            }
            if let Some(Interval { low, high, confidence }) = metric.interval {
                let percent = number(100.0 * confidence);
                uncertainty.push(format!("[{}, {}] {percent}%", number(low), number(high)));
            }
            // Writing to a String cannot fail.
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {} |",
                cell(&metric.name),
                number(metric.value),
                uncertainty.join(", "),
                metric.n.map(|n| n.to_string()).unwrap_or_default(),
                cell(metric.method.as_deref().unwrap_or_default()),
            );
        }
        for warning in &self.warnings {
            let _ = write!(out, "\n**Warning:** {}\n", one_line(warning));
        }
        out
    }

    /// JSON with indentation, every number in full.
    ///
    /// # Errors
    /// If the report cannot be written as JSON.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).map_err(|source| Error::ReportJson { source })
    }

    /// Reads what [`Evaluation::to_json`] wrote.
    ///
    /// # Errors
    /// If it is not that, or of another version.
    pub fn from_json(json: &str) -> Result<Self> {
        /// The version alone, which is read first: another version may have other fields.
        #[derive(Deserialize)]
        struct Version {
            #[serde(default)]
            schema: u32,
        }
        let unreadable = |source| Error::ReportJson { source };
        let Version { schema } = serde_json::from_str(json).map_err(unreadable)?;
        if schema != SCHEMA {
            return Err(Error::Schema { found: schema, known: SCHEMA });
        }
        serde_json::from_str(json).map_err(unreadable)
    }
}

/// A number with at most three decimals, or in scientific notation if it is very small or large.
fn number(value: f64) -> String {
    if value != 0.0 && (value.abs() < 0.01 || value.abs() >= 1e9) {
        return format!("{value:.3e}");
    }
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn cell(text: &str) -> String {
    one_line(text).replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Evaluation {
        let mut report = Evaluation::new("Translation");
        let bleu = Metric {
            n: Some(400),
            interval: Some(Interval { low: 25.1, high: 27.25, confidence: 0.95 }),
            method: Some("nrefs:1|case:lc".into()),
            ..Metric::new("BLEU", 26.4)
        };
        report.push(bleu).unwrap();
        let seeds = Metric { standard_error: Some(0.0021), ..Metric::new("Distinct-1", 0.5) };
        report.push(seeds).unwrap();
        report
    }

    #[test]
    fn markdown() {
        let mut report = example();
        report.warn("read\nthis");
        assert_eq!(
            report.to_markdown(),
            "## Translation\n\n\
             | metric | value | uncertainty | n | method |\n\
             | --- | ---: | --- | ---: | --- |\n\
             | BLEU | 26.4 | [25.1, 27.25] 95% | 400 | nrefs:1\\|case:lc |\n\
             | Distinct-1 | 0.5 | ± 2.100e-3 s.e. |  |  |\n\
             \n**Warning:** read this\n"
        );
    }

    #[test]
    fn json_comes_back_unchanged() {
        let mut report = example();
        report.push(Metric::new("third", 1.0 / 3.0)).unwrap();
        assert_eq!(Evaluation::from_json(&report.to_json().unwrap()).unwrap(), report);
        assert!(Evaluation::from_json(r#"{"title": "x", "metrics": [], "extra": 1}"#).is_err());
    }

    #[test]
    fn numbers() {
        for (value, text) in [(0.0, "0"), (100.0, "100"), (2.5, "2.5"), (0.0004, "4.000e-4"), (-1.0, "-1")] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn what_json_cannot_say_is_refused() {
        let mut report = Evaluation::new("x");
        let error = report.push(Metric::new("Gen. PPL", f64::INFINITY)).unwrap_err();
        assert!(error.to_string().contains("'Gen. PPL' is inf"), "{error}");
        let interval = Some(Interval { low: f64::NAN, high: 1.0, confidence: 0.95 });
        assert!(report.push(Metric { interval, ..Metric::new("y", 1.0) }).is_err());
        assert!(report.metrics().is_empty());
    }
}
