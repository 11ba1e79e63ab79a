//! Checkpoints: folders that are complete or absent.
//!
//! A checkpoint is a folder `step-NNNNNNNN` with `model.safetensors` (parameters under their own names),
//! `ema.safetensors` (their averages, under the same names), `optimizer.safetensors`, and `state.json` (step, seed,
//! data cursor, run plan, and the sizes and BLAKE3 hashes of the other files). It is written under another name and
//! renamed when all of it is on disk: a full disk or a killed process leaves older checkpoints unchanged.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::{fs, io};

use elf_core::tensorfile::{self, TensorFile};
use elf_core::{Error as CoreError, ParamSet};
#[cfg(target_os = "linux")]
use rustix::fs::{CWD, RenameFlags};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::{Device, Tensor};

use crate::{Error, KeepPolicy, Result};

const FORMAT: u32 = 1;
const STATE: &str = "state.json";
const PARAMS: &str = "model.safetensors";
const AVERAGES: &str = "ema.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
/// Prefix of every checkpoint's name.
const STEP: &str = "step-";
/// Prefix of the name of a folder that is being written or removed.
const ASIDE: &str = ".aside-";
/// Prefix before the own name of a checkpoint that is being replaced.
const REPLACED: &str = ".aside-replaced-";

/// Length and hash of a file, which detect damage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileStamp {
    /// Length of the file.
    pub bytes: u64,
    /// BLAKE3 hash of the file, hexadecimal.
    pub blake3: String,
}

/// A checkpoint's `state.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointState {
    /// Version of the layout.
    pub format: u32,
    /// Optimiser steps done.
    pub step: u64,
    /// The run's seed, which together with the step determines all draws.
    pub seed: u64,
    /// The position in the data at which training continues, in the batch source's own form.
    pub cursor: Value,
    /// The run's plan, in the program's own form.
    pub plan: Value,
    /// The other files by name.
    pub files: BTreeMap<String, FileStamp>,
}

impl CheckpointState {
    /// The state after `step` steps; the files come with [`CheckpointFolder::save`].
    pub fn new(step: u64, seed: u64, cursor: Value, plan: Value) -> Self {
        Self { format: FORMAT, step, seed, cursor, plan, files: BTreeMap::new() }
    }
}

/// The folder of a run's checkpoints. Only one run may write to it at a time.
#[derive(Debug, Clone)]
pub struct CheckpointFolder {
    root: PathBuf,
}

