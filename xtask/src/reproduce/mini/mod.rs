//! The stages of the preset `mini`: the three embedded tasks, ELF against its baselines, and the ablations, on one machine without
//! network.

mod data;
mod filling;
mod names;
pub mod report;
mod samplers;
pub mod settings;
mod texts;
mod training;

use std::path::{Path, PathBuf};

use self::settings::{ABLATIONS, Scale, TASKS};
use super::stage::{Stage, StageName};

/// Builds the stages of the preset.
pub struct Mini<'a> {
    /// The work folder, relative to the repository.
    pub work: &'a Path,
    /// The amount of training and sampling.
    pub scale: &'a Scale,
}

impl Mini<'_> {
    /// All stages, each after those that it needs.
    pub fn stages(&self) -> Vec<Stage> {
        let mut stages = Vec::new();
        stages.extend(TASKS.iter().map(|task| self.data(task)));
        stages.push(self.judge());
        stages.extend(self.trainings());
        stages.push(self.test_texts());
        stages.extend(TASKS.iter().flat_map(|task| self.systems(task)).map(|(_, stage)| stage));
        if self.scale.sampler_study {
            stages.extend(self.sampler_study().into_iter().filter_map(|studied| studied.made));
        }
        stages.extend(self.fillers());
        stages.extend(self.filled());
        stages.push(self.distillation());
        stages.extend(self.students().into_iter().map(|(_, texts)| texts));
        stages.extend(self.other_encoders());
        stages.extend(ABLATIONS.iter().flat_map(|ablation| self.ablation(ablation)));
        stages
    }

    /// The folder of a stage.
    fn at(&self, stage: &StageName) -> PathBuf {
        self.work.join(stage)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::reproduce::mini::settings::{FULL, QUICK};
    use crate::reproduce::stage::{StageName, hashes};

    fn root() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
    }

    #[test]
    fn stages_are_in_order_and_read_what_is_in_the_repository() {
        for scale in [&FULL, &QUICK] {
            let stages = Mini { work: Path::new("w"), scale }.stages();
            let hashes = hashes(&stages, root()).unwrap();
            let different: BTreeSet<&String> = hashes.values().collect();
            assert_eq!(different.len(), stages.len(), "two stages do the same");
        }
    }

    /// A path in the work folder that a call names belongs to the stage itself or to one that it needs: otherwise the stage would
    /// not notice a change there.
    #[test]
    fn what_a_stage_reads_of_another_it_needs() {
        for scale in [&FULL, &QUICK] {
            let stages = Mini { work: Path::new("w"), scale }.stages();
            let names: Vec<&StageName> = stages.iter().map(|stage| &stage.name).collect();
            for stage in &stages {
                for word in stage.calls.iter().flat_map(|call| &call.words) {
                    let word = word.to_str().unwrap();
                    let path = word.rsplit('=').next().and_then(|path| path.strip_prefix("w/"));
                    let Some(path) = path.and_then(|path| path.split(':').next()) else { continue };
                    let owner = names
                        .iter()
                        .filter(|name| StageName::from(path).is_in(name.as_str()))
                        .max_by_key(|name| name.as_str().len());
                    let owner = owner.unwrap_or_else(|| panic!("{path} belongs to no stage"));
                    assert!(
                        **owner == stage.name || stage.needs.contains(owner),
                        "{} names {path} of {owner} and does not need it",
                        stage.name
                    );
                }
            }
        }
    }

    #[test]
    fn the_quick_one_has_every_kind_of_stage() {
        let kinds = |scale| -> BTreeSet<String> {
            let stages = Mini { work: Path::new("w"), scale }.stages();
            stages.iter().filter_map(|stage| stage.name.as_str().split('/').next().map(str::to_owned)).collect()
        };
        let (full, quick) = (kinds(&FULL), kinds(&QUICK));
        assert_eq!(quick, full);
    }

    #[test]
    fn no_folder_of_a_stage_lies_in_that_of_another() {
        let stages = Mini { work: Path::new("w"), scale: &FULL }.stages();
        for a in &stages {
            for b in &stages {
                assert!(a.name == b.name || !b.name.is_in(a.name.as_str()), "{} lies in {}", b.name, a.name);
            }
        }
    }
}
