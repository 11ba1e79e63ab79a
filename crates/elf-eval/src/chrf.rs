//! Corpus chrF and chrF++, with the numbers of sacreBLEU.
//!
//! F-score of character n-grams up to order 6, and of word n-grams for chrF++; white space does not count. Popović, "chrF: character
//! n-gram F-score for automatic MT evaluation", WMT 2015; Popović, "chrF++: words helping character n-grams", WMT 2017.

use std::collections::HashMap;
use std::hash::Hash;
use std::iter::Sum;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::references::{self, References, is_python_space};

/// Longest character n-gram.
pub const CHAR_ORDER: usize = 6;
/// Longest word n-gram of chrF++.
pub const WORD_ORDER: usize = 2;

const ORDERS: usize = CHAR_ORDER + WORD_ORDER;
/// Recall counts twice as much as precision.
const BETA: f64 = 2.0;

/// Settings of chrF. The default is sacreBLEU's: mixed case, characters alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Chrf {
    /// Compare in lower case.
    pub lowercase: bool,
    /// Count word n-grams of orders 1 and 2 as well: chrF++.
    pub words: bool,
}

/// Counts that determine chrF. Those of several examples are added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChrfCounts {
    /// N-grams of the hypothesis, of the reference, and of both: character orders first, then word orders.
    orders: [[u64; 3]; ORDERS],
}

impl AddAssign for ChrfCounts {
    fn add_assign(&mut self, other: Self) {
        for (sum, more) in self.orders.iter_mut().flatten().zip(other.orders.iter().flatten()) {
            *sum += more;
        }
    }
}

impl Sum for ChrfCounts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |mut sum, counts| {
            sum += counts;
            sum
        })
    }
}

impl Chrf {
    /// Corpus chrF, 0 to 100, with one or several references per hypothesis.
    ///
    /// # Errors
    /// If the lists differ in length or are empty, or a hypothesis has no reference.
    pub fn corpus<H: AsRef<str> + Sync>(&self, hypotheses: &[H], references: &[impl References]) -> Result<f64> {
        Ok(self.score(&self.counts_per_pair(hypotheses, references)?.into_iter().sum()))
    }

    /// chrF of one sentence.
    pub fn sentence(&self, hypothesis: &str, references: &impl References) -> f64 {
        self.score(&self.counts(hypothesis, &references.texts()))
    }

    /// The counts of each hypothesis with its best reference, for example for a bootstrap over examples.
    ///
    /// # Errors
    /// As [`corpus`](Self::corpus).
    pub fn counts_per_pair<H: AsRef<str> + Sync>(
        &self,
        hypotheses: &[H],
        references: &[impl References],
    ) -> Result<Vec<ChrfCounts>> {
        references::of_each(hypotheses, references, |hypothesis, r| self.counts(hypothesis, &r.texts()))
    }

    /// chrF from counts.
    pub fn score(&self, counts: &ChrfCounts) -> f64 {
        let (mut precision, mut recall, mut orders) = (0.0, 0.0, 0.0);
        for &[hypothesis, reference, both] in &counts.orders {
            if hypothesis > 0 && reference > 0 {
                precision += both as f64 / hypothesis as f64;
                recall += both as f64 / reference as f64;
                orders += 1.0;
            }
        }
        if precision + recall == 0.0 {
            return 0.0;
        }
        let (precision, recall, factor) = (precision / orders, recall / orders, BETA * BETA);
        100.0 * (1.0 + factor) * precision * recall / (factor * precision + recall)
    }

    /// All settings that are needed to compute the same number, in sacreBLEU's notation with this crate's version.
    pub fn signature(&self, references: &[impl References]) -> String {
        format!(
            "nrefs:{}|case:{}|eff:yes|nc:{CHAR_ORDER}|nw:{}|space:no|version:elf-eval-{}",
            references::count(references).map_or("var".to_owned(), |n| n.to_string()),
            if self.lowercase { "lc" } else { "mixed" },
            if self.words { WORD_ORDER } else { 0 },
            env!("CARGO_PKG_VERSION"),
        )
    }

