//! Sums of the named parts of a loss over micro-batches, steps and ranks.

use elf_flow::TimeBins;
use serde::{Deserialize, Serialize};

/// The mean of one part of a loss.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TermMean {
    /// The part's name: `l2`, `ce`, ...
    pub name: String,
    /// The mean over the positions that it counts.
    pub mean: f64,
    /// The number of those positions.
    pub count: f64,
}

/// Sums and counts of the parts of a loss by name, over micro-batches, steps or ranks, in the order of their first
/// appearance.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TermSums {
    /// Name, sum, count.
    sums: Vec<(String, f64, f64)>,
}

impl TermSums {
    /// Adds to the part of this name.
    pub fn add(&mut self, name: &str, sum: f64, count: f64) {
        match self.sums.iter_mut().find(|(known, ..)| known == name) {
            Some((_, s, c)) => (*s, *c) = (*s + sum, *c + count),
            None => self.sums.push((name.to_owned(), sum, count)),
        }
    }

    /// Adds the bins of time that have positions, from their sums and counts.
    pub(crate) fn add_bins(&mut self, bins: &TimeBins, sums: &[f64], counts: &[f64]) {
        for (bin, (&sum, &count)) in sums.iter().zip(counts).enumerate().filter(|(_, (_, count))| **count > 0.0) {
            self.add(&bins.label(bin), sum, count);
        }
    }

    /// Adds all parts of `other`.
    pub fn merge(&mut self, other: &Self) {
        other.sums.iter().for_each(|(name, sum, count)| self.add(name, *sum, *count));
    }

    /// Sorts the parts by name, so that their order does not depend on which came first.
    pub(crate) fn sort(&mut self) {
        self.sums.sort_by(|a, b| b.0.cmp(&a.0));
    }

    /// Each part's sum divided by its count; 0 for a part without positions.
    pub fn means(&self) -> Vec<TermMean> {
        let mean = |(name, sum, count): &(String, f64, f64)| TermMean {
            name: name.clone(),
            mean: sum / count.max(1.0),
            count: *count,
        };
        self.sums.iter().map(mean).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_added_by_name() {
        let mut sums = TermSums::default();
        sums.add("l2", 6.0, 2.0);
        sums.add("ce", 1.0, 4.0);
        let mut other = TermSums::default();
        other.add("ce", 3.0, 4.0);
        other.add("nll", 0.0, 0.0);
        sums.merge(&other);
        let means: Vec<_> = sums.means().into_iter().map(|t| (t.name, t.mean, t.count)).collect();
        assert_eq!(means, [("l2".into(), 3.0, 2.0), ("ce".into(), 0.5, 8.0), ("nll".into(), 0.0, 0.0)]);
    }
}
