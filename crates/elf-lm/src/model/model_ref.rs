//! A model that was located by its path, before anything is read.

use std::path::{Path, PathBuf};

use elf_core::pytorch::PyTorchFile;
use elf_core::weights::{self, ParamKind, Weights};
use elf_core::{Network, ParamSet, PrecisionPolicy};
use elf_model::Elf;
use elf_train::{Checkpoint, ReleasedCheckpoint};
use serde_json::{Value, json};
use tch::Device;

use super::content_hash::{hash_of_file, hash_of_folder};
use super::run_folder::RunModel;
use crate::Result;
use crate::config::RunPlan;
use crate::error::Context;

/// The location of a model, by kind.
#[derive(Debug)]
pub enum ModelRef {
    /// A run of this program: its latest checkpoint.
    Run(Box<RunModel>),
    /// A checkpoint of such a run.
    Checkpoint(Box<RunModel>),
    /// A PyTorch file, such as the training checkpoints of the released code.
    Released(PathBuf),
    /// A safetensors file, or an index of several.
    Weights(PathBuf),
}

impl ModelRef {
    /// Locates the model at a path: a run's folder, a checkpoint, a parameter file, or a folder with one.
    ///
    /// # Errors
    /// If there is no model, or its checkpoint is damaged.
    pub fn open(path: &Path) -> Result<Self> {
        if RunModel::is_at(path) || !path.exists() {
            let model = Box::new(RunModel::at(path)?);
            let latest = path.canonicalize().ok() == model.run.root().canonicalize().ok();
            return Ok(if latest { Self::Run(model) } else { Self::Checkpoint(model) });
        }
        let file = weights::find(path).with_context(|| no_model(path))?;
        let is_index = file.extension().is_some_and(|ending| ending == "json");
        Ok(match !is_index && PyTorchFile::is_zip(&file)? {
            true => Self::Released(file),
            false => Self::Weights(file),
        })
    }

    /// The run and checkpoint, if this program trained the model.
    pub fn run(&self) -> Option<&RunModel> {
        match self {
            Self::Run(model) | Self::Checkpoint(model) => Some(model),
            Self::Released(_) | Self::Weights(_) => None,
        }
    }

    /// The plan, if this program trained the model.
    pub fn plan(&self) -> Option<&RunPlan> {
        self.run().map(|run| &run.plan)
    }

    /// The checkpoint's folder, or the parameter file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Run(model) | Self::Checkpoint(model) => model.checkpoint.path(),
            Self::Released(path) | Self::Weights(path) => path,
        }
    }

    /// The folder of the model's settings and other files.
    pub fn folder(&self) -> &Path {
        match self {
            Self::Run(model) | Self::Checkpoint(model) => model.run.root(),
            Self::Released(path) | Self::Weights(path) => elf_files::folder_of(path),
        }
    }

    /// Refuses a baseline.
    ///
    /// # Errors
    /// If it is one. `purpose` ends the message, such as "which cannot guide a flow".
    pub fn elf_only(self, purpose: &str) -> Result<Self> {
        Ok(match self {
            Self::Run(model) => Self::Run(Box::new(model.elf_only(purpose)?)),
            Self::Checkpoint(model) => Self::Checkpoint(Box::new(model.elf_only(purpose)?)),
            external => external,
        })
    }

    /// The training checkpoint to resume from.
    ///
    /// # Errors
    /// If a file holds parameters only.
    pub fn into_resumable(self) -> Result<Resumable> {
        Ok(match self {
            Self::Run(model) | Self::Checkpoint(model) => Resumable::Own(model.checkpoint),
            Self::Released(path) | Self::Weights(path) => {
                Resumable::Released(ReleasedCheckpoint::open(&path).with_context(|| no_model(&path))?)
            }
        })
    }

    /// Checks the hashes of a checkpoint's files. External files are checked when they are read.
    ///
    /// # Errors
    /// If a file is damaged; the message names it.
    pub fn verify(&self) -> Result<()> {
        self.run().map_or(Ok(()), |run| Ok(run.checkpoint.verify()?))
    }

    /// The tensors of an external file.
    ///
    /// # Errors
    /// If the file is damaged, or the model is a run.
    pub fn weights(&self, averaged: bool) -> Result<Weights> {
        Weights::open(self.path(), kind(averaged)).with_context(|| no_model(self.path()))
    }

    /// Reads the running averages or the parameters as trained into `params`; from an external file, whichever it has.
    ///
    /// # Errors
    /// If a file is damaged, or belongs to another network.
    pub fn load_into(&self, params: &ParamSet, averaged: bool) -> Result<()> {
        match self.run() {
            Some(run) if averaged => run.checkpoint.load_averages(params)?,
            Some(run) => run.checkpoint.load_params(params)?,
            None => params.load_from(&self.weights(averaged)?)?,
        }
        Ok(())
    }

    /// The network of an embedded language flow.
    ///
    /// # Errors
    /// If a file is damaged, or belongs to another kind of network.
    pub fn network(&self, averaged: bool, policy: PrecisionPolicy, device: Device) -> Result<Elf> {
        let Some(plan) = self.plan() else {
            return Ok(Elf::of_weights(&self.weights(averaged)?, policy, device)?);
        };
        let net = Elf::unset(plan.model.clone(), policy, device)?;
        self.load_into(net.params(), averaged)?;
        Ok(net)
    }

    /// An identifier of the parameters that depends on their content, not their location.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn identity(&self) -> Result<Value> {
        Ok(match self.run() {
            // The state holds the hashes of the checkpoint's files.
            Some(run) => json!(run.checkpoint.state()),
            None => json!(hash_of_weights(self.path())?),
        })
    }
}

/// A checkpoint to resume training from.
pub enum Resumable {
    /// A checkpoint of this program.
    Own(Checkpoint),
    /// A checkpoint of the released code.
    Released(ReleasedCheckpoint),
}

fn kind(averaged: bool) -> ParamKind {
    if averaged { ParamKind::Averaged } else { ParamKind::Trained }
}

/// The hash of a parameter file; for an index, of the index and all shards in its folder.
///
/// # Errors
/// If it cannot be read.
pub fn hash_of_weights(path: &Path) -> Result<String> {
    if path.extension().is_none_or(|ending| ending != "json") {
        return hash_of_file(path);
    }
    hash_of_folder(path.parent().unwrap_or(path), |name| {
        [".json", ".safetensors", ".bin"].iter().any(|ending| name.ends_with(ending))
    })
}

/// The message for a path with neither a run nor an external checkpoint.
fn no_model(path: &Path) -> String {
    format!(
        "{} holds no checkpoint: it is neither a folder that `elf train` wrote nor an external checkpoint",
        path.display()
    )
}
