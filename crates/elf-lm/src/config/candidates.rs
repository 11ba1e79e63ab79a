//! Several candidates for each text, of which one is kept.

use elf_eval::minimum_risk::least_risk;

use crate::Result;
use crate::error::fail;

/// Maximum number of candidates per text, so that a mistyped number does not exhaust memory.
const MAX_CANDIDATES: usize = 1000;

/// The number of candidates generated for each text, and the rule that chooses among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidates {
    count: usize,
    rule: Rule,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// The candidate decoded with the highest confidence.
    HighestConfidence,
    /// The candidate of minimum Bayes risk, by BLEU among the candidates.
    LeastRisk,
}

impl Default for Candidates {
    fn default() -> Self {
        Self::ONE
    }
}

impl Candidates {
    /// A single candidate per text.
    pub const ONE: Self = Self { count: 1, rule: Rule::HighestConfidence };

    /// The candidates that the settings `best_of` and `mbr` ask for.
    ///
    /// # Errors
    /// If one of them is 0 or above the maximum, or both are above 1.
    pub fn new(best_of: usize, mbr: usize) -> Result<Self> {
        for (name, count) in [("best_of", best_of), ("mbr", mbr)] {
            if !(1..=MAX_CANDIDATES).contains(&count) {
                fail!(setting(name), "{name} is {count}: it must be from 1 to {MAX_CANDIDATES}");
            }
        }
        match (best_of, mbr) {
            (count, 1) => Ok(Self { count, rule: Rule::HighestConfidence }),
            (1, count) => Ok(Self { count, rule: Rule::LeastRisk }),
            _ => fail!(
                setting("mbr"),
                "best_of {best_of} and mbr {mbr} both choose among candidates: set one of them to 1"
            ),
        }
    }

    /// The number of candidates for each text.
    pub fn count(self) -> usize {
        self.count
    }

    /// The name of the setting with their number.
    pub fn setting(self) -> &'static str {
        match self.rule {
            Rule::HighestConfidence => "best_of",
            Rule::LeastRisk => "mbr",
        }
    }

    /// The index of the candidate to keep, the first in case of a tie. Each candidate is a text and its decoding confidence.
    pub fn choose(self, all: &[(&str, Option<f64>)]) -> usize {
        match self.rule {
            Rule::LeastRisk => least_risk(&all.iter().map(|(text, _)| *text).collect::<Vec<_>>()).unwrap_or(0),
            Rule::HighestConfidence => {
                (1..all.len()).fold(0, |best, next| if all[next].1 > all[best].1 { next } else { best })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_keeps_its_own_candidate() {
        let surest = |all: &[(&str, Option<f64>)]| Candidates::new(all.len(), 1).unwrap().choose(all);
        let least_risk = |all: &[(&str, Option<f64>)]| Candidates::new(1, all.len()).unwrap().choose(all);
        let apart = [("x y", Some(-0.1)), ("a b c e", Some(-0.3)), ("a b c d", Some(-0.2))];
        assert_eq!((surest(&apart), least_risk(&apart)), (0, 1));
        let equal = [("k l", Some(-0.5)), ("k l m", Some(-0.5)), ("k l", None)];
        assert_eq!((surest(&equal), least_risk(&equal)), (0, 0));
    }

    #[test]
    fn counts_that_nobody_wants_are_named() {
        for (best_of, mbr, setting) in [(0, 1, "best_of"), (1, 0, "mbr"), (1, 1001, "mbr"), (2, 2, "both choose")] {
            let message = Candidates::new(best_of, mbr).unwrap_err().to_string();
            assert!(message.contains(setting), "{message}");
        }
    }
}
