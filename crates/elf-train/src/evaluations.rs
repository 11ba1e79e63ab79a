//! Stopping when held-out rows are no longer learned better, and keeping the checkpoint that did best on them.

use std::fs;
use std::path::PathBuf;

use elf_core::{Error as CoreError, tensorfile};
use serde::{Deserialize, Serialize};

use crate::{CheckpointFolder, Error, Result};

/// The figure of an evaluation that decides; less is better.
pub const JUDGED_BY: &str = "validation_loss";

/// The file among the checkpoints that remembers past evaluations.
const FILE: &str = "evaluations.json";

/// What is remembered.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// Optimiser steps and the figure, ascending.
    evaluations: Vec<(u64, f64)>,
    /// Whether the run ended, by this rule or by its length, behind its best checkpoint; it is not gone on with then.
    ended: bool,
}

/// The evaluations of a run so far. Its decisions follow from them alone, so that every rank and every resumption comes to the same.
#[derive(Debug)]
pub(crate) struct EarlyStopping {
    path: PathBuf,
    patience: usize,
    record: Record,
}

impl EarlyStopping {
    /// Takes up what is remembered of a run that has done so many steps; later evaluations, whose steps were lost, are forgotten.
    pub(crate) fn open(folder: &CheckpointFolder, patience: u64, steps_done: u64) -> Result<Self> {
        let path = folder.root().join(FILE);
        let mut record: Record = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| Error::Checkpoint {
                path: path.clone(),
                reason: format!("it is damaged ({e}); delete it, and the best evaluation is looked for anew"),
            })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Record::default(),
            Err(e) => return Err(CoreError::io("read", &path)(e).into()),
        };
        // Somebody who goes on from an earlier checkpoint by hand wants to go on.
        record.ended &= record.evaluations.last().is_some_and(|(step, _)| *step == steps_done);
        record.evaluations.retain(|(step, _)| *step <= steps_done);
        Ok(Self { path, patience: usize::try_from(patience).unwrap_or(usize::MAX), record })
    }

    /// The steps of the best evaluation; the earliest of equals.
    pub(crate) fn best(&self) -> Option<u64> {
        let better = |a: &(u64, f64), b: &(u64, f64)| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0));
        self.record.evaluations.iter().copied().min_by(better).map(|(step, _)| step)
    }

    /// Takes an evaluation down; says whether it is the best so far.
    pub(crate) fn note(&mut self, step: u64, value: f64) -> bool {
        self.record.evaluations.retain(|(known, _)| *known < step);
        self.record.evaluations.push((step, value));
        self.best() == Some(step)
    }

    /// Whether the last `patience` evaluations have all been no better than one before them, or the run had ended already.
    pub(crate) fn is_over(&self) -> bool {
        let behind = self.record.evaluations.iter().rev().take_while(|(step, _)| Some(*step) != self.best()).count();
        self.record.ended || (self.patience > 0 && behind >= self.patience)
    }

    /// The run ends here.
    pub(crate) fn end(&mut self) {
        let best = self.best();
        let last = self.record.evaluations.last().map(|(step, _)| *step);
        // From here on the best checkpoint is the newest.
        self.record.evaluations.retain(|(step, _)| best.is_none_or(|best| *step <= best));
        // A run that was best where it ended may be made longer.
        self.record.ended |= best != last;
    }

    /// Writes it down, aside and renamed.
    pub(crate) fn save(&self) -> Result<()> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder).map_err(CoreError::io("create", folder))?;
        }
        Ok(tensorfile::write_aside(&self.path, |path| fs::write(path, serde_json::to_vec_pretty(&self.record)?))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with(patience: u64, values: &[f64]) -> EarlyStopping {
        let folder = CheckpointFolder::new("nowhere");
        let mut rule = EarlyStopping::open(&folder, patience, 0).unwrap();
        for (i, value) in values.iter().enumerate() {
            rule.note(i as u64 + 1, *value);
        }
        rule
    }

    #[test]
    fn patience_counts_evaluations_behind_the_best() {
        assert!(!with(2, &[3.0, 2.0, 2.5]).is_over());
        assert!(with(2, &[3.0, 2.0, 2.5, 2.1]).is_over());
        assert!(!with(2, &[3.0, 2.0, 2.5, 1.9]).is_over());
        assert!(with(1, &[1.0, 1.0]).is_over(), "equal is not better");
        assert!(!with(1, &[]).is_over());
        assert_eq!(with(2, &[3.0, 2.0, 2.5, 2.0]).best(), Some(2));
    }

    #[test]
    fn what_is_written_down_is_taken_up_but_not_what_was_lost() {
        let folder = tempfile::tempdir().unwrap();
        let folder = CheckpointFolder::new(folder.path());
        let mut rule = EarlyStopping::open(&folder, 2, 0).unwrap();
        for (step, value) in [(10, 3.0), (20, 2.0), (30, 2.5)] {
            rule.note(step, value);
        }
        rule.save().unwrap();
        assert_eq!(EarlyStopping::open(&folder, 2, 30).unwrap().record, rule.record);
        let earlier = EarlyStopping::open(&folder, 2, 15).unwrap();
        assert_eq!(earlier.best(), Some(10));

        rule.end();
        rule.save().unwrap();
        assert!(EarlyStopping::open(&folder, 2, 20).unwrap().is_over());
        assert!(!EarlyStopping::open(&folder, 2, 10).unwrap().is_over());
        // The best checkpoint was the last: more steps may follow.
        let mut rule = with(2, &[3.0, 2.0]);
        rule.end();
        assert!(!rule.is_over());
    }

    #[test]
    fn a_damaged_file_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), "{").unwrap();
        let error = EarlyStopping::open(&CheckpointFolder::new(folder.path()), 2, 0).unwrap_err().to_string();
        assert!(error.contains("delete it"), "{error}");
    }

    proptest! {
        #[test]
        fn it_ends_exactly_when_the_best_is_far_enough_behind(values in proptest::collection::vec(0.0f64..4.0, 1..20), patience in 1u64..6) {
            let rule = with(patience, &values);
            let best = rule.best().unwrap();
            prop_assert!(values.iter().all(|v| *v >= values[best as usize - 1]));
            prop_assert_eq!(rule.is_over(), values.len() as u64 - best >= patience);
        }
    }
}
