//! Corpus BLEU, with the numbers of sacreBLEU.
//!
//! N-grams up to order 4, the `13a` tokeniser (that of NIST's mteval-v13a), exponential smoothing
//! of orders without a match. Papineni et al., "BLEU: a method for automatic evaluation of machine
//! translation", ACL 2002; Post, "A call for clarity in reporting BLEU scores", WMT 2018.

use std::collections::HashMap;
use std::iter::Sum;
use std::ops::AddAssign;
use std::sync::LazyLock;

use rayon::prelude::*;
use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Longest n-gram that is counted.
pub const MAX_ORDER: usize = 4;

/// How BLEU is computed.
///
/// The default is sacreBLEU's: mixed case, and all four orders whatever the texts' lengths.
/// ELF's published numbers use [`Bleu::lowercase_effective`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bleu {
    /// Compare in lower case.
    pub lowercase: bool,
    /// Leave out orders for which no hypothesis is long enough. Wanted for single sentences.
    pub effective_order: bool,
}

/// Counts from which BLEU follows. Those of several examples are added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BleuCounts {
    /// Matched n-grams, orders 1 to 4.
    pub matches: [u64; MAX_ORDER],
    /// N-grams in the hypotheses, orders 1 to 4.
    pub totals: [u64; MAX_ORDER],
    /// Tokens in the hypotheses.
    pub hypothesis_len: u64,
    /// Tokens in the references.
    pub reference_len: u64,
}

impl AddAssign for BleuCounts {
    fn add_assign(&mut self, other: Self) {
        for n in 0..MAX_ORDER {
            self.matches[n] += other.matches[n];
            self.totals[n] += other.totals[n];
        }
        self.hypothesis_len += other.hypothesis_len;
        self.reference_len += other.reference_len;
    }
}

impl Sum for BleuCounts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        let mut sum = Self::default();
        counts.for_each(|c| sum += c);
        sum
    }
}

/// BLEU and what it is made of.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BleuScore {
    /// BLEU, 0 to 100.
    pub score: f64,
    /// Precisions of orders 1 to 4, 0 to 100, smoothed where nothing matches.
    pub precisions: [f64; MAX_ORDER],
    /// Factor below 1 if the hypotheses are shorter than the references.
    pub brevity_penalty: f64,
    /// The counts behind it.
    pub counts: BleuCounts,
}

impl Bleu {
    /// The setting of ELF's published numbers: lower case, effective order.
    pub fn lowercase_effective() -> Self {
        Self { lowercase: true, effective_order: true }
    }

    /// Corpus BLEU with one reference per hypothesis.
    ///
    /// # Errors
    /// If the lists differ in length or are empty.
    pub fn corpus<S: AsRef<str> + Sync>(&self, hypotheses: &[S], references: &[S]) -> Result<BleuScore> {
        let counts = self.counts_per_pair(hypotheses, references)?;
        Ok(self.score(&counts.into_iter().sum()))
    }

    /// BLEU of one sentence. Choose `effective_order`, or texts of under four tokens score zero.
    pub fn sentence(&self, hypothesis: &str, reference: &str) -> BleuScore {
        self.score(&self.counts(hypothesis, reference))
    }

    /// The counts of each pair, e.g. for a bootstrap over examples.
    ///
    /// # Errors
    /// If the lists differ in length or are empty.
    pub fn counts_per_pair<S: AsRef<str> + Sync>(&self, hypotheses: &[S], references: &[S]) -> Result<Vec<BleuCounts>> {
        same_length(hypotheses.len(), references.len())?;
        Ok(hypotheses.par_iter().zip(references).map(|(h, r)| self.counts(h.as_ref(), r.as_ref())).collect())
    }

