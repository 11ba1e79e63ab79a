//! The folder of a training run: everything that sampling and resuming need.
//!
//! It holds `plan.json` (the resolved plan), `tokenizer.json` (a copy), `metrics.jsonl`, `checkpoints/step-*`,
//! `samples/` and, for a distilled model, its card `README.md`. A distillation in rounds has a folder with
//! `teacher.json` and one such folder per round.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use crate::Result;
use crate::error::{Context, fail};
use elf_data::Tokenizer;
use elf_files::Held;
use elf_train::{Checkpoint, CheckpointFolder, Curriculum};
use serde_json::Value;

use crate::config::RunPlan;
use crate::folder_lock;
use crate::json_files::{write, write_json};

/// The file with the record of the teacher, in a folder of distillation rounds.
pub const TEACHER: &str = "teacher.json";

/// A run's folder.
#[derive(Debug, Clone)]
pub struct RunFolder {
    root: PathBuf,
}

impl RunFolder {
    /// The run's folder at this path; creates nothing.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The path of the folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of the checkpoints.
    pub fn checkpoints(&self) -> CheckpointFolder {
        CheckpointFolder::new(self.root.join("checkpoints"))
    }

    /// The path of the tokenizer that the run was trained with.
    pub fn tokenizer_path(&self) -> PathBuf {
        self.root.join("tokenizer.json")
    }

    /// The tokenizer that the run was trained with.
    ///
    /// # Errors
    /// If it is missing or damaged.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        Ok(Tokenizer::load(self.tokenizer_path())?)
    }

    /// The folder of generated texts.
    pub fn samples(&self) -> PathBuf {
        self.root.join("samples")
    }

    /// Creates and locks the folder, and writes everything that training does not change: plan, tokenizer and, for a
    /// distilled model, its card. The lock lasts until the returned value is dropped.
    ///
    /// # Errors
    /// If another process holds the lock, or a file cannot be written.
    pub fn begin(&self, plan: &RunPlan, tokenizer: &Tokenizer) -> Result<Held> {
        let held = folder_lock::lock(&self.root)?;
        write_json(&self.root.join("plan.json"), plan)?;
        tokenizer.save(self.tokenizer_path())?;
        Ok(held)
    }

    /// Opens `metrics.jsonl` to append lines after step `steps_done`. Later lines are removed: a crash leaves them
    /// behind after the checkpoint that is resumed from.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn metrics_from(&self, steps_done: u64) -> Result<File> {
        let path = self.root.join("metrics.jsonl");
        let context = || format!("cannot write {}", path.display());
        let mut kept = Vec::new();
        if let Ok(file) = File::open(&path) {
            for line in BufReader::new(file).lines() {
                let line = line.with_context(context)?;
                let step = serde_json::from_str::<Value>(&line).ok().and_then(|v| v["step"].as_u64());
                if step.is_some_and(|step| step <= steps_done) && steps_done > 0 {
                    kept.extend_from_slice(line.as_bytes());
                    kept.push(b'\n');
                }
            }
        }
        write(&path, kept)?;
        OpenOptions::new().append(true).open(&path).with_context(context)
    }
}

/// A checkpoint of a run and its plan.
#[derive(Debug)]
pub struct RunModel {
    /// The run's folder.
    pub run: RunFolder,
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// The plan.
    pub plan: RunPlan,
}

impl RunModel {
    /// Whether a path is a run's folder, a checkpoint's folder, or a file in a checkpoint. Other files in a run's
    /// folder, such as an exported model, do not count.
    pub fn is_at(path: &Path) -> bool {
        if path.is_file() {
            let parent = path.parent().unwrap_or(path);
            let own = path.file_name().is_some_and(|name| name == "plan.json" || name == TEACHER);
            return own || parent.join("state.json").is_file();
        }
        ["state.json", "plan.json", TEACHER].iter().any(|name| path.join(name).is_file())
            || path.join("checkpoints").is_dir()
    }

    /// Opens the checkpoint that is named, or the latest one of a run; in a folder of distillation rounds, of the last
    /// round that has one.
    ///
    /// # Errors
    /// If there is no checkpoint, or it is damaged.
    pub fn at(path: &Path) -> Result<Self> {
        if !path.exists() {
            fail!(place(path), "there is no {}: name a run's folder, or one of its checkpoints", path.display());
        }
        let folder = match path.parent() {
            // The parent of a bare file name is an empty path.
            Some(parent) if path.is_file() => {
                if parent.as_os_str().is_empty() {
                    Path::new(".")
                } else {
                    parent
                }
            }
            _ => path,
        };
        let (run, checkpoint) = if folder.join("state.json").is_file() {
            let root = folder.parent().and_then(Path::parent).unwrap_or(folder);
            (RunFolder::new(root), Checkpoint::open(folder)?)
        } else {
            let run = last_round(folder)?.unwrap_or_else(|| RunFolder::new(folder));
            let Some(checkpoint) = run.checkpoints().latest()? else {
                fail!(
                    place(folder),
                    "{} holds no checkpoint: train one with `elf train`, or name a folder that `elf train` wrote",
                    path.display()
                );
            };
            (run, checkpoint)
        };
        let plan = plan_of(&checkpoint)?;
        Ok(Self { run, checkpoint, plan })
    }

    /// Refuses the checkpoint of a baseline.
    ///
    /// # Errors
    /// If it is one. `purpose` ends the message, such as "which cannot guide a flow".
    pub fn elf_only(self, purpose: &str) -> Result<Self> {
        match &self.plan.baseline {
            None => Ok(self),
            Some(baseline) => {
                let place = self.checkpoint.path();
                fail!(place(place), "{} holds {}, {purpose}", place.display(), baseline.describe())
            }
        }
    }
}

/// The plan of the run that wrote a checkpoint.
///
/// # Errors
/// If it cannot be read.
pub fn plan_of(checkpoint: &Checkpoint) -> Result<RunPlan> {
    let mut plan = checkpoint.state().plan.clone();
    drop_retired(&mut plan);
    serde_json::from_value(plan)
        .with_context(|| format!("the plan in {} is from another version of this program", checkpoint.path().display()))
}

/// Settings that earlier versions wrote into plans and that are no more.
const RETIRED: [&str; 3] = ["token_posterior_dims", "token_posterior_words", "denoiser_ce_weight"];

/// Removes retired settings from a plan where they had no effect; a plan that depends on one stays unreadable.
fn drop_retired(plan: &mut Value) {
    if let Value::Object(settings) = plan {
        let idle = |value: &Value| value.as_f64() == Some(0.0) || value.as_bool() == Some(false);
        settings.retain(|key, value| !(RETIRED.contains(&key.as_str()) && idle(value)));
        settings.values_mut().for_each(drop_retired);
    }
}

/// In a folder of distillation rounds, the last round that has a checkpoint.
fn last_round(folder: &Path) -> Result<Option<RunFolder>> {
    if !folder.join(TEACHER).is_file() || folder.join("checkpoints").is_dir() {
        return Ok(None);
    }
    for round in Curriculum::released().rounds().iter().rev() {
        let run = RunFolder::new(folder.join(round.folder_name()));
        if run.checkpoints().latest()?.is_some() {
            return Ok(Some(run));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settings_that_are_no_more_are_dropped_where_they_did_nothing() {
        let mut plan = json!({"config": {"lr": 0.1, "token_posterior_words": false}, "denoiser_ce_weight": 0.0, "token_posterior_dims": 3});
        drop_retired(&mut plan);
        assert_eq!(plan, json!({"config": {"lr": 0.1}, "token_posterior_dims": 3}));
    }
}
