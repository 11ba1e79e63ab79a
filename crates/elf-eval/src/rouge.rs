//! ROUGE-1, ROUGE-2 and ROUGE-L, with the numbers of the `rouge_score` package with stemming.
//!
//! Texts are lower-cased and split at everything that is not `a-z` or `0-9`; words of more than
//! three letters are stemmed ([`crate::porter`]). Lin, "ROUGE: a package for automatic evaluation
//! of summaries", 2004.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::references::{self, References};
use crate::{Result, porter};

/// Precision, recall and their harmonic mean, each 0 to 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Overlap {
    /// Share of the prediction that is in the reference.
    pub precision: f64,
    /// Share of the reference that is in the prediction.
    pub recall: f64,
    /// Harmonic mean of both.
    pub f1: f64,
}

impl Overlap {
    fn new(shared: usize, in_prediction: usize, in_reference: usize) -> Self {
        let share = |of: usize| {
            if of == 0 { 0.0 } else { shared as f64 / of as f64 }
        };
        let (precision, recall) = (share(in_prediction), share(in_reference));
        let f1 = if precision + recall > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 };
        Self { precision, recall, f1 }
    }
}

/// The three ROUGE measures of one pair.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Rouge {
    /// Shared words.
    pub rouge1: Overlap,
    /// Shared pairs of neighbouring words.
    pub rouge2: Overlap,
    /// Longest common subsequence of words.
    pub rouge_l: Overlap,
}

/// F1 averaged over pairs, each 0 to 100, the form in which results are published.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct MeanRouge {
    /// Mean ROUGE-1 F1 x 100.
    pub rouge1: f64,
    /// Mean ROUGE-2 F1 x 100.
    pub rouge2: f64,
    /// Mean ROUGE-L F1 x 100.
    pub rouge_l: f64,
}

/// ROUGE of a prediction against one or several references: per measure, the overlap of the reference with the highest F1, as
/// `rouge_score`'s `score_multi` computes it. A text without any word scores 0.
pub fn score(prediction: &str, references: &impl References) -> Rouge {
    let scores: Vec<Rouge> = references.texts().into_iter().map(|reference| score_one(prediction, reference)).collect();
    let best = |of: fn(&Rouge) -> Overlap| {
        let better = |best: Overlap, next: Overlap| if next.f1 > best.f1 { next } else { best };
        scores.iter().map(of).reduce(better).unwrap_or_default()
    };
    Rouge { rouge1: best(|r| r.rouge1), rouge2: best(|r| r.rouge2), rouge_l: best(|r| r.rouge_l) }
}

fn score_one(prediction: &str, reference: &str) -> Rouge {
    let mut words = HashMap::new();
    let prediction = word_ids(prediction, &mut words);
    let reference = word_ids(reference, &mut words);
    Rouge {
        rouge1: shared_ngrams(&prediction, &reference, 1),
        rouge2: shared_ngrams(&prediction, &reference, 2),
        rouge_l: Overlap::new(longest_common_subsequence(&prediction, &reference), prediction.len(), reference.len()),
    }
}

/// ROUGE of every prediction, in order.
///
/// # Errors
/// If the lists differ in length or are empty, or a prediction has no reference.
pub fn score_pairs<P: AsRef<str> + Sync>(predictions: &[P], references: &[impl References]) -> Result<Vec<Rouge>> {
    references::of_each(predictions, references, score)
}

/// Mean F1 x 100 over pairs; zeros if there are none.
pub fn mean(pairs: &[Rouge]) -> MeanRouge {
    let mean = |f1: fn(&Rouge) -> f64| 100.0 * pairs.iter().map(f1).sum::<f64>() / pairs.len().max(1) as f64;
    MeanRouge { rouge1: mean(|r| r.rouge1.f1), rouge2: mean(|r| r.rouge2.f1), rouge_l: mean(|r| r.rouge_l.f1) }
}