    /// BLEU from counts.
    pub fn score(&self, counts: &BleuCounts) -> BleuScore {
        let brevity_penalty = if counts.hypothesis_len >= counts.reference_len {
            1.0
        } else if counts.hypothesis_len == 0 {
            0.0
        } else {
            (1.0 - counts.reference_len as f64 / counts.hypothesis_len as f64).exp()
        };
        let mut result = BleuScore { score: 0.0, precisions: [0.0; MAX_ORDER], brevity_penalty, counts: *counts };
        if counts.matches == [0; MAX_ORDER] {
            return result;
        }
        let mut smoothing = 1.0;
        let mut orders = 0;
        for (n, precision) in result.precisions.iter_mut().enumerate() {
            let (matches, total) = (counts.matches[n] as f64, counts.totals[n] as f64);
            if counts.totals[n] == 0 {
                break;
            }
            orders = n + 1;
            *precision = if counts.matches[n] == 0 {
                smoothing *= 2.0;
                100.0 / (smoothing * total)
            } else {
                100.0 * matches / total
            };
        }
        if orders == MAX_ORDER || self.effective_order {
            let logs: f64 = result.precisions[..orders].iter().map(|p| p.ln()).sum();
            result.score = brevity_penalty * (logs / orders as f64).exp();
        } // else the precision of some order is 0, and so is the geometric mean
        result
    }

    /// What a reader needs in order to compute the same number, in sacreBLEU's notation. The
    /// version is this crate's, so that nobody takes the number for one printed by sacreBLEU.
    pub fn signature(&self) -> String {
        format!(
            "nrefs:1|case:{}|eff:{}|tok:13a|smooth:exp|version:elf-eval-{}",
            if self.lowercase { "lc" } else { "mixed" },
            if self.effective_order { "yes" } else { "no" },
            env!("CARGO_PKG_VERSION"),
        )
    }

    fn counts(&self, hypothesis: &str, reference: &str) -> BleuCounts {
        let mut words = HashMap::new();
        let hypothesis = self.word_ids(hypothesis, &mut words);
        let reference = self.word_ids(reference, &mut words);
        // Per n-gram of the hypothesis: its count there, and in the reference.
        let mut grams: HashMap<u128, (u64, u64)> = HashMap::with_capacity(hypothesis.len() * MAX_ORDER);
        for_each_ngram(&hypothesis, |gram| grams.entry(gram).or_default().0 += 1);
        for_each_ngram(&reference, |gram| {
            if let Some((_, count)) = grams.get_mut(&gram) {
                *count += 1;
            }
        });

        let mut counts = BleuCounts {
            hypothesis_len: hypothesis.len() as u64,
            reference_len: reference.len() as u64,
            ..Default::default()
        };
        for (gram, (in_hypothesis, in_reference)) in grams {
            counts.matches[order(gram) - 1] += in_hypothesis.min(in_reference);
        }
        for (n, total) in counts.totals.iter_mut().enumerate() {
            *total = hypothesis.len().saturating_sub(n) as u64;
        }
        counts
    }

    /// Tokenises a text and numbers its words from 1.
    fn word_ids(&self, text: &str, words: &mut HashMap<String, u32>) -> Vec<u32> {
        let text = text.trim_end_matches(is_python_space);
        let tokenised = if self.lowercase { separate_13a(&text.to_lowercase()) } else { separate_13a(text) };
        let mut ids = Vec::new();
        for word in split_13a(&tokenised) {
            let next = words.len() as u32 + 1;
            let id = match words.get(word) {
                Some(id) => *id,
                None => *words.entry(word.to_owned()).or_insert(next),
            };
            ids.push(id);
        }
        ids
    }
}

fn same_length(hypotheses: usize, references: usize) -> Result<()> {
    if hypotheses != references {
        return Err(Error::UnequalLengths {
            left_name: "hypotheses",
            left: hypotheses,
            right_name: "references",
            right: references,
        });
    }
    if hypotheses == 0 {
        return Err(Error::Nothing { what: "hypotheses" });
    }
    Ok(())
}

/// All n-grams of orders 1 to 4, each packed into 32 bits per word. Word ids start at 1, so
/// n-grams of different orders differ.
fn for_each_ngram(ids: &[u32], mut visit: impl FnMut(u128)) {
    for start in 0..ids.len() {
        let mut gram = 0;
        for id in &ids[start..ids.len().min(start + MAX_ORDER)] {
            gram = (gram << 32) | u128::from(*id);
            visit(gram);
        }
    }
}

fn order(gram: u128) -> usize {
    (u128::BITS - gram.leading_zeros()).div_ceil(u32::BITS) as usize
}

/// White space as Python's `str.split` sees it: Unicode's, and the four ASCII separators.
fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// The words of a text under the `13a` tokeniser.
///
/// ```
/// let words = elf_eval::bleu::tokenize_13a("It's 3.5%, \"really\".");
/// assert_eq!(words, ["It's", "3.5", "%", ",", "\"", "really", "\"", "."]);
/// ```
pub fn tokenize_13a(text: &str) -> Vec<String> {
    split_13a(&separate_13a(text)).map(str::to_owned).collect()
}