    fn counts(&self, hypothesis: &str, references: &[&str]) -> ChrfCounts {
        let hypothesis = Grams::of(hypothesis, self);
        let (mut best, mut best_score) = (ChrfCounts::default(), -1.0);
        for reference in references {
            let counts = hypothesis.against(&Grams::of(reference, self));
            let score = self.score(&counts);
            if score > best_score {
                (best, best_score) = (counts, score);
            }
        }
        best
    }
}

/// The characters and words of a text that n-grams are made of.
struct Grams {
    characters: Vec<char>,
    words: Vec<String>,
}

impl Grams {
    fn of(text: &str, settings: &Chrf) -> Self {
        let text = if settings.lowercase { text.to_lowercase() } else { text.to_owned() };
        let characters = text.chars().filter(|c| !is_python_space(*c)).collect();
        Self { characters, words: if settings.words { separate_punctuation(&text) } else { Vec::new() } }
    }

    fn against(&self, reference: &Self) -> ChrfCounts {
        let mut counts = ChrfCounts::default();
        for (n, order) in counts.orders.iter_mut().enumerate() {
            *order = match n.checked_sub(CHAR_ORDER) {
                None => shared(&self.characters, &reference.characters, n + 1),
                Some(n) => shared(&self.words, &reference.words, n + 1),
            };
        }
        counts
    }
}

/// N-grams of the hypothesis (0 if the reference has none), of the reference, and of both.
fn shared<T: Hash + Eq>(hypothesis: &[T], reference: &[T], n: usize) -> [u64; 3] {
    let mut left: HashMap<&[T], u64> = HashMap::new();
    for gram in reference.windows(n) {
        *left.entry(gram).or_default() += 1;
    }
    let grams = |items: &[T]| (items.len() + 1).saturating_sub(n) as u64;
    let in_hypothesis = if left.is_empty() { 0 } else { grams(hypothesis) };
    let mut both = 0;
    for gram in hypothesis.windows(n) {
        if let Some(count) = left.get_mut(gram).filter(|count| **count > 0) {
            *count -= 1;
            both += 1;
        }
    }
    [in_hypothesis, grams(reference), both]
}

/// Words, with a punctuation mark at the end or else at the beginning as a word of its own, as chrF++ does.
fn separate_punctuation(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    for word in text.split(is_python_space).filter(|word| !word.is_empty()) {
        let (first, last) = (word.chars().next(), word.chars().next_back());
        let mark = |c: Option<char>| c.filter(char::is_ascii_punctuation).map(char::len_utf8);
        let parts = match (word.chars().nth(1), mark(last), mark(first)) {
            (Some(_), Some(length), _) => word.split_at(word.len() - length),
            (Some(_), None, Some(length)) => word.split_at(length),
            _ => (word, ""),
        };
        words.extend([parts.0, parts.1].into_iter().filter(|part| !part.is_empty()).map(str::to_owned));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        // Characters: 2 of 3 match in order 1; "ab" of "ab", "bx" in order 2; none in order 3.
        let score = Chrf::default().sentence("ab x", &"abc");
        let mean = (2.0 / 3.0 + 0.5 + 0.0) / 3.0;
        assert!((score - 100.0 * mean).abs() < 1e-9, "{score}");
        assert_eq!(Chrf::default().sentence("AB", &"ab"), 0.0);
        assert_eq!(Chrf { lowercase: true, words: true }.sentence("AB c", &"ab c"), 100.0);
        for (h, r) in [("", "a"), ("a", ""), ("", ""), (" ", "\u{a0}")] {
            assert_eq!(Chrf::default().sentence(h, &r), 0.0);
        }
        assert_eq!(Chrf::default().sentence("ab", &vec!["xy", "ab"]), 100.0);
    }

    #[test]
    fn punctuation_is_separated_from_one_end_of_a_word() {
        assert_eq!(separate_punctuation("(hi) .x, . a-b “q”"), ["(hi", ")", ".x", ",", ".", "a-b", "“q”"]);
    }

    #[test]
    fn signatures() {
        let signature = Chrf { words: true, ..Chrf::default() }.signature(&["a"]);
        assert!(
            signature.starts_with("nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no|version:elf-eval-"),
            "{signature}"
        );
    }
}