impl CheckpointFolder {
    /// A folder for checkpoints, created with the first one.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder's path.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Steps and paths of all checkpoints, ascending. A folder that does not exist has none.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn list(&self) -> Result<Vec<(u64, PathBuf)>> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(CoreError::io("read", &self.root)(e).into()),
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(CoreError::io("read", &self.root))?.path();
            let digits = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix(STEP));
            if let Some(step) = digits.and_then(|d| d.parse().ok())
                && path.is_dir()
            {
                found.push((step, path));
            }
        }
        found.sort();
        Ok(found)
    }

    /// The newest checkpoint, if there is any.
    ///
    /// # Errors
    /// As [`CheckpointFolder::list`] and [`Checkpoint::open`].
    pub fn latest(&self) -> Result<Option<Checkpoint>> {
        self.list()?.pop().map(|(_, path)| Checkpoint::open(path)).transpose()
    }

    /// Writes a checkpoint under another name, syncs it and renames it. One of the same step is replaced. A
    /// [`Trainer`](crate::Trainer) calls this itself; call it from training loops of another kind, which may have no
    /// averages.
    ///
    /// # Errors
    /// If a file cannot be written; then no part of the checkpoint is left and all others are unchanged.
    pub fn save(
        &self,
        mut state: CheckpointState,
        params: &[(&str, &Tensor)],
        averages: &[(&str, &Tensor)],
        optimizer: &[(String, Tensor)],
    ) -> Result<Checkpoint> {
        let root = &self.root;
        fs::create_dir_all(root).map_err(CoreError::io("create", root))?;
        self.remove_leftovers()?;
        // Removed when dropped, if an error occurs before the rename.
        let aside = tempfile::Builder::new().prefix(ASIDE).tempdir_in(root).map_err(CoreError::io("write", root))?;
        let optimizer: Vec<(&str, &Tensor)> = optimizer.iter().map(|(n, t)| (n.as_str(), t)).collect();
        for (name, tensors) in [(PARAMS, params), (AVERAGES, averages), (OPTIMIZER, &optimizer)] {
            let path = aside.path().join(name);
            tensorfile::write(&path, tensors.iter().copied(), Default::default())?;
            state.files.insert(name.to_owned(), stamp(&path)?);
        }
        let json = aside.path().join(STATE);
        let text = serde_json::to_vec_pretty(&state).map_err(|e| CoreError::io("write", &json)(e.into()))?;
        elf_files::write(&json, text).map_err(CoreError::io("write", &json))?;
        sync_folder(aside.path())?;

        let path = root.join(format!("{STEP}{:08}", state.step));
        let old = rename_over(aside.path(), &path).map_err(CoreError::io("rename", &path))?;
        // The folder has been renamed. A folder that has its first name now is the replaced checkpoint, which is
        // removed below.
        let _ = aside.keep();
        sync_folder(root)?;
        if let Some(old) = old {
            fs::remove_dir_all(&old).map_err(CoreError::io("remove", &old))?;
        }
        Ok(Checkpoint { path, state })
    }

    /// Removes checkpoints that `policy` does not keep; returns their steps.
    ///
    /// # Errors
    /// If one cannot be removed.
    pub fn prune(&self, policy: &KeepPolicy) -> Result<Vec<u64>> {
        let present = self.list()?;
        let steps: Vec<u64> = present.iter().map(|(step, _)| *step).collect();
        let removable = policy.removable(&steps);
        for (step, path) in present {
            if removable.contains(&step) {
                // Renamed first, so that an incomplete checkpoint never has a checkpoint's name.
                let old = self.set_aside(&path)?;
                fs::remove_dir_all(&old).map_err(CoreError::io("remove", &old))?;
            }
        }
        Ok(removable)
    }

    /// Removes all checkpoints after `step`, unless `step` itself has none: one checkpoint is always left.
    ///
    /// # Errors
    /// If one cannot be removed.
    pub(crate) fn remove_after(&self, step: u64) -> Result<()> {
        let present = self.list()?;
        if present.iter().all(|(found, _)| *found != step) {
            return Ok(());
        }
        for (_, path) in present.into_iter().filter(|(found, _)| *found > step) {
            let old = self.set_aside(&path)?;
            fs::remove_dir_all(&old).map_err(CoreError::io("remove", &old))?;
        }
        Ok(())
    }

    /// Renames a checkpoint so that it no longer counts as one.
    fn set_aside(&self, path: &Path) -> Result<PathBuf> {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("checkpoint");
        let old = self.root.join(format!("{ASIDE}old-{name}"));
        fs::rename(path, &old).map_err(CoreError::io("rename", path))?;
        Ok(old)
    }

    /// Removes files of a process that was killed while writing, and restores a checkpoint that it was about to
    /// replace.
    fn remove_leftovers(&self) -> Result<()> {
        for entry in fs::read_dir(&self.root).map_err(CoreError::io("read", &self.root))? {
            let path = entry.map_err(CoreError::io("read", &self.root))?.path();
            let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
            let replaced = name.strip_prefix(REPLACED).map(|name| self.root.join(name));
            if let Some(own) = replaced.filter(|own| !own.exists()) {
                fs::rename(&path, &own).map_err(CoreError::io("rename", &path))?;
            } else if name.starts_with(ASIDE) {
                fs::remove_dir_all(&path).map_err(CoreError::io("remove", &path))?;
            }
        }
        Ok(())
    }
}

/// Renames the folder `new` to `path`. Returns the new name of a folder that was at `path`, for the caller to remove.
fn rename_over(new: &Path, path: &Path) -> io::Result<Option<PathBuf>> {
    if !path.exists() {
        return fs::rename(new, path).map(|()| None);
    }
    // Exchanges both atomically where the system and the file system support it.
    #[cfg(target_os = "linux")]
    if rustix::fs::renameat_with(CWD, new, CWD, path, RenameFlags::EXCHANGE).is_ok() {
        return Ok(Some(new.to_owned()));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let old = path.with_file_name(format!("{REPLACED}{name}"));
    fs::rename(path, &old)?;
    if let Err(error) = fs::rename(new, path) {
        // The old checkpoint gets its name back.
        let _ = fs::rename(old, path);
        return Err(error);
    }
    Ok(Some(old))
}

/// Makes renames within a folder survive a power failure, where the system supports it.
fn sync_folder(path: &Path) -> Result<()> {
    #[cfg(unix)]
    fs::File::open(path).and_then(|f| f.sync_all()).map_err(CoreError::io("write", path))?;
    let _ = path;
    Ok(())
}

fn stamp(path: &Path) -> Result<FileStamp> {
    let mut hasher = blake3::Hasher::new();
    let file = fs::File::open(path).map_err(CoreError::io("read", path))?;
    hasher.update_reader(&file).map_err(CoreError::io("read", path))?;
    Ok(FileStamp { bytes: hasher.count(), blake3: hasher.finalize().to_hex().to_string() })
}

/// A checkpoint on disk.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    path: PathBuf,
    state: CheckpointState,
}

