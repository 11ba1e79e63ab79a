//! Corpus BLEU, with the numbers of sacreBLEU.
//!
//! N-grams up to order 4, one of sacreBLEU's tokenisers ([`Tokenizer`]), one or several references per hypothesis, exponential
//! smoothing of orders without a match. Papineni et al., "BLEU: a method for automatic evaluation of machine translation", ACL 2002;
//! Post, "A call for clarity in reporting BLEU scores", WMT 2018.

mod tokenizer;

use std::borrow::Cow;
use std::collections::HashMap;
use std::iter::Sum;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::references::{self, References, is_python_space};
pub use tokenizer::Tokenizer;
use tokenizer::split;

/// Longest n-gram that is counted.
pub const MAX_ORDER: usize = 4;

/// Settings of BLEU.
///
/// The default is sacreBLEU's: mixed case, all four orders for texts of every length, the tokeniser `13a`.
/// ELF's published numbers use [`Bleu::lowercase_effective`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bleu {
    /// Compare in lower case.
    pub lowercase: bool,
    /// Leave out orders for which no hypothesis is long enough. Needed for single sentences.
    pub effective_order: bool,
    /// How texts are split into words.
    pub tokenizer: Tokenizer,
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
        Self { lowercase: true, effective_order: true, tokenizer: Tokenizer::V13a }
    }

    /// Corpus BLEU with one or several references per hypothesis.
    ///
    /// # Errors
    /// If the lists differ in length or are empty, or a hypothesis has no reference.
    pub fn corpus<H: AsRef<str> + Sync>(&self, hypotheses: &[H], references: &[impl References]) -> Result<BleuScore> {
        let counts = self.counts_per_pair(hypotheses, references)?;
        Ok(self.score(&counts.into_iter().sum()))
    }

    /// BLEU of one sentence. Without `effective_order`, texts of fewer than four tokens score zero.
    pub fn sentence(&self, hypothesis: &str, references: &impl References) -> BleuScore {
        self.score(&self.counts(hypothesis, &references.texts()))
    }

    /// The counts of each hypothesis, for example for a bootstrap over examples.
    ///
    /// # Errors
    /// As [`corpus`](Self::corpus).
    pub fn counts_per_pair<H: AsRef<str> + Sync>(
        &self,
        hypotheses: &[H],
        references: &[impl References],
    ) -> Result<Vec<BleuCounts>> {
        references::of_each(hypotheses, references, |hypothesis, r| self.counts(hypothesis, &r.texts()))
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

    /// All settings that are needed to compute the same number, in sacreBLEU's notation. The version is this crate's, because the
    /// number was not computed by sacreBLEU.
    pub fn signature(&self, references: &[impl References]) -> String {
        format!(
            "nrefs:{}|case:{}|eff:{}|tok:{}|smooth:exp|version:elf-eval-{}",
            references::count(references).map_or("var".to_owned(), |n| n.to_string()),
            if self.lowercase { "lc" } else { "mixed" },
            if self.effective_order { "yes" } else { "no" },
            self.tokenizer,
            env!("CARGO_PKG_VERSION"),
        )
    }

    fn counts(&self, hypothesis: &str, references: &[&str]) -> BleuCounts {
        let mut words = HashMap::new();
        let hypothesis = self.word_ids(hypothesis, &mut words);
        // Per n-gram of the hypothesis: its count there, its highest count in a reference, and its count in the current reference.
        let mut grams: HashMap<u128, [u64; 3]> = HashMap::with_capacity(hypothesis.len() * MAX_ORDER);
        for_each_ngram(&hypothesis, |gram| grams.entry(gram).or_default()[0] += 1);
        let mut reference_lens = Vec::with_capacity(references.len());
        for reference in references {
            let reference = self.word_ids(reference, &mut words);
            reference_lens.push(reference.len());
            for_each_ngram(&reference, |gram| {
                if let Some(counts) = grams.get_mut(&gram) {
                    counts[2] += 1;
                }
            });
            for [_, highest, current] in grams.values_mut() {
                *highest = (*highest).max(std::mem::take(current));
            }
        }
        // The length of the reference nearest in length, the shorter one of two.
        let nearest = reference_lens.iter().min_by_key(|&&len| (len.abs_diff(hypothesis.len()), len));
        let mut counts = BleuCounts {
            hypothesis_len: hypothesis.len() as u64,
            reference_len: nearest.copied().unwrap_or(0) as u64,
            ..Default::default()
        };
        for (gram, [in_hypothesis, in_reference, _]) in grams {
            counts.matches[order(gram) - 1] += in_hypothesis.min(in_reference);
        }
        for (n, total) in counts.totals.iter_mut().enumerate() {
            *total = hypothesis.len().saturating_sub(n) as u64;
        }
        counts
    }

    /// Tokenises a text and numbers its words from 1.
    fn word_ids(&self, text: &str, words: &mut HashMap<String, u32>) -> Vec<u32> {
        let lowercase = if self.lowercase { Cow::Owned(text.to_lowercase()) } else { Cow::Borrowed(text) };
        let tokenised = self.tokenizer.separate(lowercase.trim_end_matches(is_python_space));
        let mut ids = Vec::new();
        for word in split(&tokenised) {
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
        let counts = Bleu::default().sentence("the the the the", &"the cat the").counts;
        assert_eq!(counts.matches, [2, 0, 0, 0]);
    }

    #[test]
    fn the_best_of_several_references_counts() {
        let score = Bleu::default().sentence("a b c d e", &vec!["a b c x", "d e f g h i"]);
        // No trigram of the second reference matches; the lengths 4 and 6 are equally near to 5.
        assert_eq!((score.counts.matches, score.counts.reference_len), ([5, 3, 1, 0], 4));
        assert_eq!(Bleu::default().sentence("a a a", &vec!["a a", "a b a b a"]).counts.matches, [3, 1, 0, 0]);
    }

    #[test]
    fn a_short_text_needs_effective_order() {
        close(Bleu::default().sentence("a b", &"a b").score, 0.0);
        close(Bleu::lowercase_effective().sentence("A b", &"a B").score, 100.0);
        let short = Bleu::lowercase_effective().sentence("a b", &"a b c d");
        close(short.score, 100.0 * (-1.0_f64).exp());
    }

    #[test]
    fn nothing_in_common_or_nothing_at_all_scores_zero() {
        for (h, r) in [("x", "a"), ("", "a"), ("a", ""), ("", "")] {
            close(Bleu::lowercase_effective().sentence(h, &r).score, 0.0);
        }
    }

    #[test]
    fn signatures() {
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            Bleu::lowercase_effective().signature(&["a"]),
            format!("nrefs:1|case:lc|eff:yes|tok:13a|smooth:exp|version:elf-eval-{version}")
        );
        assert!(Bleu::default().signature(&["a"]).starts_with("nrefs:1|case:mixed|eff:no|"));
        let zh = Bleu { tokenizer: Tokenizer::Zh, ..Bleu::default() };
        assert!(zh.signature(&[vec!["a", "b"], vec!["c", "d"]]).starts_with("nrefs:2|case:mixed|eff:no|tok:zh|"));
        assert!(zh.signature(&[vec!["a", "b"], vec!["c"]]).starts_with("nrefs:var|"));
    }

    #[test]
    fn lists_that_do_not_fit_are_refused() {
        let err = Bleu::default().corpus(&["a", "b"], &["a"]).unwrap_err().to_string();
        assert!(err.contains("2 hypotheses but 1 references"), "{err}");
        let none: [&str; 0] = [];
        assert!(Bleu::default().corpus(&none, &none).is_err());
        let no_reference = Bleu::default().corpus(&["a", "b"], &[vec!["a"], vec![]]).unwrap_err().to_string();
        assert!(no_reference.contains("row 2"), "{no_reference}");
    }
}
