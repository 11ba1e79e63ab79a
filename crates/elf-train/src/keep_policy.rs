//! The policy for keeping checkpoints, decided from their steps alone.

use serde::{Deserialize, Serialize};

/// Which of a run's checkpoints are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeepPolicy {
    /// The number of newest checkpoints that are kept, at least 1. `None` keeps all.
    pub last: Option<u64>,
    /// Checkpoints whose step is a multiple of this are always kept; `None` or 0 for no such rule.
    pub every: Option<u64>,
    /// The step of one more checkpoint that is kept, such as the best so far.
    #[serde(default)]
    pub pinned: Option<u64>,
}

impl Default for KeepPolicy {
    /// The newest two: the older one is a reserve in case the newer one is damaged.
    fn default() -> Self {
        Self { last: Some(2), every: None, pinned: None }
    }
}

impl KeepPolicy {
    /// The steps among `present` whose checkpoints may be removed, ascending.
    pub fn removable(&self, present: &[u64]) -> Vec<u64> {
        let Some(last) = self.last else { return Vec::new() };
        let mut steps = present.to_vec();
        steps.sort_unstable();
        steps.dedup();
        let newest = usize::try_from(last.max(1)).unwrap_or(usize::MAX);
        steps.truncate(steps.len().saturating_sub(newest));
        steps.retain(|step| !self.every.is_some_and(|n| n > 0 && step % n == 0) && self.pinned != Some(*step));
        steps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_newest_and_the_milestones_stay() {
        let policy = KeepPolicy { last: Some(2), every: Some(100), pinned: None };
        assert_eq!(policy.removable(&[250, 50, 100, 150, 200]), [50, 150]);
        assert_eq!(KeepPolicy { pinned: Some(50), ..policy }.removable(&[250, 50, 100, 150, 200]), [150]);
        assert!(KeepPolicy { last: None, every: None, pinned: None }.removable(&[1, 2, 3]).is_empty());
        assert_eq!(KeepPolicy { last: Some(0), every: None, pinned: None }.removable(&[1, 2, 3]), [1, 2]);
    }

    proptest! {
        #[test]
        fn what_goes_is_neither_new_nor_a_milestone(
            present in proptest::collection::vec(0u64..1000, 0..40), last in 0u64..5, every in proptest::option::of(0u64..50),
        ) {
            let policy = KeepPolicy { last: Some(last), every, pinned: None };
            let gone = policy.removable(&present);
            let distinct = present.iter().collect::<std::collections::BTreeSet<_>>();
            let newest: Vec<_> = distinct.iter().rev().take(last.max(1) as usize).collect();
            for step in &gone {
                prop_assert!(present.contains(step));
                prop_assert!(!newest.iter().any(|n| **n == step));
                prop_assert!(every.is_none_or(|n| n == 0 || step % n != 0));
            }
            let milestones = distinct.iter().filter(|s| every.is_some_and(|n| n > 0 && **s % n == 0)).count();
            prop_assert!(distinct.len() - gone.len() <= newest.len() + milestones, "nothing else stays");
        }
    }
}
