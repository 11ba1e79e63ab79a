//! The evaluations of a run: which were made, which was best, and whether the held-out loss has stopped improving.

use std::fs;
use std::path::{Path, PathBuf};

use elf_core::Error as CoreError;
use serde::{Deserialize, Serialize};

use crate::{CheckpointFolder, Error, Result};

/// The name of the metric by which evaluations are compared; less is better.
pub const JUDGED_BY: &str = "validation_loss";

/// The file of past evaluations, in the folder of checkpoints.
const FILE: &str = "evaluations.json";

/// The content of [`FILE`].
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// Optimiser steps, ascending, each with the metric's value, if there was one.
    evaluations: Vec<(u64, Option<f64>)>,
    /// Whether the run ended later than its best checkpoint, so that it is not continued.
    ended: bool,
}

impl Record {
    /// Reads the file; no evaluations if there is none.
    fn read(path: &Path) -> Result<Self> {
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| Error::Checkpoint {
                path: path.to_owned(),
                reason: format!("it is damaged ({e}); delete it, and the search for the best evaluation starts again"),
            }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(CoreError::io("read", path)(e).into()),
        }
    }

    /// Whether the run ended with the checkpoint of this step.
    fn ended_at(&self, step: u64) -> bool {
        self.ended && self.evaluations.last().is_some_and(|(last, _)| *last == step)
    }
}

/// The evaluations of a run so far. Every decision depends on them alone, so that all ranks and a resumed run decide
/// the same.
#[derive(Debug)]
pub(crate) struct Evaluations {
    path: PathBuf,
    /// The number of consecutive evaluations without improvement that ends the run; 0 for no limit.
    patience: usize,
    record: Record,
}

impl Evaluations {
    /// Reads the evaluations of a run after `steps_done` steps. Later evaluations, whose steps were lost, are dropped.
    pub(crate) fn open(folder: &CheckpointFolder, patience: u64, steps_done: u64) -> Result<Self> {
        let path = folder.root().join(FILE);
        let mut record = Record::read(&path)?;
        // A user who continues from an earlier checkpoint by hand, or without patience, wants more steps.
        record.ended = patience > 0 && record.ended_at(steps_done);
        record.evaluations.retain(|(step, _)| *step <= steps_done);
        let mut this = Self { path, patience: usize::try_from(patience).unwrap_or(usize::MAX), record };
        if patience > 0 {
            this.drop_bests_without_checkpoint(folder)?;
        }
        Ok(this)
    }

    /// Drops best evaluations without a checkpoint: a run cannot end with them. Their checkpoints were pruned while
    /// patience was 0, or deleted by hand.
    fn drop_bests_without_checkpoint(&mut self, folder: &CheckpointFolder) -> Result<()> {
        let present = folder.list()?;
        while let Some(best) = self.best()
            && present.iter().all(|(step, _)| *step != best)
        {
            let evaluations = self.record.evaluations.iter_mut();
            evaluations.filter(|(step, _)| *step == best).for_each(|(_, value)| *value = None);
        }
        Ok(())
    }

    /// Whether this step was evaluated.
    pub(crate) fn include(&self, step: u64) -> bool {
        self.record.evaluations.iter().any(|(known, _)| *known == step)
    }

    /// The step of the best evaluation; the earliest of equals.
    pub(crate) fn best(&self) -> Option<u64> {
        let judged = self.record.evaluations.iter().filter_map(|(step, value)| Some((*step, (*value)?)));
        let better = |a: &(u64, f64), b: &(u64, f64)| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0));
        judged.min_by(better).map(|(step, _)| step)
    }

    /// The step whose checkpoint must be kept: the best, if the run is to end with it.
    pub(crate) fn pinned(&self) -> Option<u64> {
        self.best().filter(|_| self.patience > 0)
    }

    /// Adds an evaluation.
    pub(crate) fn add(&mut self, step: u64, value: Option<f64>) {
        self.record.evaluations.retain(|(known, _)| *known < step);
        self.record.evaluations.push((step, value));
    }

    /// Whether none of the last `patience` evaluations improved on the best, or the run had already ended.
    pub(crate) fn have_stopped_improving(&self) -> bool {
        let Some(best) = self.best() else { return false };
        let behind = self.record.evaluations.iter().rev().take_while(|(step, _)| *step != best).count();
        self.record.ended || (self.patience > 0 && behind >= self.patience)
    }

    /// Ends the run with the best checkpoint as the newest.
    pub(crate) fn end(&mut self) {
        let best = self.best();
        let last = self.record.evaluations.last().map(|(step, _)| *step);
        self.record.evaluations.retain(|(step, _)| best.is_none_or(|best| *step <= best));
        // A run whose last evaluation was its best may be continued.
        self.record.ended |= best.is_some() && best != last;
    }

    /// Writes the file, under another name first, then renames it.
    pub(crate) fn save(&self) -> Result<()> {
        let text = serde_json::to_vec_pretty(&self.record).map_err(|e| CoreError::io("write", &self.path)(e.into()))?;
        Ok(elf_files::write(&self.path, text).map_err(CoreError::io("write", &self.path))?)
    }
}

