//! The distribution of text lengths: that of the training rows.

use crate::Result;
use crate::error::fail;
use elf_core::{Noise, Seeded};
use serde::{Deserialize, Serialize};
use tch::Device;

/// The file of a [`LengthLaw`] in an exported model's folder.
pub const LENGTHS: &str = "lengths.json";

/// Rows of about the same condition length that are enough to tell the length of an answer.
const ENOUGH_ROWS: u64 = 100;

/// Lengths that the candidates of a text may have, all inputs alike.
const LENGTHS_OF_CANDIDATES: usize = 5;

/// A distribution of text lengths, in tokens including EOS; for conditional tasks, given the length of the condition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LengthLaw(Counts);

/// Numbers of training rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Counts {
    /// `counts[i]` is the number of texts of length `i`.
    OfTexts(Vec<u64>),
    /// `counts[c][i]` is the number of texts of length `i` among those whose condition has `c` tokens.
    Given(Vec<Vec<u64>>),
}

impl LengthLaw {
    /// The distribution of the lengths of texts, given a pair of numbers for each row: the tokens of its condition, which count if
    /// `conditional`, and those of its text. Texts without a token are left out: there is nothing in them to generate.
    ///
    /// # Errors
    /// If no text has a token.
    pub fn of(lengths: &[[u32; 2]], conditional: bool) -> Result<Self> {
        let [longest_condition, longest] =
            [0, 1].map(|part| lengths.iter().map(|pair| pair[part] as usize).max().unwrap_or(0));
        if longest == 0 {
            fail!(setting("data_path"), "all rows of the training data are empty: there are no lengths to draw from");
        }
        let mut counts = vec![vec![0; longest + 1]; if conditional { longest_condition + 1 } else { 1 }];
        for &[condition, length] in lengths.iter().filter(|pair| pair[1] > 0) {
            counts[if conditional { condition as usize } else { 0 }][length as usize] += 1;
        }
        Ok(Self(if conditional { Counts::Given(counts) } else { Counts::OfTexts(counts.swap_remove(0)) }))
    }

    /// The distribution with a single length.
    pub fn only(length: usize) -> Self {
        let mut counts = vec![0; length + 1];
        counts[length] = 1;
        Self(Counts::OfTexts(counts))
    }

    /// The length of a text. Without a condition it is drawn from the seed. The answer to a condition of `condition` tokens has the
    /// median of the lengths that such answers have in the training data if it is the first `candidate`, number 0; further candidates
    /// have the lengths next to it, five in turn.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn length(&self, seed: u64, condition: usize, candidate: usize) -> Result<usize> {
        match &self.0 {
            Counts::OfTexts(counts) => {
                let mut noise = Seeded::new(vec![seed], Device::Cpu);
                Ok(quantile(counts, noise.coins("length", 1)?.first().copied().unwrap_or_default()))
            }
            Counts::Given(by_condition) => Ok(near_median(&about(by_condition, condition), candidate)),
        }
    }
}

impl LengthLaw {
    /// The length of an unconditional text of at least `least` tokens, drawn from the seed; `least` if there is no such text.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn length_from(&self, seed: u64, least: usize) -> Result<usize> {
        let mut counts = match &self.0 {
            Counts::OfTexts(counts) => counts.clone(),
            Counts::Given(by_condition) => about(by_condition, 0),
        };
        counts.iter_mut().take(least).for_each(|count| *count = 0);
        match counts.iter().all(|&count| count == 0) {
            true => Ok(least),
            false => Self(Counts::OfTexts(counts)).length(seed, 0, 0),
        }
    }
}

/// The length at a quantile in [0, 1): inverse transform.
fn quantile(counts: &[u64], share: f64) -> usize {
    let total: u64 = counts.iter().sum();
    let mut before = 0;
    let above = counts.iter().position(|count| {
        before += count;
        (before as f64) > share * total as f64
    });
    above.unwrap_or(counts.len() - 1)
}

