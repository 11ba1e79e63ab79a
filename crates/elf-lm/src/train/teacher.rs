//! The model that students learn from: found once, recorded in the distillation's folder, and the same ever after.

use std::path::{Path, PathBuf};

use crate::error::{Context, fail};
use elf_core::{Network, Param, PrecisionPolicy, WORD_GUIDE};
use elf_hub::What;
use elf_model::Elf;
use tch::Device;

use crate::config::{Overrides, RunConfig, RunPlan, StudentStart, TeacherRecord};
use crate::json_files::write_json;
use crate::model::run_folder::TEACHER;
use crate::model::{ModelRef, config_beside};
use crate::{Host, Result};

/// A teacher that has been found, but not yet loaded.
#[derive(Debug)]
pub struct FoundTeacher {
    name: String,
    averaged: bool,
    found: ModelRef,
    place: PathBuf,
    recorded: Option<TeacherRecord>,
}

impl FoundTeacher {
    /// The teacher of the distillation in `root`: the one recorded there, or the one of this name. Of a run the latest
    /// checkpoint is taken, and stays the teacher when there are later ones.
    ///
    /// # Errors
    /// If there is none, or another one is recorded.
    pub fn find(name: &str, averaged: bool, root: &Path, host: &Host) -> Result<Self> {
        let recorded = recorded(root)?;
        if let Some(record) = &recorded
            && (record.name != name || record.averaged != averaged)
        {
            let which = |averaged| if averaged { "averaged" } else { "as trained" };
            fail!(
                mismatch("the teacher"),
                "the students in {} learn from {} ({}), not from {name} ({}): set it back, or choose another output_dir",
                root.display(),
                record.name,
                which(record.averaged),
                which(averaged)
            );
        }
        let place = match recorded.as_ref().filter(|record| record.place.exists()) {
            Some(record) => record.place.clone(),
            None => host.locate(name, What::ElfCheckpoint).context("teacher_path")?,
        };
        let found = ModelRef::open(&place).and_then(|found| found.elf_only("which cannot be distilled"));
        let found = found.context("teacher_path")?;
        // Another day it may be started from another folder.
        let place = std::path::absolute(found.path()).with_context(|| found.path().display())?;
        Ok(Self { name: name.to_owned(), averaged, found, place, recorded })
    }

    /// How it was trained, if that was done by this program.
    pub fn plan(&self) -> Option<&RunPlan> {
        self.found.plan()
    }

    /// The settings that it was trained with: a run's own, or those that are written beside a parameter file.
    ///
    /// # Errors
    /// If these cannot be read.
    pub fn config(&self, host: &Host) -> Result<Option<RunConfig>> {
        match self.plan() {
            Some(plan) => Ok(Some(plan.config.clone())),
            None => config_beside(self.found.path(), &Overrides::default(), host),
        }
    }

    /// The network, without gradients.
    ///
    /// # Errors
    /// If it is damaged or no ELF.
    pub fn load(&self, policy: PrecisionPolicy, device: Device) -> Result<Elf> {
        self.found.verify()?;
        self.found.network(self.averaged, policy, device)
    }

    /// What is to be recorded of it, after loading.
    ///
    /// # Errors
    /// If it is not the one that is recorded already.
    pub fn record(&self, net: &Elf, root: &Path) -> Result<TeacherRecord> {
        let record = TeacherRecord {
            name: self.name.clone(),
            place: self.place.clone(),
            averaged: self.averaged,
            blake3: elf_train::fingerprint(net.params())?,
        };
        if let Some(before) = self.recorded.as_ref().filter(|before| before.blake3 != record.blake3) {
            fail!(
                mismatch("the teacher"),
                "{} has changed since the students in {} began to learn from it: bring the old one back, or choose another output_dir",
                before.place.display(),
                root.display()
            );
        }
        Ok(record)
    }
}

fn recorded(root: &Path) -> Result<Option<TeacherRecord>> {
    let path = root.join(TEACHER);
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let damaged =
                || format!("{} is damaged: remove it if no student in its folder is to go on", path.display());
            Ok(Some(serde_json::from_str(&text).with_context(damaged)?))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Records the teacher of all students in `root`.
///
/// # Errors
/// If it cannot be written.
pub fn write_record(record: &TeacherRecord, root: &Path) -> Result<()> {
    std::fs::create_dir_all(root).with_context(|| format!("cannot make the folder {}", root.display()))?;
    write_json(&root.join(TEACHER), record)
}

/// A student as it begins.
///
/// # Errors
/// If what it begins as is missing, damaged, or of other sizes.
pub fn student(start: &StudentStart, plan: &RunPlan, teacher: &Elf, device: Device) -> Result<Elf> {
    if *start == StudentStart::Random {
        return Ok(Elf::new(plan.model.clone(), plan.precision, plan.config.seed, device)?);
    }
    let net = Elf::unset(plan.model.clone(), plan.precision, device)?;
    // A student of guided runs has no guide.
    let own = |(name, _): &(&str, &Param)| plan.model.word_guide_dims > 0 || !name.starts_with(WORD_GUIDE);
    let copy = |of: &str, from: &Elf| {
        net.params().load(of, from.params().iter().filter(own).map(|(name, p)| (name, &p.tensor)))
    };
    match start {
        StudentStart::Checkpoint(place) => {
            let initial = ModelRef::open(place)?.elf_only("which no student can begin as")?;
            initial.verify()?;
            copy("what the student begins as", &initial.network(true, plan.precision, device)?)?;
        }
        StudentStart::Teacher | StudentStart::Random => copy("the teacher", teacher)?,
    }
    Ok(net)
}
