//! The configuration of a distillation, and its records in a plan.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::Result;
use crate::error::{Context, fail};
use elf_flow::{DistillStep, OwnRuns};
use elf_train::Round;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::{RunConfig, TimeScheduleName};

/// The keys of a distillation in addition to those of a training run, as in the released code.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DistillKeys {
    /// The teacher: a run's folder, a checkpoint, an external parameter file, or a Hugging Face id.
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
    /// Whether students learn the teacher's own runs from noise, in place of its steps from noisy data. Not in the released code, and
    /// neither are the next two.
    pub pd_own_runs: bool,
    /// With `pd_own_runs`: the time from which the last step leads to the end, all others lying evenly before it; 1 for even steps.
    pub pd_leap_at: f64,
    /// With `pd_own_runs`: the scale by which the teacher is led away from what it keeps of words without context
    /// (`word_guide_dims`); 1 is none.
    pub pd_guide_scale: f64,
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
            pd_own_runs: false,
            pd_leap_at: 1.0,
            pd_guide_scale: 1.0,
        }
    }
}

/// The configuration of a distillation: the keys of a training run, which apply to each round, and `DistillKeys`.
/// Defaults are those of the released recipe.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DistillConfig {
    /// The training of each round.
    #[serde(flatten)]
    pub run: RunConfig,
    /// Teacher and steps.
    #[serde(flatten)]
    pub keys: DistillKeys,
    /// The keys that were set in the file or on the command line.
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
    /// Missing keys get the values of [`DistillConfig::default`], which differ from those of a run.
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

/// Keys about the length, optimisation and output of a run, which a student does not inherit.
const NOT_INHERITED: &[&str] = &[
    "epochs",
    "max_steps",
    "max_minutes",
    "warmup_epochs",
    "warmup_steps",
    "lr",
    "blr",
    "min_lr",
    "lr_decay_share",
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
    /// Whether a key was set in the file or on the command line.
    pub fn says(&self, key: &str) -> bool {
        self.given.contains(key)
    }

    /// Takes the keys about data, encoder, network and flow that were not set from the teacher's run.
    ///
    /// # Errors
    /// If a configuration cannot be converted, which is a bug.
    pub fn inherit(&mut self, teacher: &RunConfig) -> Result<()> {
        let mut run = mapping(&self.run)?;
        for (key, value) in mapping(teacher)? {
            if !self.says(&key) && !NOT_INHERITED.contains(&key.as_str()) {
                run.insert(key, value);
            }
        }
        self.run = serde_json::from_value(Value::Object(run)).context("the configuration of the teacher's run")?;
        Ok(())
    }

    /// The student's step: it covers `step_size` of the time, for which the teacher takes `substeps` steps.
    ///
    /// # Errors
    /// If a setting is out of its range.
    pub fn step(&self, step_size: f64, substeps: usize) -> Result<DistillStep> {
        let keys = &self.keys;
        for (key, value) in [("pd_leap_at", keys.pd_leap_at), ("pd_guide_scale", keys.pd_guide_scale)] {
            if value != 1.0 && !keys.pd_own_runs {
                fail!(setting(key), "{key} is about runs of the teacher: add pd_own_runs: true, or leave it out");
            }
        }
        let step = DistillStep {
            step_size,
            substeps,
            student_times: self.run.flow.law(keys.pd_student_schedule),
            teacher_times: self.run.flow.law(keys.pd_teacher_schedule),
            own_runs: keys
                .pd_own_runs
                .then_some(OwnRuns { leap_at: keys.pd_leap_at, guide_scale: keys.pd_guide_scale }),
        };
        step.check()?;
        Ok(step)
    }
}

/// The identity of the teacher, which stays the same in all rounds and after interruptions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherRecord {
    /// The path or id that the user gave.
    pub name: String,
    /// Its local path; for a run, that of the checkpoint that was the latest at the start.
    pub place: PathBuf,
    /// Whether its averaged parameters are used.
    pub averaged: bool,
    /// The hash of its parameters.
    pub blake3: String,
}

/// The initial parameters of a student.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StudentStart {
    /// Those of the teacher.
    Teacher,
    /// The averaged parameters of this checkpoint.
    Checkpoint(PathBuf),
    /// Random parameters.
    Random,
}

/// How a model was distilled; a part of its plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistillationPlan {
    /// The round of the curriculum; `None` for a single round.
    pub round: Option<Round>,
    /// The step that the student learns.
    pub step: DistillStep,
    /// Its teacher.
    pub teacher: TeacherRecord,
    /// Its initial parameters.
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
        assert!(message.contains("epochs must be a number") && message.contains("distill.yml"), "{message}");
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
        for key in NOT_INHERITED {
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