/// The words that ROUGE compares.
///
/// ```
/// assert_eq!(elf_eval::rouge::tokenize("Was running; 2x"), ["was", "run", "2x"]);
/// ```
pub fn tokenize(text: &str) -> Vec<String> {
    words(&text.to_lowercase()).map(stem_if_long).collect()
}

fn words(lowercase: &str) -> impl Iterator<Item = &str> {
    lowercase.split(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit())).filter(|word| !word.is_empty())
}

fn stem_if_long(word: &str) -> String {
    if word.len() > 3 { porter::stem(word) } else { word.to_owned() }
}

fn word_ids(text: &str, ids: &mut HashMap<String, u32>) -> Vec<u32> {
    words(&text.to_lowercase())
        .map(stem_if_long)
        .filter(|word| !word.is_empty())
        .map(|word| {
            let next = ids.len() as u32;
            *ids.entry(word).or_insert(next)
        })
        .collect()
}

fn shared_ngrams(prediction: &[u32], reference: &[u32], n: usize) -> Overlap {
    let mut left: HashMap<&[u32], usize> = HashMap::with_capacity(reference.len());
    for gram in reference.windows(n) {
        *left.entry(gram).or_default() += 1;
    }
    let mut shared = 0;
    for gram in prediction.windows(n) {
        if let Some(count) = left.get_mut(gram)
            && *count > 0
        {
            *count -= 1;
            shared += 1;
        }
    }
    let grams = |ids: &[u32]| (ids.len() + 1).saturating_sub(n);
    Overlap::new(shared, grams(prediction), grams(reference))
}

/// Length of the longest common subsequence, by dynamic programming over one row.
fn longest_common_subsequence(a: &[u32], b: &[u32]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for x in a {
        let mut diagonal = 0; // row[j] of the row before
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if x == y { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    }

    #[test]
    fn by_hand() {
        let r = score("the cat was found under the bed", &"the cat was under the bed");
        close(r.rouge1.precision, 6.0 / 7.0);
        close(r.rouge1.recall, 1.0);
        close(r.rouge1.f1, 12.0 / 13.0);
        close(r.rouge2.precision, 4.0 / 6.0);
        close(r.rouge2.recall, 4.0 / 5.0);
        close(r.rouge_l.recall, 1.0);
        close(r.rouge_l.precision, 6.0 / 7.0);
    }

    #[test]
    fn order_counts_for_rouge_l_only() {
        let r = score("d c b a", &"a b c d");
        close(r.rouge1.f1, 1.0);
        close(r.rouge2.f1, 0.0);
        close(r.rouge_l.f1, 0.25);
    }

    #[test]
    fn a_word_counts_as_often_as_it_is_in_both() {
        close(score("a a a", &"a a b c").rouge1.precision, 2.0 / 3.0);
        close(score("a a a", &"a a b c").rouge1.recall, 0.5);
    }

    #[test]
    fn words_are_stemmed_and_what_is_not_ascii_separates() {
        assert_eq!(tokenize("Organizations' naïve 日本語 3.5"), ["organ", "na", "ve", "3", "5"]);
        close(score("Running fast", &"run fast").rouge1.f1, 1.0);
    }

    #[test]
    fn each_measure_takes_its_best_reference() {
        let r = score("a b c d", &vec!["d c b a", "a b x y z"]);
        assert_eq!((r.rouge1, r.rouge2), (score("a b c d", &"d c b a").rouge1, score("a b c d", &"a b x y z").rouge2));
    }

    #[test]
    fn texts_without_words_score_zero() {
        for (p, r) in [("", "a"), ("a", ""), ("…", "…")] {
            assert_eq!(score(p, &r), Rouge::default());
        }
        assert_eq!(mean(&[]), MeanRouge::default());
    }

    #[test]
    fn lists_that_do_not_fit_are_refused() {
        let none: [&str; 0] = [];
        assert!(score_pairs(&["a"], &none).is_err());
        assert!(score_pairs(&none, &none).is_err());
    }
}
