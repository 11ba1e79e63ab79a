//! What a new run begins as, if not as random numbers: another model, whose optimiser and steps are not taken over.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use elf_core::ParamSet;
use elf_core::weights::{ParamKind, Weights};
use elf_data::Tokenizer;
use elf_hub::What;

use crate::config::{BaselinePlan, RunPlan};
use crate::hub;
use crate::model::run_folder::{FoundModel, no_run};

/// The key that names it.
const KEY: &str = "init_from";

/// A model to begin as, found but not yet read.
#[derive(Debug)]
pub enum InitialWeights {
    /// Of a run of this program.
    Run(Box<FoundModel>),
    /// A file from elsewhere.
    File(PathBuf),
}

impl InitialWeights {
    /// What the plan names, if it names anything.
    ///
    /// # Errors
    /// If there is nothing, or it is a model of another kind or with another tokenizer.
    pub fn find(plan: &RunPlan, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let Some(name) = &plan.config.init_from else { return Ok(None) };
        if plan.config.resume.is_some() {
            bail!("{KEY} and resume are both set: the one begins a run, the other goes on with one");
        }
        let place = hub::locate(name, What::ElfCheckpoint).context(KEY)?;
        let Some(found) = FoundModel::find(&place).context(KEY)? else {
            if let Some(baseline) = &plan.baseline {
                bail!("{KEY}: {name} is no run of this program, and {} begins as one only", baseline.describe());
            }
            return Ok(Some(Self::File(place)));
        };
        let kind = |plan: &RunPlan| plan.baseline.as_ref().map_or("elf", BaselinePlan::name);
        if kind(&found.plan) != kind(plan) {
            bail!("{KEY}: {name} was trained with objective {}, not {}", kind(&found.plan), kind(plan));
        }
        if found.run.tokenizer()?.fingerprint() != tokenizer.fingerprint() {
            bail!("{KEY}: {name} was trained with another tokenizer, whose ids mean other words");
        }
        Ok(Some(Self::Run(Box::new(found))))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        match self {
            Self::Run(found) => found.checkpoint.path(),
            Self::File(path) => path,
        }
    }

    /// Reads its running averages, or what a file has instead, into parameters.
    ///
    /// # Errors
    /// If it is damaged, or of another network.
    pub fn load_into(&self, params: &ParamSet) -> Result<()> {
        self.read_into(params).with_context(|| format!("{KEY}: a run can only begin as a network of its own sizes"))
    }

    /// [`InitialWeights::load_into`], with errors that do not speak of `init_from`.
    ///
    /// # Errors
    /// If it is damaged, or of another network.
    pub fn read_into(&self, params: &ParamSet) -> Result<()> {
        match self {
            Self::Run(found) => {
                found.checkpoint.verify()?;
                found.load_into(params, false)
            }
            Self::File(path) => {
                let weights = Weights::open(path, ParamKind::Averaged).with_context(|| no_run(path))?;
                Ok(params.load_from(&weights)?)
            }
        }
    }
}
