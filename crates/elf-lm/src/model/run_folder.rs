//! The folder of a training run: everything that sampling and resuming need.
//!
//! `plan.json` (the resolved plan), `tokenizer.json` (a copy), `metrics.jsonl`, `checkpoints/step-*`, `samples/`; of a distilled
//! model `README.md`, which says what it was made for. The rounds of a distillation are such folders in one that holds
//! `teacher.json` beside them.

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

/// The file that says whom all students in a folder learn from.
pub const TEACHER: &str = "teacher.json";

/// A run's folder.
#[derive(Debug, Clone)]
pub struct RunFolder {
    root: PathBuf,
}

impl RunFolder {
    /// A folder by name; nothing is made yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where checkpoints go.
    pub fn checkpoints(&self) -> CheckpointFolder {
        CheckpointFolder::new(self.root.join("checkpoints"))
    }

    /// The file of the tokenizer that the run was trained with.
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

    /// Where generated text goes.
    pub fn samples(&self) -> PathBuf {
        self.root.join("samples")
    }

    /// Makes the folder, writes what does not change in training, and holds it as long as what is returned lives.
    ///
    /// # Errors
    /// If another process holds it, or something cannot be written.
    pub fn begin(&self, plan: &RunPlan, tokenizer: &Tokenizer) -> Result<Held> {
        let held = folder_lock::lock(&self.root)?;
        write_json(&self.root.join("plan.json"), plan)?;
        tokenizer.save(self.tokenizer_path())?;
        Ok(held)
    }

    /// Opens metrics.jsonl for lines of steps from `steps_done` on; lines of later steps, which a crash left behind after
    /// the checkpoint that is resumed from, are cut off.
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

/// A network's parameters and the plan that it was trained by, found from what a user may name: a run's folder, a
/// checkpoint's folder, or a file in one.
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
    /// Whether a path is a run of this program, a checkpoint of one, or a file in such a checkpoint. Another file that lies in a run's
    /// folder, such as a checkpoint that was converted into it, is none of these.
    pub fn is_at(path: &Path) -> bool {
        if path.is_file() {
            let parent = path.parent().unwrap_or(path);
            let own = path.file_name().is_some_and(|name| name == "plan.json" || name == TEACHER);
            return own || parent.join("state.json").is_file();
        }
        ["state.json", "plan.json", TEACHER].iter().any(|name| path.join(name).is_file())
            || path.join("checkpoints").is_dir()
    }

    /// Finds the latest checkpoint of a run, or the one named; in a folder of distillation rounds that of the last round.
    ///
    /// # Errors
    /// If there is none, or it is damaged.
    pub fn at(path: &Path) -> Result<Self> {
        if !path.exists() {
            fail!(place(path), "there is no {}: name a run's folder, or one of its checkpoints", path.display());
        }
        let folder = match path.parent() {
            // A file beside us has an empty parent, which is no name for a folder.
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
                    folder.display()
                );
            };
            (run, checkpoint)
        };
        let plan = plan_of(&checkpoint)?;
        Ok(Self { run, checkpoint, plan })
    }

    /// Refuses a baseline.
    ///
    /// # Errors
    /// If it is one: `purpose` says what it is of no use for.
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
    serde_json::from_value(checkpoint.state().plan.clone())
        .with_context(|| format!("the plan in {} is from another version of this program", checkpoint.path().display()))
}

/// The last round that has a checkpoint, in a folder of distillation rounds.
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
