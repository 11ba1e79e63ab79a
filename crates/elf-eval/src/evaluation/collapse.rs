//! Collapse: low perplexity that is not quality.

use serde::{Deserialize, Serialize};

use super::number;
use crate::perplexity::GenerativePerplexity;
use crate::{Error, Result};

/// Largest difference by which the entropy of samples may be below that of the data, as a share of the latter.
pub const ENTROPY_MARGIN: f64 = 0.05;

/// Whether samples collapsed: their entropy is more than 5% under that of the data.
///
/// Text that repeats itself, or uses few words, is easy to predict. A low perplexity at an entropy below the data's is
/// therefore not comparable with one at the data's entropy (the frontiers of arXiv 2605.10938 compare at equal entropy).
/// The verdict needs no threshold on perplexity itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Collapse {
    /// The verdict.
    pub collapsed: bool,
    /// Entropy of the samples, in nats.
    pub entropy: f64,
    /// Entropy of the data, in nats, from the same tokeniser and measured in the same way.
    pub data_entropy: f64,
    /// The texts that represent the data: "references" or "training texts".
    pub data: String,
    /// The margin: [`ENTROPY_MARGIN`].
    pub margin: f64,
    /// The verdict in words.
    pub sentence: String,
}

impl Collapse {
    /// Judges samples of an entropy and a perplexity against data of an entropy.
    ///
    /// # Errors
    /// If a number is not finite or negative.
    pub fn judge(entropy: f64, perplexity: f64, data_entropy: f64, data: &str) -> Result<Self> {
        for (name, value) in [
            ("the entropy of the samples", entropy),
            ("the perplexity of the samples", perplexity),
            ("the entropy of the data", data_entropy),
        ] {
            if !value.is_finite() || value < 0.0 {
                return Err(Error::Setting { name, value: value.to_string(), expected: "a number of at least 0" });
            }
        }
        let collapsed = entropy < (1.0 - ENTROPY_MARGIN) * data_entropy;
        let percent = if data_entropy > 0.0 { 100.0 * (entropy / data_entropy - 1.0) } else { 0.0 };
        let side = if percent < 0.0 { "under" } else { "over" };
        let standing =
            format!("entropy {entropy:.3} nats, {:.1}% {side} the {data_entropy:.3} of the {data}", percent.abs());
        let sentence = match collapsed {
            true => format!(
                "Collapsed: {standing}. Gen. PPL {} at less entropy than the data has counts as no win.",
                number(perplexity)
            ),
            false => format!("Not collapsed: {standing}."),
        };
        Ok(Self { collapsed, entropy, data_entropy, data: data.to_owned(), margin: ENTROPY_MARGIN, sentence })
    }
}

/// A warning for samples without data to compare with: low perplexity together with low entropy.
///
/// Text that repeats itself is easy to predict: a collapsed model has a low perplexity *and* a low
/// entropy. Entropy grows with length, being at most the log of the number of tokens, so its
/// threshold is a share of that maximum. Web text of 1,024 tokens has an entropy of some 5.4 nats,
/// 0.78 of ln 1024; the paper's samples (arXiv 2605.10938) have some 5.15 nats, 0.74.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CollapseWarning {
    /// Perplexities below this are checked (default 40: good samples of full length reach it).
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
    /// The warning, if both numbers are low. Samples of fewer than two tokens on average are not judged.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::perplexity::{ScoredWindow, TokenScores};

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
    fn collapse_is_more_than_five_percent_under_the_data() {
        for (entropy, collapsed, words) in [
            (4.0, false, "0.0% over the 4.000 of the references"),
            (3.84, false, "4.0% under"),
            (3.76, true, "6.0% under"),
            (4.4, false, "10.0% over"),
            (0.0, true, "100.0% under"),
        ] {
            let verdict = Collapse::judge(entropy, 12.5, 4.0, "references").unwrap();
            assert_eq!(verdict.collapsed, collapsed, "{entropy}");
            assert!(verdict.sentence.contains(words), "{}", verdict.sentence);
            assert_eq!(verdict.sentence.contains("no win"), collapsed);
        }
        assert!(!Collapse::judge(0.0, 1.0, 0.0, "references").unwrap().collapsed);
        for broken in [f64::NAN, f64::INFINITY, -1.0] {
            assert!(Collapse::judge(broken, 1.0, 4.0, "references").is_err());
            assert!(Collapse::judge(1.0, 1.0, broken, "references").is_err());
        }
    }
}
