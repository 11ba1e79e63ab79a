//! Tokens of a text that are given, drawn anew for each row of each epoch.

use crate::coins::Coins;
use crate::collate::Batch;
use crate::error::{Error, Result};

/// Mean number of tokens of a hidden span.
const MEAN_SPAN: f64 = 3.0;

/// Shares of the rows of which some tokens are given, by where these lie. The texts of all other rows are written as wholes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GivenShares {
    /// Rows whose first tokens are given, any number of them.
    pub prefix: f64,
    /// Rows whose last tokens are given, any number of them.
    pub suffix: f64,
    /// Rows in which spans of geometrically distributed lengths, three tokens on average, are hidden, any number of tokens in all.
    pub spans: f64,
    /// Rows in which each token is given by itself, with a probability drawn for the row.
    pub words: f64,
}

impl GivenShares {
    /// Whether no row has given tokens.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Checks the shares.
    ///
    /// # Errors
    /// If one is no share, or they are more than the whole; the message names it.
    pub fn check(&self) -> Result<()> {
        let all = [("prefix", self.prefix), ("suffix", self.suffix), ("spans", self.spans), ("words", self.words)];
        if let Some((name, share)) = all.iter().find(|(_, share)| !(0.0..=1.0).contains(share)) {
            return Err(Error::Config(format!("given_{name}_prob {share} is out of range: choose 0 to 1")));
        }
        let sum: f64 = all.iter().map(|(_, share)| share).sum();
        match sum <= 1.0 + 1e-9 {
            true => Ok(()),
            false => Err(Error::Config(format!(
                "given_prefix_prob, given_suffix_prob, given_spans_prob and given_words_prob are {sum} together: they may be 1 at most"
            ))),
        }
    }

    /// Which of `length` tokens are given, `[length]`, for the row at `position` of the global order of `epoch`. At least one is not.
    /// The result depends on the arguments alone.
    pub fn draw(&self, length: usize, seed: u64, epoch: u64, position: u64) -> Vec<bool> {
        let mut coins = Coins::new(b"elf given tokens", &[seed, epoch, position]);
        if length < 2 {
            return vec![false; length];
        }
        let kind = coins.uniform();
        let count = 1 + coins.below(length - 1);
        let upto = [self.prefix, self.prefix + self.suffix, self.prefix + self.suffix + self.spans];
        if kind < upto[0] {
            (0..length).map(|place| place < count).collect()
        } else if kind < upto[1] {
            (0..length).map(|place| place >= length - count).collect()
        } else if kind < upto[2] {
            spans(length, count, &mut coins)
        } else if kind < upto[2] + self.words {
            let share = coins.uniform();
            let mut given: Vec<bool> = (0..length).map(|_| coins.uniform() < share).collect();
            if given.iter().all(|&given| given) {
                given[coins.below(length)] = false;
            }
            given
        } else {
            vec![false; length]
        }
    }

    /// Draws which tokens of a batch's texts are given, for rows at these positions of the global order of `epoch`.
    pub fn give(&self, batch: &mut Batch, seed: u64, epoch: u64, positions: impl Iterator<Item = u64>) {
        if self.is_none() {
            return;
        }
        let mut given = vec![false; batch.rows * batch.seq_len];
        for (row, position) in positions.enumerate() {
            let (from, length) = (batch.cond_len[row], batch.valid_len[row] - batch.cond_len[row]);
            let at = row * batch.seq_len + from;
            given[at..at + length].copy_from_slice(&self.draw(length, seed, epoch, position));
        }
        batch.given = given;
    }
}

/// All tokens given but `hidden` ones in spans.
fn spans(length: usize, hidden: usize, coins: &mut Coins) -> Vec<bool> {
    let mut given = vec![true; length];
    let mut left = hidden;
    while left > 0 {
        let shown: Vec<usize> = (0..length).filter(|&place| given[place]).collect();
        let from = shown[coins.below(shown.len())];
        // Geometric from 1, by inversion.
        let span = 1 + ((1.0 - coins.uniform()).ln() / (1.0 - MEAN_SPAN.recip()).ln()) as usize;
        for given in &mut given[from..length.min(from + span.min(left))] {
            left -= usize::from(std::mem::replace(given, false));
        }
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: GivenShares = GivenShares { prefix: 0.2, suffix: 0.2, spans: 0.3, words: 0.2 };

    #[test]
    fn shares_are_shares_of_a_whole() {
        ALL.check().unwrap();
        let refused = |shares: GivenShares| shares.check().unwrap_err().to_string();
        assert!(refused(GivenShares { spans: -0.1, ..ALL }).contains("given_spans_prob -0.1"));
        assert!(refused(GivenShares { words: f64::NAN, ..ALL }).contains("given_words_prob"));
        assert!(refused(GivenShares { words: 0.5, ..ALL }).contains("together"));
    }

    #[test]
    fn rows_are_given_as_often_as_asked_for() {
        let rows = 20_000;
        let (mut whole, mut first, mut last, mut hidden) = (0, 0, 0, 0);
        for position in 0..rows {
            let given = ALL.draw(12, 3, 1, position);
            whole += usize::from(given.iter().all(|&given| !given));
            let changes = given.windows(2).filter(|pair| pair[0] != pair[1]).count();
            first += usize::from(given[0] && changes == 1);
            last += usize::from(given[11] && changes == 1);
            hidden += given.iter().filter(|&&given| !given).count();
        }
        let share = |count: usize| count as f64 / rows as f64;
        // Rows of single words are all hidden at times, and spans at either end look like a prefix or suffix.
        assert!((0.1..0.13).contains(&share(whole)), "{}", share(whole));
        for ends in [first, last] {
            assert!((0.2..0.3).contains(&share(ends)), "{}", share(ends));
        }
        // Half of the tokens of all kinds but the tenth of whole rows.
        assert!((share(hidden) / 12.0 - 0.55).abs() < 0.01, "{}", share(hidden) / 12.0);
    }

    proptest! {
        #[test]
        fn something_is_always_hidden(length in 0usize..40, seed in 0u64..9, epoch in 0u64..9, position in 0u64..999) {
            let shares = [
                ALL,
                GivenShares { spans: 1.0, ..GivenShares::default() },
                GivenShares { words: 1.0, ..GivenShares::default() },
            ];
            for shares in shares {
                let given = shares.draw(length, seed, epoch, position);
                prop_assert_eq!(given.len(), length);
                prop_assert!(length == 0 || given.contains(&false));
                prop_assert_eq!(given, shares.draw(length, seed, epoch, position));
            }
            let spans = GivenShares { spans: 1.0, ..GivenShares::default() };
            prop_assert!(length < 2 || spans.draw(length, seed, epoch, position).contains(&true));
            prop_assert!(GivenShares::default().draw(length, seed, epoch, position).iter().all(|given| !given));
        }
    }
}