fn split_13a(separated: &str) -> impl Iterator<Item = &str> {
    separated.split(is_python_space).filter(|word| !word.is_empty())
}

/// Puts spaces around what `13a` takes for words of their own.
fn separate_13a(text: &str) -> String {
    // ASCII signs except ' , - and . stand alone; full stop and comma unless between digits;
    // the dash after a digit. One pass per rule, as the definition's regular expressions go.
    static RULES: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
        [
            (r"([\{-~\[-` -&\(-\+:-@/])", " ${1} "),
            (r"([^0-9])([\.,])", "${1} ${2} "),
            (r"([\.,])([^0-9])", " ${1} ${2}"),
            (r"([0-9])(-)", "${1} ${2} "),
        ]
        .map(|(pattern, by)| (Regex::new(pattern).expect("a fixed pattern that tests compile"), by))
    });
    let mut line = text.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    if line.contains('&') {
        for (entity, sign) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
            line = line.replace(entity, sign);
        }
    }
    line = format!(" {line} ");
    for (pattern, by) in RULES.iter() {
        if let std::borrow::Cow::Owned(replaced) = pattern.replace_all(&line, *by) {
            line = replaced;
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9, "{a} is not {b}");
    }

    #[test]
    fn by_hand() {
        // Hypothesis of 4 tokens; 3 unigrams, 2 bigrams, 1 trigram, 0 four-grams match.
        let score = Bleu::default().corpus(&["the cat sat down"], &["the cat sat up"]).unwrap();
        assert_eq!(score.counts.matches, [3, 2, 1, 0]);
        assert_eq!(score.counts.totals, [4, 3, 2, 1]);
        // The unmatched order counts as 1/2.
        close(score.score, 100.0 * (0.75_f64 * (2.0 / 3.0) * 0.5 * 0.5).powf(0.25));
        close(score.brevity_penalty, 1.0);
    }

    #[test]
    fn repeated_words_match_only_as_often_as_in_the_reference() {
        let counts = Bleu::default().sentence("the the the the", "the cat the").counts;
        assert_eq!(counts.matches, [2, 0, 0, 0]);
    }

    #[test]
    fn a_short_text_needs_effective_order() {
        close(Bleu::default().sentence("a b", "a b").score, 0.0);
        close(Bleu::lowercase_effective().sentence("A b", "a B").score, 100.0);
        let short = Bleu::lowercase_effective().sentence("a b", "a b c d");
        close(short.score, 100.0 * (-1.0_f64).exp());
    }

    #[test]
    fn nothing_in_common_or_nothing_at_all_scores_zero() {
        for (h, r) in [("x", "a"), ("", "a"), ("a", ""), ("", "")] {
            close(Bleu::lowercase_effective().sentence(h, r).score, 0.0);
        }
    }

    #[test]
    fn tokeniser_cases() {
        for (text, expected) in [
            ("U.S. $1,234.56, 3-4 e.g.", "U . S . $ 1,234.56 , 3 - 4 e . g ."),
            ("don't (2.5%) a/b x-y", "don't ( 2.5 % ) a / b x-y"),
            ("&quot;q&quot; &amp;lt; <skipped>x", "\" q \" < x"),
            ("line-\nbreak\nnext", "linebreak next"),
            ("...,", ". . . ,"),
            ("日本語,naïve…", "日本語 , naïve…"),
            ("a\u{1c}b\u{a0}c", "a b c"),
        ] {
            assert_eq!(tokenize_13a(text).join(" "), expected, "{text:?}");
        }
    }

    #[test]
    fn signatures() {
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            Bleu::lowercase_effective().signature(),
            format!("nrefs:1|case:lc|eff:yes|tok:13a|smooth:exp|version:elf-eval-{version}")
        );
        assert!(Bleu::default().signature().starts_with("nrefs:1|case:mixed|eff:no|"));
    }

    #[test]
    fn lists_that_do_not_fit_are_refused() {
        let err = Bleu::default().corpus(&["a", "b"], &["a"]).unwrap_err().to_string();
        assert!(err.contains("2 hypotheses but 1 references"), "{err}");
        assert!(Bleu::default().corpus::<&str>(&[], &[]).is_err());
    }
}
