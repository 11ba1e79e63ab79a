//! A model that was found by its path and is not read yet.

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

/// A model by kind of place.
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
    /// Finds the model at a path: a run's folder, a checkpoint, a file of parameters, or a folder with one.
    ///
    /// # Errors
    /// If there is nothing, a run without a checkpoint, or a damaged one.
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

    /// The run and checkpoint, if this program trained it.
    pub fn run(&self) -> Option<&RunModel> {
        match self {
            Self::Run(model) | Self::Checkpoint(model) => Some(model),
            Self::Released(_) | Self::Weights(_) => None,
        }
    }

    /// How it was trained, if this program trained it.
    pub fn plan(&self) -> Option<&RunPlan> {
        self.run().map(|run| &run.plan)
    }

    /// The checkpoint's folder, or the file of parameters.
    pub fn path(&self) -> &Path {
        match self {
            Self::Run(model) | Self::Checkpoint(model) => model.checkpoint.path(),
            Self::Released(path) | Self::Weights(path) => path,
        }
    }

    /// The folder in which settings and other files lie that belong to the model.
    pub fn folder(&self) -> &Path {
        match self {
            Self::Run(model) | Self::Checkpoint(model) => model.run.root(),
            Self::Released(path) | Self::Weights(path) => elf_files::folder_of(path),
        }
    }

    /// Refuses a baseline.
    ///
    /// # Errors
    /// If it is one: `purpose` says what it is of no use for.
    pub fn elf_only(self, purpose: &str) -> Result<Self> {
        Ok(match self {
            Self::Run(model) => Self::Run(Box::new(model.elf_only(purpose)?)),
            Self::Checkpoint(model) => Self::Checkpoint(Box::new(model.elf_only(purpose)?)),
            elsewhere => elsewhere,
        })
    }

    /// The training checkpoint to resume from.
    ///
    /// # Errors
    /// If a file holds parameters and no more.
    pub fn into_resumable(self) -> Result<Resumable> {
        Ok(match self {
            Self::Run(model) | Self::Checkpoint(model) => Resumable::Own(model.checkpoint),
            Self::Released(path) | Self::Weights(path) => {
                Resumable::Released(ReleasedCheckpoint::open(&path).with_context(|| no_model(&path))?)
            }
        })
    }

    /// Checks that no file of a checkpoint is damaged; a file from elsewhere is checked where it is read.
    ///
    /// # Errors
    /// Names the file.
    pub fn verify(&self) -> Result<()> {
        self.run().map_or(Ok(()), |run| Ok(run.checkpoint.verify()?))
    }

    /// The tensors of a file from elsewhere.
    ///
    /// # Errors
    /// If it is damaged, or this is no such file.
    pub fn weights(&self, averaged: bool) -> Result<Weights> {
        Weights::open(self.path(), kind(averaged)).with_context(|| no_model(self.path()))
    }

    /// Reads the running averages into parameters, or the parameters as trained; of a file from elsewhere what it has.
    ///
    /// # Errors
    /// If it is damaged, or of another network.
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
    /// If it is damaged, or another kind of network.
    pub fn network(&self, averaged: bool, policy: PrecisionPolicy, device: Device) -> Result<Elf> {
        let Some(plan) = self.plan() else {
            return Ok(Elf::of_weights(&self.weights(averaged)?, policy, device)?);
        };
        let net = Elf::unset(plan.model.clone(), policy, device)?;
        self.load_into(net.params(), averaged)?;
        Ok(net)
    }

    /// Tells its parameters from any other's by their contents, wherever they lie.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn identity(&self) -> Result<Value> {
        Ok(match self.run() {
            // It holds the hashes of the files beside it.
            Some(run) => json!(run.checkpoint.state()),
            None => json!(hash_of_weights(self.path())?),
        })
    }
}

/// A checkpoint that training resumes from.
pub enum Resumable {
    /// Of this program.
    Own(Checkpoint),
    /// Of the released code.
    Released(ReleasedCheckpoint),
}

fn kind(averaged: bool) -> ParamKind {
    if averaged { ParamKind::Averaged } else { ParamKind::Trained }
}

/// The hash of a file of parameters; of an index, with all shards that lie beside it.
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

/// The words for a place that is no run of this program and turns out to be no checkpoint of another one either.
fn no_model(path: &Path) -> String {
    format!(
        "{} holds no checkpoint: it is no folder that `elf train` wrote, and no checkpoint from elsewhere",
        path.display()
    )
}
