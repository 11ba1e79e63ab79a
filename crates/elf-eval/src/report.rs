//! Named metrics with their uncertainty, as a Markdown table or as JSON.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::perplexity::GenerativePerplexity;
use crate::stats::Interval;
use crate::{EvalError, Result};

/// One number of a report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metric {
    /// What was measured, e.g. "BLEU".
    pub name: String,
    /// The number.
    pub value: f64,
    /// Number of examples or seeds behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<usize>,
    /// Standard error over seeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standard_error: Option<f64>,
    /// Interval over examples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Interval>,
    /// How it was measured, e.g. a BLEU signature or the judge's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
}

impl Metric {
    /// A bare number; its other fields are public.
    pub fn new(name: impl Into<String>, value: f64) -> Self {
        Self { name: name.into(), value, n: None, standard_error: None, interval: None, method: None }
    }

    fn finite(&self) -> Result<()> {
        let numbers = [Some(self.value), self.standard_error]
            .into_iter()
            .chain(self.interval.iter().flat_map(|i| [Some(i.low), Some(i.high)]));
        match numbers.flatten().find(|v| !v.is_finite()) {
            Some(value) => Err(EvalError::MetricNotFinite { name: self.name.clone(), value }),
            None => Ok(()),
        }
    }
}

/// Metrics of one evaluation, in order, and what a reader must be warned of.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    title: String,
    metrics: Vec<Metric>,
    #[serde(default)]
    warnings: Vec<String>,
}

impl Report {
    /// An empty report.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), ..Self::default() }
    }

    /// Adds a metric at the end.
    ///
    /// # Errors
    /// If one of its numbers is not finite: JSON has no word for it.
    pub fn push(&mut self, metric: Metric) -> Result<()> {
        metric.finite()?;
        self.metrics.push(metric);
        Ok(())
    }

    /// Adds a warning at the end.
    pub fn warn(&mut self, warning: impl Into<String>) {
        self.warnings.push(warning.into());
    }

    /// Adds perplexity and entropy, always together, says how many samples were skipped, and
    /// warns if the two point to collapse.
    ///
    /// # Errors
    /// If a number is not finite, as when perplexity overflows.
    pub fn push_perplexity(
        &mut self,
        result: &GenerativePerplexity,
        judge: &str,
        warning: &CollapseWarning,
    ) -> Result<()> {
        let n = Some(result.samples.len() - result.skipped);
        let method = Some(format!("judge {judge}"));
        let perplexity = Metric { n, method: method.clone(), ..Metric::new("Gen. PPL", result.perplexity) };
        let entropy = Metric { n, method, ..Metric::new("Entropy (nats)", result.entropy) };
        perplexity.finite()?; // neither is added without the other
        entropy.finite()?;
        self.metrics.extend([perplexity, entropy]);
        if result.skipped > 0 {
            let total = result.samples.len();
            self.warn(format!("{} of {total} samples are blank and were skipped.", result.skipped));
        }
        if let Some(text) = warning.check(result) {
            self.warn(text);
        }
        Ok(())
    }

    /// The report's title.
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
        serde_json::to_string_pretty(self).map_err(|source| EvalError::ReportJson { source })
    }

    /// Reads what [`Report::to_json`] wrote.
    ///
    /// # Errors
    /// If it is not that.
    pub fn from_json(json: &str) -> Result<Self> {
        serde_json::from_str(json).map_err(|source| EvalError::ReportJson { source })
    }
}

/// When low perplexity must not be taken for quality.
///
/// Text that repeats itself is easy to predict: a collapsed model has a low perplexity *and* a low
/// entropy. Entropy grows with length, being at most the log of the number of tokens, so its
/// threshold is a share of that maximum. Web text of 1,024 tokens has an entropy of some 5.4 nats,
/// 0.78 of ln 1024; the paper's samples (arXiv 2605.10938) have some 5.15 nats, 0.74.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CollapseWarning {
    /// Perplexities below this are looked at (default 40: good samples of full length reach it).
    pub perplexity_below: f64,
    /// Entropy below this share of `ln(mean tokens per sample)` is low (default 0.65, which is
    /// 4.5 nats at 1,024 tokens).
    pub entropy_share_below: f64,
}

