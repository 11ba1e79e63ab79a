//! When a low perplexity must not be taken for quality.

use serde::{Deserialize, Serialize};

use super::number;
use crate::perplexity::GenerativePerplexity;
use crate::{EvalError, Result};

/// How far under the data's the entropy of samples may lie, as a share of the data's.
pub const ENTROPY_MARGIN: f64 = 0.05;

/// Whether samples collapsed: their entropy is more than 5% under that of the data.
///
/// Text that repeats itself, or keeps to few words, is easy to predict. A perplexity reached at an
/// entropy under the data's is therefore no achievement, however low it is, and does not compete
/// with one reached at the data's entropy (the frontiers of arXiv 2605.10938 compare at equal
/// entropy). So the verdict needs no threshold on perplexity itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Collapse {
    /// The verdict.
    pub collapsed: bool,
    /// Entropy of the samples, in nats.
    pub entropy: f64,
    /// Entropy of the data, in nats, from the same tokeniser and measured in the same way.
    pub data_entropy: f64,
    /// What stood for the data: "references" or "training texts".
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
                return Err(EvalError::Setting { name, value: value.to_string(), expected: "a number of at least 0" });
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
