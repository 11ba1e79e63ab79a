//! The folder of a reproduction: one folder for each stage, with a record of the run that made it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use elf_files::Held;
use serde::{Deserialize, Serialize};

use super::stage::{Stage, StageName};

/// The record of a stage's run: the file [`RECORD`] in its folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Hash of its inputs, in hexadecimal.
    pub hash: String,
    /// Whether it has ended without an error.
    pub finished: bool,
    /// Time it has taken so far, over all interruptions.
    pub seconds: f64,
    /// When it last wrote this record, in seconds since 1970.
    pub at: u64,
    /// The revision of the program.
    pub revision: String,
    /// The machine.
    pub host: String,
    /// The largest number of stages that ran there at once: alone it would have taken less time.
    #[serde(default = "alone")]
    pub jobs: usize,
}

/// The value in records that were written before stages could run at once.
fn alone() -> usize {
    1
}

/// The name of the file in a stage's folder.
const RECORD: &str = "stage.json";

/// The state of a stage in the work folder.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Done with the same inputs.
    Done(Record),
    /// Begun with the same inputs and interrupted.
    Begun(Record),
    /// Not begun.
    New,
    /// Made from other inputs.
    Stale(Record),
}

/// The folder of a reproduction, with one folder for each stage.
#[derive(Clone, Debug)]
pub struct WorkFolder {
    root: PathBuf,
}

impl WorkFolder {
    /// The work folder `root`, which need not be there yet.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The folder of a stage.
    pub fn stage(&self, name: &StageName) -> PathBuf {
        self.root.join(name)
    }

    /// Holds the work folder, which is made if it is not there, until the returned value is dropped or the process ends.
    ///
    /// # Errors
    /// If another process holds it, or it cannot be made.
    pub fn lock(&self) -> Result<Held> {
        let held = Held::take(&self.root).with_context(|| format!("{} cannot be written in", self.root.display()))?;
        held.with_context(|| {
            format!(
                "another `cargo xtask reproduce` is at work in {}: wait for it or end it; `--jobs 2` does two stages at once",
                self.root.display()
            )
        })
    }

    fn superseded(&self, name: &StageName, hash: &str) -> PathBuf {
        self.root.join("superseded").join(format!("{}-{}", name.as_str().replace('/', "-"), short(hash)))
    }

    /// The state of a stage whose inputs have the hash `hash`.
    ///
    /// # Errors
    /// If its record cannot be read.
    pub fn state(&self, stage: &Stage, hash: &str) -> Result<State> {
        let folder = self.stage(&stage.name);
        let path = folder.join(RECORD);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(State::New),
            Err(error) => return Err(error).with_context(|| format!("{} cannot be read", path.display())),
        };
        let record: Record = serde_json::from_str(&text).with_context(|| {
            format!("{} is damaged: delete {} to do this stage again", path.display(), folder.display())
        })?;
        if record.hash != hash {
            return Ok(State::Stale(record));
        }
        let whole = stage.makes.iter().all(|file| folder.join(file).exists());
        Ok(if record.finished && whole { State::Done(record) } else { State::Begun(record) })
    }

    /// Moves results that a stage made from other inputs aside, and brings back those that it made from these inputs earlier, if
    /// there are any; whether it did is returned. Nothing is deleted: an hour of training is worth more than the disk.
    ///
    /// # Errors
    /// If a folder cannot be moved.
    pub fn put_aside(&self, stage: &Stage, stale: Option<&Record>, hash: &str) -> Result<bool> {
        let folder = self.stage(&stage.name);
        let moved = |from: &Path, to: &Path| -> Result<()> {
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent).with_context(|| format!("{} cannot be made", parent.display()))?;
            }
            fs::rename(from, to).with_context(|| format!("{} cannot be moved to {}", from.display(), to.display()))
        };
        if let Some(stale) = stale {
            let aside = self.superseded(&stage.name, &stale.hash);
            if aside.exists() {
                fs::remove_dir_all(&aside).with_context(|| format!("{} cannot be removed", aside.display()))?;
            }
            moved(&folder, &aside)?;
        }
        let earlier = self.superseded(&stage.name, hash);
        if earlier.exists() && !folder.exists() {
            moved(&earlier, &folder)?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Writes a stage's record, aside and renamed.
    ///
    /// # Errors
    /// If the disk does not let it.
    pub fn save(&self, stage: &StageName, record: &Record) -> Result<()> {
        let folder = self.stage(stage);
        let path = folder.join(RECORD);
        let write = || -> Result<()> {
            fs::create_dir_all(&folder)?;
            Ok(elf_files::write(&path, serde_json::to_string_pretty(record)?)?)
        };
        write().with_context(|| format!("{} cannot be written", path.display()))
    }
}

/// The first digits of a hash, for people.
pub fn short(hash: &str) -> &str {
    &hash[..hash.len().min(12)]
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_from_other_inputs_is_kept_and_comes_back() {
        let root = tempfile::tempdir().unwrap();
        let work = WorkFolder::new(root.path().to_owned());
        let stage = Stage::new("b/x", "").making("result");
        let record = |hash: &str, finished| Record {
            jobs: 1,
            hash: hash.repeat(16),
            finished,
            seconds: 1.0,
            at: 0,
            revision: String::new(),
            host: String::new(),
        };
        let (one, two) = (record("1", true), record("2", true));
        assert_eq!(work.state(&stage, &one.hash).unwrap(), State::New);

        work.save(&stage.name, &one).unwrap();
        // A record without what the stage makes is not a finished stage.
        assert_eq!(work.state(&stage, &one.hash).unwrap(), State::Begun(one.clone()));
        fs::write(work.stage(&stage.name).join("result"), "of one").unwrap();
        assert_eq!(work.state(&stage, &one.hash).unwrap(), State::Done(one.clone()));
        assert_eq!(work.state(&stage, &two.hash).unwrap(), State::Stale(one.clone()));

        assert!(!work.put_aside(&stage, Some(&one), &two.hash).unwrap());
        assert_eq!(work.state(&stage, &two.hash).unwrap(), State::New);
        work.save(&stage.name, &two).unwrap();
        assert!(work.put_aside(&stage, Some(&two), &one.hash).unwrap());
        assert_eq!(work.state(&stage, &one.hash).unwrap(), State::Done(one));
        assert_eq!(fs::read_to_string(work.stage(&stage.name).join("result")).unwrap(), "of one");
    }

    #[test]
    fn a_damaged_record_says_what_to_delete() {
        let root = tempfile::tempdir().unwrap();
        let work = WorkFolder::new(root.path().to_owned());
        fs::create_dir(work.stage(&"a".into())).unwrap();
        fs::write(work.stage(&"a".into()).join(RECORD), "{").unwrap();
        let error = work.state(&Stage::new("a", ""), "x").unwrap_err().to_string();
        assert!(error.contains("delete"), "{error}");
    }
}
