//! The keys of a distillation, and what follows from them.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::Result;
use crate::error::Context;
use elf_flow::DistillStep;
use elf_train::Round;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::{RunConfig, TimeScheduleName};

/// The keys of a distillation besides those of any training run. Keys and their meaning are those of the released code.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistillKeys {
    /// The teacher: a run's folder, a checkpoint, a parameter file from elsewhere, or a Hugging Face id.
    pub teacher_path: Option<String>,
    /// Whether to use the teacher's averaged parameters (EMA).
    pub teacher_use_ema: bool,
    /// Whether the first student is initialised from the teacher; otherwise at random.
    pub initialize_student_from_teacher: bool,
    /// What to initialise the first student from instead: anything `teacher_path` accepts; averaged parameters if there
    /// are any.
    pub student_init_from_checkpoint: Option<String>,
    /// Euler steps of the teacher per student step, in a single round; the curriculum sets its own.
    pub pd_teacher_steps: Option<usize>,
    /// Time covered by one student step, in a single round; the curriculum sets its own.
    pub pd_step_size: Option<f64>,
    /// The distribution of the times at which the student's step begins.
    pub pd_student_schedule: TimeScheduleName,
    /// The distribution of the boundaries between the teacher's steps.
    pub pd_teacher_schedule: TimeScheduleName,
}

impl Default for DistillKeys {
    fn default() -> Self {
        Self {
            teacher_path: None,
            teacher_use_ema: true,
            initialize_student_from_teacher: true,
            student_init_from_checkpoint: None,
            pd_teacher_steps: None,
            pd_step_size: None,
            pd_student_schedule: TimeScheduleName::LogitNormal,
            pd_teacher_schedule: TimeScheduleName::LogitNormal,
        }
    }
}

/// A distillation as its author writes it: the keys of a training run, which here is one round, and those of
/// `DistillKeys`. What is left out is as in the released recipe.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DistillConfig {
    /// Each round's training.
    #[serde(flatten)]
    pub run: RunConfig,
    /// What is distilled.
    #[serde(flatten)]
    pub keys: DistillKeys,
    /// The keys that were written.
    #[serde(skip)]
    given: BTreeSet<String>,
}

impl Default for DistillConfig {
    fn default() -> Self {
        let run = RunConfig::default().with(|c| {
            c.length.epochs = 1.0;
            c.length.warmup_epochs = Some(0.1);
            c.evaluation.eval_freq = 1.0;
        });
        Self { run, keys: DistillKeys::default(), given: BTreeSet::new() }
    }
}

fn mapping(value: &impl Serialize) -> serde_json::Result<Map<String, Value>> {
    serde_json::from_value(serde_json::to_value(value)?)
}

impl<'de> Deserialize<'de> for DistillConfig {
    /// Keys that are left out are those of [`DistillConfig::default`], which differ from a run's.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Map::<String, Value>::deserialize(deserializer)?;
        let given = written.keys().cloned().collect();
        let default = Self::default();
        let (mut run, mut keys) = (mapping(&default.run).map_err(D::Error::custom)?, Map::new());
        let known = mapping(&default.keys).map_err(D::Error::custom)?;
        for (key, value) in written {
            if known.contains_key(&key) { &mut keys } else { &mut run }.insert(key, value);
        }
        let run = serde_json::from_value(Value::Object(run)).map_err(D::Error::custom)?;
        let keys = serde_json::from_value(Value::Object(keys)).map_err(D::Error::custom)?;
        Ok(Self { run, keys, given })
    }
}

/// Keys of a run that are about how long and how it is trained, and where to: a student has its own.
const OF_THE_TRAINING: &[&str] = &[
    "epochs",
    "max_steps",
    "max_minutes",
    "warmup_epochs",
    "warmup_steps",
    "lr",
    "blr",
    "min_lr",
    "lr_schedule",
    "weight_decay",
    "optimizer",
    "adam_b1",
    "adam_b2",
    "ema_decay1",
    "sampling_configs_path",
    "output_dir",
    "resume",
    "init_from",
    "save_freq",
    "eval_freq",
    "early_stopping",
];

impl DistillConfig {
    /// Whether a key was written, in the file or on the command line.
    pub fn says(&self, key: &str) -> bool {
        self.given.contains(key)
    }

    /// Takes the keys about data, encoder, network and flow that were not written from the run that trained the teacher.
    ///
    /// # Errors
    /// If a configuration cannot be taken apart, which is a defect.
    pub fn inherit(&mut self, teacher: &RunConfig) -> Result<()> {
        let mut run = mapping(&self.run)?;
        for (key, value) in mapping(teacher)? {
            if !self.says(&key) && !OF_THE_TRAINING.contains(&key.as_str()) {
                run.insert(key, value);
            }
        }
        self.run = serde_json::from_value(Value::Object(run)).context("the configuration of the teacher's run")?;
        Ok(())
    }

