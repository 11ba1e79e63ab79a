//! Diversity of a set of samples, over tokens of any type.

use std::collections::HashSet;
use std::hash::Hash;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The words of a text, separated by white space and otherwise unchanged.
pub fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

/// Distinct-n: the number of different n-grams over the number of n-grams, in all samples taken
/// together (Li et al., 2016), 0 to 1. It falls with the amount of text, so compare sets of the
/// same size only. None if no sample has n tokens, or n is 0.
///
/// ```
/// let samples = [vec!["a", "b", "a"], vec!["a", "b"]];
/// assert_eq!(elf_eval::diversity::distinct(&samples, 2), Some(2.0 / 3.0));
/// ```
pub fn distinct<T: Eq + Hash, S: AsRef<[T]>>(samples: &[S], n: usize) -> Option<f64> {
    if n == 0 {
        return None;
    }
    let mut different: HashSet<&[T]> = HashSet::new();
    let mut total = 0usize;
    for gram in samples.iter().flat_map(|s| s.as_ref().windows(n)) {
        total += 1;
        different.insert(gram);
    }
    (total > 0).then(|| different.len() as f64 / total as f64)
}

/// Whether some n-gram occurs twice in a sample (overlaps included). False for n = 0.
pub fn repeats<T: Eq + Hash>(sample: &[T], n: usize) -> bool {
    if n == 0 {
        return false;
    }
    let mut seen = HashSet::new();
    sample.windows(n).any(|gram| !seen.insert(gram))
}

/// Share of samples in which some n-gram occurs twice, 0 to 1. None without samples.
pub fn repetition<T: Eq + Hash, S: AsRef<[T]>>(samples: &[S], n: usize) -> Option<f64> {
    let repeating = samples.iter().filter(|s| repeats(s.as_ref(), n)).count();
    (!samples.is_empty()).then(|| repeating as f64 / samples.len() as f64)
}

/// Lengths of samples in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Lengths {
    /// Shortest.
    pub min: usize,
    /// Half of the samples are no longer than this (mean of the middle two if even).
    pub median: f64,
    /// Mean.
    pub mean: f64,
    /// Longest.
    pub max: usize,
    /// Number of samples without any token.
    pub empty: usize,
}

impl Lengths {
    /// Lengths of the samples. None without samples.
    pub fn of<T, S: AsRef<[T]>>(samples: &[S]) -> Option<Self> {
        let mut lengths: Vec<usize> = samples.iter().map(|s| s.as_ref().len()).collect();
        lengths.sort_unstable();
        let (min, max) = (*lengths.first()?, *lengths.last()?);
        let n = lengths.len();
        Some(Self {
            min,
            median: (lengths[(n - 1) / 2] as f64 + lengths[n / 2] as f64) / 2.0,
            mean: lengths.iter().map(|l| *l as f64).sum::<f64>() / n as f64,
            max,
            empty: lengths.iter().filter(|l| **l == 0).count(),
        })
    }
}

/// The figures of this module for one set of samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Diversity {
    /// [`distinct`] for n = 1 to 4.
    pub distinct: [Option<f64>; 4],
    /// [`repetition`] for n = 5.
    pub repeated_5gram: f64,
    /// Lengths in tokens.
    pub lengths: Lengths,
}

impl Diversity {
    /// All figures at once.
    ///
    /// # Errors
    /// If there are no samples.
    pub fn of<T: Eq + Hash, S: AsRef<[T]>>(samples: &[S]) -> Result<Self> {
        let (Some(repeated_5gram), Some(lengths)) = (repetition(samples, 5), Lengths::of(samples)) else {
            return Err(Error::Nothing { what: "samples" });
        };
        let distinct = [1, 2, 3, 4].map(|n| distinct(samples, n));
        Ok(Self { distinct, repeated_5gram, lengths })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distinct_by_hand() {
        let samples = [words("to be or not to be"), words("be")];
        assert_eq!(distinct(&samples, 1), Some(4.0 / 7.0));
        assert_eq!(distinct(&samples, 2), Some(4.0 / 5.0)); // "to be" twice
        assert_eq!(distinct(&samples, 6), Some(1.0));
        assert_eq!(distinct(&samples, 7), None);
        assert_eq!(distinct(&samples, 0), None);
    }

    #[test]
    fn repetition_by_hand() {
        let loops = words("a b c d e a b c d e");
        let steady = words("x x x x x x"); // overlapping five-grams
        let plain = words("a b c d e f g");
        assert!(repeats(&loops, 5) && repeats(&steady, 5) && !repeats(&plain, 5));
        assert_eq!(repetition(&[loops, steady, plain, vec![]], 5), Some(0.5));
        assert_eq!(repetition::<u32, Vec<u32>>(&[], 5), None);
    }

    #[test]
    fn lengths_by_hand() {
        let samples = [vec![0u32; 4], vec![], vec![0; 1], vec![0; 10]];
        let lengths = Lengths::of(&samples).unwrap();
        assert_eq!(lengths, Lengths { min: 0, median: 2.5, mean: 3.75, max: 10, empty: 1 });
        assert_eq!(Lengths::of::<u32, Vec<u32>>(&[]), None);
    }

    #[test]
    fn all_at_once() {
        let all = Diversity::of(&[words("a b c"), words("a b d")]).unwrap();
        assert_eq!(all.distinct, [Some(4.0 / 6.0), Some(3.0 / 4.0), Some(1.0), None]);
        assert_eq!(all.repeated_5gram, 0.0);
        assert!(Diversity::of::<u32, Vec<u32>>(&[]).is_err());
    }
}