impl Checkpoint {
    /// Opens a checkpoint and checks that its files exist and have their full length.
    ///
    /// # Errors
    /// If `state.json` cannot be read, is of a newer version, or a file is missing or cut short.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let json = path.join(STATE);
        let bad = |reason: String| Error::Checkpoint { path: path.clone(), reason };
        let text = fs::read_to_string(&json).map_err(|e| bad(format!("{STATE} cannot be read ({e}); {REMEDY}")))?;
        let unreadable = |e: serde_json::Error| bad(format!("{STATE} is damaged ({e}); {REMEDY}"));
        let value: Value = serde_json::from_str(&text).map_err(unreadable)?;
        let format = value.get("format").and_then(Value::as_u64);
        if format.is_some_and(|f| f > u64::from(FORMAT)) {
            let newer = format.unwrap_or_default();
            return Err(bad(format!(
                "its format is {newer} and this program knows up to {FORMAT}; use a newer version of the program"
            )));
        }
        let state: CheckpointState = serde_json::from_value(value).map_err(unreadable)?;
        for name in [PARAMS, AVERAGES, OPTIMIZER] {
            let stamp =
                state.files.get(name).ok_or_else(|| bad(format!("{STATE} does not mention {name}; {REMEDY}")))?;
            let found =
                fs::metadata(path.join(name)).map_err(|e| bad(format!("{name} cannot be read ({e}); {REMEDY}")))?.len();
            if found != stamp.bytes {
                return Err(bad(format!("{name} has {found} bytes, but {} were written; {REMEDY}", stamp.bytes)));
            }
        }
        Ok(Self { path, state })
    }

    /// The checkpoint's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The checkpoint's `state.json`.
    pub fn state(&self) -> &CheckpointState {
        &self.state
    }

    /// Checks the content of every file against the hash that was stored.
    ///
    /// # Errors
    /// If a file differs from what was written; the message names the first one.
    pub fn verify(&self) -> Result<()> {
        for (name, expected) in &self.state.files {
            // Names come from a file: they must stay within the folder.
            let plain = Path::new(name).file_name().is_some_and(|n| n == name.as_str());
            if !plain || stamp(&self.path.join(name))? != *expected {
                let reason = format!("{name} is not the file that was written; {REMEDY}");
                return Err(Error::Checkpoint { path: self.path.clone(), reason });
            }
        }
        Ok(())
    }

    /// Sets `params` to the trained parameters.
    ///
    /// # Errors
    /// If names or shapes differ, with a table of all differences.
    pub fn load_params(&self, params: &ParamSet) -> Result<()> {
        self.load_into(PARAMS, params)
    }

    /// Sets `params` to the averaged parameters, which models are sampled with.
    ///
    /// # Errors
    /// As [`Checkpoint::load_params`].
    pub fn load_averages(&self, params: &ParamSet) -> Result<()> {
        self.load_into(AVERAGES, params)
    }

    /// The file of the averaged parameters, and the parameters by name.
    ///
    /// # Errors
    /// If the file is missing or damaged.
    pub(crate) fn averages(&self) -> Result<(String, Vec<(String, Tensor)>)> {
        self.read(AVERAGES)
    }

    /// The file of the optimiser's state, and the state by name.
    ///
    /// # Errors
    /// If the file is missing or damaged.
    pub fn optimizer(&self) -> Result<(String, Vec<(String, Tensor)>)> {
        self.read(OPTIMIZER)
    }

    /// The trained parameters by name.
    pub(crate) fn trained(&self) -> Result<HashMap<String, Tensor>> {
        Ok(self.read(PARAMS)?.1.into_iter().collect())
    }

    /// The averaged parameters by name.
    pub(crate) fn averaged(&self) -> Result<HashMap<String, Tensor>> {
        Ok(self.read(AVERAGES)?.1.into_iter().collect())
    }

    /// The optimiser's state by name.
    pub(crate) fn optimizer_state(&self) -> Result<HashMap<String, Tensor>> {
        Ok(self.read(OPTIMIZER)?.1.into_iter().collect())
    }

    fn load_into(&self, name: &str, params: &ParamSet) -> Result<()> {
        let (origin, tensors) = self.read(name)?;
        Ok(params.load(&origin, tensors.iter().map(|(n, t)| (n.as_str(), t)))?)
    }

    fn read(&self, name: &str) -> Result<(String, Vec<(String, Tensor)>)> {
        let path = self.path.join(name);
        let tensors = TensorFile::open(&path)?.read_all(Device::Cpu)?;
        Ok((path.display().to_string(), tensors))
    }
}

const REMEDY: &str = "remove this folder to continue from the checkpoint before it, or fetch it again";