impl Default for CollapseWarning {
    fn default() -> Self {
        Self { perplexity_below: 40.0, entropy_share_below: 0.65 }
    }
}

impl CollapseWarning {
    /// The warning, if both numbers are low. Samples of fewer than two tokens on average have no
    /// entropy to speak of and are not judged.
    pub fn check(&self, result: &GenerativePerplexity) -> Option<String> {
        let most = result.mean_tokens.ln();
        let low = most > 0.0 && result.entropy < self.entropy_share_below * most;
        (low && result.perplexity < self.perplexity_below).then(|| {
            format!(
                "Gen. PPL is low ({}) but so is entropy ({} of at most {} nats for samples of {} \
                 tokens): the samples probably repeat themselves. Read some before trusting the \
                 perplexity.",
                number(result.perplexity),
                number(result.entropy),
                number(most),
                number(result.mean_tokens),
            )
        })
    }
}

/// Three decimals at most for numbers of ordinary size, more digits for small ones.
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
    use crate::perplexity::{ScoredWindow, TokenScores};

    fn example() -> Report {
        let mut report = Report::new("Translation");
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
        assert_eq!(Report::from_json(&report.to_json().unwrap()).unwrap(), report);
        assert!(Report::from_json(r#"{"title": "x", "metrics": [], "extra": 1}"#).is_err());
    }

    #[test]
    fn numbers() {
        for (value, text) in [(0.0, "0"), (100.0, "100"), (2.5, "2.5"), (0.0004, "4.000e-4"), (-1.0, "-1")] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn what_json_cannot_say_is_refused() {
        let mut report = Report::new("x");
        let error = report.push(Metric::new("Gen. PPL", f64::INFINITY)).unwrap_err();
        assert!(error.to_string().contains("'Gen. PPL' is inf"), "{error}");
        let interval = Some(Interval { low: f64::NAN, high: 1.0, confidence: 0.95 });
        assert!(report.push(Metric { interval, ..Metric::new("y", 1.0) }).is_err());
        assert!(report.metrics().is_empty());
    }

    /// One sample of `n` tokens with `different` of them different, at `nll` nats each.
    fn perplexity(n: u32, different: u32, nll: f64) -> GenerativePerplexity {
        let ids: Vec<u32> = (0..n).map(|i| 1 + i % different).collect();
        let window = ScoredWindow { nll: vec![nll; ids.len() - 1], ids: ids.clone() };
        let scores = [Some(TokenScores { ids, windows: vec![window] }), None];
        GenerativePerplexity::as_released(&scores, 0).unwrap()
    }

    #[test]
    fn collapse_is_flagged_only_if_both_are_low() {
        let warning = CollapseWarning::default();
        let repeating_and_easy = perplexity(1000, 10, 1.0);
        assert!(warning.check(&repeating_and_easy).unwrap().contains("repeat themselves"));
        assert_eq!(warning.check(&perplexity(1000, 10, 6.0)), None); // repeating, not easy
        assert_eq!(warning.check(&perplexity(1000, 500, 1.0)), None); // easy, not repeating
        assert_eq!(warning.check(&perplexity(24, 20, 1.0)), None); // short texts are not punished
        let strict = CollapseWarning { entropy_share_below: 1.0, ..warning };
        assert!(strict.check(&perplexity(1000, 500, 1.0)).is_some());
    }

    #[test]
    fn perplexity_comes_with_entropy_and_with_its_warnings() {
        let mut report = Report::new("Samples");
        let result = perplexity(1000, 10, 1.0);
        report.push_perplexity(&result, "gpt2", &CollapseWarning::default()).unwrap();
        let names: Vec<&str> = report.metrics().iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["Gen. PPL", "Entropy (nats)"]);
        assert_eq!(report.get("Gen. PPL").unwrap().n, Some(1));
        assert!(report.warnings()[0].contains("1 of 2 samples are blank"));
        assert!(report.warnings()[1].contains("repeat themselves"));

        let overflow = GenerativePerplexity { perplexity: f64::INFINITY, ..result };
        let mut report = Report::new("Samples");
        assert!(report.push_perplexity(&overflow, "gpt2", &CollapseWarning::default()).is_err());
        assert!(report.metrics().is_empty());
    }
}
