//! Which rounds of a distillation are carried out, and where their students go.

use std::path::{Path, PathBuf};

use elf_flow::DistillStep;
use elf_train::{Curriculum, Round};

use crate::Result;
use crate::config::DistillConfig;
use crate::error::{Context, fail};

/// The rounds that are carried out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rounds {
    /// The whole curriculum.
    All,
    /// One of its rounds.
    One(Round),
    /// A single round with a step of its own.
    Own(DistillStep),
}

/// The rounds that a caller asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WantedRounds {
    /// One round of the curriculum, by its number.
    pub round: Option<usize>,
    /// A single round with the configuration's `pd_teacher_steps` and `pd_step_size`.
    pub single: bool,
    /// Whether one of these two keys was written by the caller and not by the author of the configuration: it then means such a
    /// single round, too.
    pub own_step: bool,
}

impl Rounds {
    /// Keys of the step of a single round.
    pub const STEP_KEYS: [&'static str; 2] = ["pd_teacher_steps", "pd_step_size"];

    /// The rounds that are wanted. A file of the released code describes its first round and is used for all of them.
    ///
    /// # Errors
    /// If there is no such round, or the keys describe none.
    pub fn of(wanted: WantedRounds, config: &DistillConfig, curriculum: &Curriculum) -> Result<Self> {
        if let Some(number) = wanted.round {
            let last = curriculum.rounds().len();
            let round = curriculum.round(number);
            return round.map(Self::One).with_context(|| format!("there is no round {number}: they are 1 to {last}"));
        }
        let own = match (config.keys.pd_step_size, config.keys.pd_teacher_steps) {
            (Some(step_size), Some(substeps)) => Some(config.step(step_size, substeps)?),
            (None, None) if !wanted.single => None,
            _ => fail!(setting("pd_step_size"), "a round of its own needs both pd_teacher_steps and pd_step_size"),
        };
        match own {
            Some(step) if wanted.single || wanted.own_step => Ok(Self::Own(step)),
            Some(DistillStep { step_size, substeps, .. }) if curriculum.find(step_size, substeps).is_none() => fail!(
                setting("pd_step_size"),
                "pd_teacher_steps {substeps} and pd_step_size {step_size} are those of no round in the curriculum: run that one round \
                 alone with --single, or leave both out"
            ),
            _ => Ok(Self::All),
        }
    }

    /// The step of the round whose student sees the most rows at a time: that of most steps.
    ///
    /// # Errors
    /// If a setting is out of its range.
    pub fn largest_step(&self, config: &DistillConfig, curriculum: &Curriculum) -> Result<DistillStep> {
        match self {
            Self::Own(step) => Ok(*step),
            Self::One(round) => config.step(round.step_size(), round.teacher_steps),
            Self::All => {
                let most = curriculum.rounds().iter().max_by_key(|round| round.student_steps);
                let round = most.context("a curriculum has rounds")?;
                config.step(round.step_size(), round.teacher_steps)
            }
        }
    }

    /// The folder of all rounds. The released configuration names that of the first round, whose parent is meant.
    pub fn root(&self, output: &str, curriculum: &Curriculum) -> PathBuf {
        let output = Path::new(output);
        let of_a_round = |round: &Round| output.file_name().is_some_and(|name| name == round.folder_name().as_str());
        match output.parent() {
            Some(parent) if !matches!(self, Self::Own(_)) && curriculum.rounds().iter().any(of_a_round) => {
                if parent.as_os_str().is_empty() { Path::new(".") } else { parent }.to_owned()
            }
            _ => output.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, read_yaml};

    fn rounds(file: &str, wanted: WantedRounds, options: &[&str]) -> Result<Rounds> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("distill.yml");
        std::fs::write(&path, file).unwrap();
        let config = read_yaml(Some(&path), &Overrides::parse(options).unwrap(), |_| {}).unwrap();
        Rounds::of(WantedRounds { own_step: !options.is_empty(), ..wanted }, &config, &Curriculum::released())
    }

    const FIRST: &str = "pd_teacher_steps: 4\npd_step_size: 0.0625\n";

    #[test]
    fn a_configuration_is_run_as_a_curriculum_or_as_one_round() {
        let step = |size, substeps| DistillConfig::default().step(size, substeps).unwrap();
        let all = WantedRounds::default();
        let single = WantedRounds { single: true, ..all };
        let round = |number| WantedRounds { round: Some(number), ..all };
        assert_eq!(rounds("", all, &[]).unwrap(), Rounds::All);
        assert_eq!(rounds(FIRST, all, &[]).unwrap(), Rounds::All, "the released file");
        assert_eq!(rounds(FIRST, single, &[]).unwrap(), Rounds::Own(step(0.0625, 4)));
        assert_eq!(rounds(FIRST, all, &["pd_step_size=0.125"]).unwrap(), Rounds::Own(step(0.125, 4)));
        assert_eq!(rounds(FIRST, round(3), &[]).unwrap(), Rounds::One(Curriculum::released().rounds()[2]));
        let message = |file, wanted, options: &[&str]| rounds(file, wanted, options).unwrap_err().to_string();
        assert!(message("pd_teacher_steps: 5\npd_step_size: 0.5\n", all, &[]).contains("--single"));
        assert!(message("pd_step_size: 0.5\n", all, &[]).contains("both"));
        assert!(message("", single, &[]).contains("both"));
        assert!(message("", round(6), &[]).contains("1 to 5"));
        assert!(message(FIRST, all, &["pd_step_size=7"]).contains("pd_step_size"));
    }

    #[test]
    fn the_folder_of_a_round_means_the_one_above() {
        let curriculum = Curriculum::released();
        let own = Rounds::Own(DistillConfig::default().step(0.5, 2).unwrap());
        for (rounds, output, root) in [
            (Rounds::All, "out/round1_16step", "out"),
            (Rounds::All, "round1_16step", "."),
            (Rounds::One(curriculum.rounds()[1]), "out/round2_8step/", "out"),
            (Rounds::All, "out/round1", "out/round1"),
            (own, "out/round1_16step", "out/round1_16step"),
        ] {
            assert_eq!(rounds.root(output, &curriculum), Path::new(root), "{output}");
        }
    }
}
