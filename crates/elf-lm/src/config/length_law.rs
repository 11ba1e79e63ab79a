//! The distribution of text lengths: that of the training rows.

use crate::Result;
use crate::error::fail;
use elf_core::{Noise, Seeded};
use serde::{Deserialize, Serialize};
use tch::Device;

/// A distribution of row lengths, in tokens including EOS: the number of training rows of each length.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LengthLaw {
    /// `counts[i]` is the number of rows of length `i`.
    counts: Vec<u64>,
}

impl LengthLaw {
    /// The distribution of these lengths. Rows without a token are left out: there is nothing in them to generate.
    ///
    /// # Errors
    /// If no row has a token.
    pub fn of(lengths: &[u32]) -> Result<Self> {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        if longest == 0 {
            fail!(setting("data_path"), "all rows of the training data are empty: there are no lengths to draw from");
        }
        let mut counts = vec![0; longest as usize + 1];
        lengths.iter().filter(|&&length| length > 0).for_each(|&length| counts[length as usize] += 1);
        Ok(Self { counts })
    }

    /// The length of the text of `seed`, by inverse transform of one uniform number.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn draw(&self, seed: u64) -> Result<usize> {
        let mut noise = Seeded::new(vec![seed], Device::Cpu);
        let share = noise.coins("length", 1)?.first().copied().unwrap_or_default();
        let total: u64 = self.counts.iter().sum();
        let mut before = 0;
        for (length, count) in self.counts.iter().enumerate() {
            before += count;
            if (before as f64) > share * total as f64 {
                return Ok(length);
            }
        }
        Ok(self.counts.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_drawn_as_often_as_they_are_in_the_data() {
        let law = LengthLaw::of(&[3, 5, 5, 0, 5, 9, 3, 5, 3]).unwrap();
        let mut drawn = [0usize; 10];
        for seed in 0..4000 {
            drawn[law.draw(seed).unwrap()] += 1;
        }
        for (length, expected) in [(3, 3.0 / 8.0), (5, 0.5), (9, 1.0 / 8.0)] {
            let found = drawn[length] as f64 / 4000.0;
            // Four standard errors of a share of 4,000 draws.
            assert!((found - expected).abs() < 0.032, "length {length}: {found}, expected {expected}");
        }
        assert_eq!(drawn.iter().sum::<usize>(), drawn[3] + drawn[5] + drawn[9]);
        assert_eq!(law.draw(7).unwrap(), law.draw(7).unwrap());
        assert!(LengthLaw::of(&[0, 0]).is_err() && LengthLaw::of(&[]).is_err());
    }
}