    /// The student's step that covers `step_size` of the time while the teacher takes `substeps`.
    ///
    /// # Errors
    /// If a setting is out of its range.
    pub fn step(&self, step_size: f64, substeps: usize) -> Result<DistillStep> {
        let step = DistillStep {
            step_size,
            substeps,
            student_times: self.run.flow.law(self.keys.pd_student_schedule),
            teacher_times: self.run.flow.law(self.keys.pd_teacher_schedule),
        };
        step.check()?;
        Ok(step)
    }
}

/// Which teacher it is, so that it stays the same over all rounds and all interruptions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherRecord {
    /// As the user named it.
    pub name: String,
    /// Where it was found: of a run the checkpoint that was the latest then.
    pub place: PathBuf,
    /// Whether its averaged parameters were taken.
    pub averaged: bool,
    /// The fingerprint of its parameters.
    pub blake3: String,
}

/// What a student begins as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StudentStart {
    /// The teacher.
    Teacher,
    /// The averaged parameters of this checkpoint.
    Checkpoint(PathBuf),
    /// At random.
    Random,
}

/// What a distilled model was made for and by; a part of its plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistillationPlan {
    /// The round of the curriculum; `None` for a round of its own.
    pub round: Option<Round>,
    /// The step that the student learns.
    pub step: DistillStep,
    /// Its teacher.
    pub teacher: TeacherRecord,
    /// What it began as.
    pub start: StudentStart,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, read_yaml};
    use elf_flow::{LogitNormal, TimeLaw};

    fn read(text: &str, options: &[&str]) -> Result<DistillConfig> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("distill.yml");
        std::fs::write(&path, text).unwrap();
        read_yaml(Some(&path), &Overrides::parse(options)?, |_| {})
    }

    #[test]
    fn what_is_left_out_is_as_in_the_released_recipe() {
        let config = read("data_path: somewhere\n", &[]).unwrap();
        assert_eq!(
            (config.run.length.epochs, config.run.length.warmup_epochs, config.run.optimization.blr),
            (1.0, Some(0.1), 1e-3)
        );
        assert_eq!(config.run.data.data_path.as_deref(), Some("somewhere"));
        assert_eq!(config.keys, DistillKeys::default());
        let config =
            read("epochs: 2\npd_step_size: 0.25\n", &["pd_teacher_steps=16", "teacher_use_ema=false"]).unwrap();
        assert_eq!(
            (config.run.length.epochs, config.keys.pd_step_size, config.keys.pd_teacher_steps),
            (2.0, Some(0.25), Some(16))
        );
        assert!(!config.keys.teacher_use_ema && config.says("epochs") && !config.says("blr"));
    }

    #[test]
    fn misspelt_keys_and_values_are_named() {
        let message = read("pd_step_sise: 1\n", &[]).unwrap_err().report();
        assert!(message.contains("`pd_step_sise`") && message.contains("`pd_step_size`"), "{message}");
        let message = read("epochs: many\n", &[]).unwrap_err().report();
        assert!(message.contains("does not fit") && message.contains("distill.yml"), "{message}");
        assert!(read("pd_teacher_schedule: cosine\n", &[]).unwrap_err().report().contains("cosine"));
    }

    #[test]
    fn a_student_inherits_what_it_is_not_told() {
        let teacher = RunConfig::default().with(|c| {
            c.data.max_length = 64;
            c.network.depth = Some(3);
            c.data.data_path = Some("texts".into());
            c.length.epochs = 7.0;
        });
        let mut config = read("depth: 5\n", &[]).unwrap();
        config.inherit(&teacher).unwrap();
        assert_eq!(
            (config.run.data.max_length, config.run.network.depth, config.run.length.epochs),
            (64, Some(5), 1.0)
        );
        assert_eq!(config.run.data.data_path.as_deref(), Some("texts"));
    }

    #[test]
    fn every_key_of_the_training_is_one() {
        let known = mapping(&RunConfig::default()).unwrap();
        for key in OF_THE_TRAINING {
            assert!(known.contains_key(*key), "{key}");
        }
    }

    #[test]
    fn schedules_take_the_law_of_training_times() {
        let config = read("pd_teacher_schedule: uniform\ndenoiser_p_mean: -1\n", &[]).unwrap();
        let step = config.step(0.25, 16).unwrap();
        assert_eq!(step.student_times, TimeLaw::LogitNormal(LogitNormal { mean: -1.0, std: 0.8 }));
        assert_eq!((step.teacher_times, step.student_steps()), (TimeLaw::Uniform, 4));
        assert!(config.step(1.5, 16).unwrap_err().to_string().contains("pd_step_size"));
    }
}