impl CheckpointFolder {
    /// Whether the run of these checkpoints ended before its last step because the held-out loss had stopped improving.
    /// Its newest checkpoint is then its best and last.
    ///
    /// # Errors
    /// If the folder cannot be read, or its file of evaluations is damaged.
    pub fn ended_early(&self) -> Result<bool> {
        let record = Record::read(&self.root().join(FILE))?;
        Ok(self.list()?.last().is_some_and(|(step, _)| record.ended_at(*step)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with(patience: u64, values: &[f64]) -> Evaluations {
        let folder = CheckpointFolder::new("nowhere");
        let mut rule = Evaluations::open(&folder, patience, 0).unwrap();
        for (i, value) in values.iter().enumerate() {
            rule.add(i as u64 + 1, Some(*value));
        }
        rule
    }

    #[test]
    fn patience_counts_evaluations_behind_the_best() {
        assert!(!with(2, &[3.0, 2.0, 2.5]).have_stopped_improving());
        assert!(with(2, &[3.0, 2.0, 2.5, 2.1]).have_stopped_improving());
        assert!(!with(2, &[3.0, 2.0, 2.5, 1.9]).have_stopped_improving());
        assert!(with(1, &[1.0, 1.0]).have_stopped_improving(), "equal is not better");
        assert!(!with(1, &[]).have_stopped_improving());
        assert_eq!(with(2, &[3.0, 2.0, 2.5, 2.0]).best(), Some(2));
    }

    /// A folder with names of checkpoints in it.
    fn folder_with(steps: &[u64]) -> (tempfile::TempDir, CheckpointFolder) {
        let root = tempfile::tempdir().unwrap();
        for step in steps {
            fs::create_dir(root.path().join(format!("step-{step:08}"))).unwrap();
        }
        let folder = CheckpointFolder::new(root.path());
        (root, folder)
    }

    #[test]
    fn what_is_written_down_is_taken_up_but_not_what_was_lost() {
        let (_root, folder) = folder_with(&[10, 20]);
        let mut rule = Evaluations::open(&folder, 2, 0).unwrap();
        for (step, value) in [(10, 3.0), (20, 2.0), (30, 2.5)] {
            rule.add(step, Some(value));
        }
        rule.save().unwrap();
        assert_eq!(Evaluations::open(&folder, 2, 30).unwrap().record, rule.record);
        let earlier = Evaluations::open(&folder, 2, 15).unwrap();
        assert_eq!(earlier.best(), Some(10));

        rule.end();
        rule.save().unwrap();
        assert!(Evaluations::open(&folder, 2, 20).unwrap().have_stopped_improving());
        assert!(!Evaluations::open(&folder, 2, 10).unwrap().have_stopped_improving());
        // The best checkpoint was the last: more steps may follow.
        let mut rule = with(2, &[3.0, 2.0]);
        rule.end();
        assert!(!rule.have_stopped_improving());
    }

    #[test]
    fn a_run_does_not_end_with_a_checkpoint_that_is_gone() {
        let (_root, folder) = folder_with(&[20, 40]);
        let mut rule = Evaluations::open(&folder, 0, 0).unwrap();
        for (step, value) in [(10, 1.0), (20, 2.0), (30, 1.5), (40, 2.5)] {
            rule.add(step, Some(value));
        }
        assert_eq!((rule.best(), rule.pinned(), rule.have_stopped_improving()), (Some(10), None, false), "no patience");
        rule.save().unwrap();
        let rule = Evaluations::open(&folder, 2, 40).unwrap();
        assert_eq!((rule.best(), rule.pinned()), (Some(20), Some(20)));
        assert!(rule.include(10) && rule.include(30) && !rule.include(50));
    }

    #[test]
    fn a_folder_knows_whether_its_run_ended_early() {
        let (_root, folder) = folder_with(&[10]);
        assert!(!folder.ended_early().unwrap());
        let mut rule = Evaluations::open(&folder, 2, 0).unwrap();
        rule.add(10, Some(1.0));
        rule.add(20, Some(2.0));
        rule.end();
        rule.save().unwrap();
        assert!(folder.ended_early().unwrap());
        assert!(!folder_with(&[]).1.ended_early().unwrap());
        // Without patience the run can continue.
        assert!(!Evaluations::open(&folder, 0, 10).unwrap().have_stopped_improving());
    }

    #[test]
    fn a_damaged_file_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), "{").unwrap();
        let error = Evaluations::open(&CheckpointFolder::new(folder.path()), 2, 0).unwrap_err().to_string();
        assert!(error.contains("delete it"), "{error}");
    }

    proptest! {
        #[test]
        fn it_ends_exactly_when_the_best_is_far_enough_behind(values in proptest::collection::vec(0.0f64..4.0, 1..20), patience in 1u64..6) {
            let rule = with(patience, &values);
            let best = rule.best().unwrap();
            prop_assert!(values.iter().all(|v| *v >= values[best as usize - 1]));
            prop_assert_eq!(rule.have_stopped_improving(), values.len() as u64 - best >= patience);
        }
    }
}
