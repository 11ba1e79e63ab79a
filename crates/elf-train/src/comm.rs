//! Communication between the processes of a run, for data parallelism.

mod c10d;
mod gradient_buckets;
mod lifeline;
mod packing;

use tch::Tensor;

pub use c10d::{C10d, Meeting, MeetingPoint};
pub use packing::PACK_BYTES;

use crate::{Error, Result};

/// The processes (ranks) of a run. Every rank makes the same calls in the same order.
///
/// Training makes these calls for any number of ranks; with one process a sum has one summand.
pub trait Comm {
    /// This process's number, from 0.
    fn rank(&self) -> u64;

    /// The number of processes.
    fn world(&self) -> u64;

    /// Replaces each tensor, in place, by its sum over all ranks. Shapes are equal on all ranks.
    ///
    /// # Errors
    /// If a rank has failed.
    fn sum_tensors(&self, tensors: &mut [Tensor]) -> Result<()>;

    /// Replaces each number on the host by its sum over all ranks.
    ///
    /// # Errors
    /// If a rank has failed.
    fn sum_numbers(&self, numbers: &mut [f64]) -> Result<()>;

    /// Replaces each tensor, in place, by its value on the rank that owns it. Shapes and owners are equal on all ranks.
    ///
    /// # Errors
    /// If a rank has failed.
    fn share_tensors(&self, tensors: &[Tensor], owners: &[u64]) -> Result<()>;

    /// Every rank's bytes, in order of ranks.
    ///
    /// # Errors
    /// If a rank has failed.
    fn gather_bytes(&self, own: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Checks that all ranks hold the same bits in `tensors`; `what` names the tensors in the message.
    ///
    /// # Errors
    /// As [`Comm::agree`].
    fn agree_on_tensors(&self, what: &str, tensors: &[Tensor]) -> Result<()>;

    /// Makes an object that sums the gradients of `leaves` over the ranks in every step.
    ///
    /// # Errors
    /// If libtorch fails.
    fn gradient_sum(&self, leaves: Vec<Tensor>) -> Result<Box<dyn GradientSum>>;

    /// Tells the other ranks why this one stops, for their error messages. Ignores failures, since it is a rank's last
    /// call.
    fn stopping_for(&self, reason: &str);

    /// Checks that all ranks have the same `facts`, which are pairs of name and value.
    ///
    /// # Errors
    /// [`Error::Disagreement`], the same on every rank, with the name, the ranks and the values; or if a rank has
    /// failed.
    fn agree(&self, facts: &[(&str, String)]) -> Result<()> {
        let own = serde_json::to_vec(facts).map_err(|e| Error::Comm(e.to_string()))?;
        let all = self.gather_bytes(&own)?;
        let read = |bytes: &Vec<u8>| serde_json::from_slice::<Vec<(String, String)>>(bytes).unwrap_or_default();
        let all: Vec<_> = all.iter().map(read).collect();
        let Some((first, others)) = all.split_first() else { return Ok(()) };
        for (other, facts) in (1..).zip(others) {
            if let Some((what, one, another)) = difference(first, facts) {
                return Err(Error::Disagreement { what, rank: other, first: one, other: another });
            }
        }
        Ok(())
    }
}

/// The first fact that differs between two lists: its name and both values.
fn difference(a: &[(String, String)], b: &[(String, String)]) -> Option<(String, String, String)> {
    let value = |facts: &[(String, String)], name: &str| {
        facts.iter().find(|(n, _)| n == name).map_or_else(|| "nothing".to_owned(), |(_, v)| v.clone())
    };
    let names = a.iter().chain(b).map(|(name, _)| name);
    names.map(|name| (name.clone(), value(a, name), value(b, name))).find(|(_, one, another)| one != another)
}

/// Sums gradients over ranks while the backward pass still runs.
pub trait GradientSum {
    /// Announces that the next backward pass is the last one before the update, so that complete gradients may be sent.
    fn begin(&self);

    /// Waits until every gradient has been summed over all ranks.
    ///
    /// # Errors
    /// If a rank has failed.
    fn finish(&self) -> Result<()>;
}

/// A single process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Solo;

impl Comm for Solo {
    fn rank(&self) -> u64 {
        0
    }

    fn world(&self) -> u64 {
        1
    }

    fn sum_tensors(&self, _: &mut [Tensor]) -> Result<()> {
        Ok(())
    }

    fn sum_numbers(&self, _: &mut [f64]) -> Result<()> {
        Ok(())
    }

    fn share_tensors(&self, _: &[Tensor], _: &[u64]) -> Result<()> {
        Ok(())
    }

    fn gather_bytes(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![own.to_vec()])
    }

    fn agree_on_tensors(&self, _: &str, _: &[Tensor]) -> Result<()> {
        Ok(())
    }

    fn gradient_sum(&self, _: Vec<Tensor>) -> Result<Box<dyn GradientSum>> {
        Ok(Box::new(Self))
    }

    fn stopping_for(&self, _: &str) {}
}

impl GradientSum for Solo {
    fn begin(&self) {}

    fn finish(&self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ranks simulated by their lists of facts.
    struct FactsOfRanks(Vec<Vec<(String, String)>>);

    impl Comm for FactsOfRanks {
        fn rank(&self) -> u64 {
            0
        }
        fn world(&self) -> u64 {
            self.0.len() as u64
        }
        fn sum_tensors(&self, _: &mut [Tensor]) -> Result<()> {
            Ok(())
        }
        fn sum_numbers(&self, _: &mut [f64]) -> Result<()> {
            Ok(())
        }
        fn share_tensors(&self, _: &[Tensor], _: &[u64]) -> Result<()> {
            Ok(())
        }
        fn gather_bytes(&self, _: &[u8]) -> Result<Vec<Vec<u8>>> {
            Ok(self.0.iter().map(|facts| serde_json::to_vec(facts).unwrap()).collect())
        }
        fn agree_on_tensors(&self, _: &str, _: &[Tensor]) -> Result<()> {
            Ok(())
        }
        fn gradient_sum(&self, _: Vec<Tensor>) -> Result<Box<dyn GradientSum>> {
            Ok(Box::new(Solo))
        }
        fn stopping_for(&self, _: &str) {}
    }

    fn facts(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect()
    }

    #[test]
    fn a_disagreement_names_the_fact_the_rank_and_both_values() {
        let same = facts(&[("version", "1"), ("lr", "0.1")]);
        FactsOfRanks(vec![same.clone(), same.clone(), same.clone()]).agree(&[]).unwrap();
        let other = facts(&[("version", "1"), ("lr", "0.2")]);
        let error = FactsOfRanks(vec![same.clone(), same.clone(), other]).agree(&[]).unwrap_err().to_string();
        assert!(error.contains("lr") && error.contains("rank 2") && error.contains("0.1") && error.contains("0.2"));
        let less = facts(&[("version", "1")]);
        let error = FactsOfRanks(vec![same, less]).agree(&[]).unwrap_err().to_string();
        assert!(error.contains("rank 1") && error.contains("nothing"), "{error}");
    }
}