/// Counts of the texts whose conditions have `condition` tokens, or, where these are few, about as many.
fn about(by_condition: &[Vec<u64>], condition: usize) -> Vec<u64> {
    let mut sums = vec![0; by_condition.iter().map(Vec::len).max().unwrap_or(0)];
    for radius in 0..by_condition.len().max(condition) {
        for (_, counts) in by_condition.iter().enumerate().filter(|(c, _)| c.abs_diff(condition) == radius) {
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        if sums.iter().sum::<u64>() >= ENOUGH_ROWS {
            break;
        }
    }
    sums
}

/// The lengths that occur, the median first, then those on either side of it in the order of their distance in rows; of these
/// that of `candidate`.
fn near_median(counts: &[u64], candidate: usize) -> usize {
    let total: u64 = counts.iter().sum();
    let mut before = 0;
    let mut lengths: Vec<(u64, usize)> = Vec::new();
    for (length, &count) in counts.iter().enumerate() {
        if count > 0 {
            // Twice the distance of the middle of these rows from the middle of all.
            lengths.push(((2 * before + count).abs_diff(total), length));
        }
        before += count;
    }
    lengths.sort_unstable();
    let choice = candidate % lengths.len().clamp(1, LENGTHS_OF_CANDIDATES);
    lengths.get(choice).map_or(1, |&(_, length)| length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_drawn_as_often_as_they_are_in_the_data() {
        let law = LengthLaw::of(&[3, 5, 5, 0, 5, 9, 3, 5, 3].map(|length| [4, length]), false).unwrap();
        let mut drawn = [0usize; 10];
        for seed in 0..4000 {
            drawn[law.length(seed, 0, 0).unwrap()] += 1;
        }
        for (length, expected) in [(3, 3.0 / 8.0), (5, 0.5), (9, 1.0 / 8.0)] {
            let found = drawn[length] as f64 / 4000.0;
            // Four standard errors of a share of 4,000 draws.
            assert!((found - expected).abs() < 0.032, "length {length}: {found}, expected {expected}");
        }
        assert_eq!(drawn.iter().sum::<usize>(), drawn[3] + drawn[5] + drawn[9]);
        assert_eq!(law.length(7, 0, 0).unwrap(), law.length(7, 3, 2).unwrap());
        assert!(LengthLaw::of(&[[1, 0], [1, 0]], false).is_err() && LengthLaw::of(&[], true).is_err());
        let from: std::collections::BTreeSet<_> = (0..50).map(|seed| law.length_from(seed, 4).unwrap()).collect();
        assert_eq!(from, [5, 9].into());
        assert_eq!(law.length_from(0, 10).unwrap(), 10);
        assert!((0..50).all(|seed| LengthLaw::only(6).length(seed, 3, 1).unwrap() == 6));
    }

    #[test]
    fn answers_have_the_lengths_of_those_to_conditions_of_the_same_length() {
        // Of 120 conditions of 8 tokens, and of 120 of 3; of one of 4.
        let of_eight = [(6, 10), (7, 40), (8, 45), (9, 15), (12, 9), (14, 1)];
        let mut rows = vec![[4, 2]];
        of_eight.iter().for_each(|&(length, count)| rows.extend(vec![[8, length]; count]));
        rows.extend(vec![[3, 4]; 120]);
        let law = LengthLaw::of(&rows, true).unwrap();
        let lengths = |law: &LengthLaw, condition| {
            (0..10).map(|candidate| law.length(1, condition, candidate).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(lengths(&law, 8), [8, 7, 9, 12, 6, 8, 7, 9, 12, 6]);
        assert_eq!(lengths(&law, 3), [4; 10]);
        // Rare ones are looked at together with their neighbours, and longer ones than any as the longest.
        assert_eq!(lengths(&law, 4)[..3], [4, 2, 4]);
        assert_eq!(lengths(&law, 100), lengths(&law, 8));
        let kept: LengthLaw = serde_json::from_str(&serde_json::to_string(&law).unwrap()).unwrap();
        assert_eq!(kept, law);
        assert_eq!(serde_json::from_str::<LengthLaw>("[0,0,1]").unwrap(), LengthLaw::only(2));
    }
}
