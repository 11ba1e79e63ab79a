//! The results of stages, read for the report; and the report, written.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use elf_eval::evaluation::{Evaluation, name};
use elf_eval::report::{ConfigHash, Point, Provenance, Report, SampleList, StageCost};
use serde_json::{Value, json};

use super::runner::{Outcome, Runner};
use super::stage::{Stage, StageName};
use super::work_folder::{Record, short};

/// Everything that a report is made from.
pub struct Results<'a> {
    /// The runner of the stages.
    pub runner: &'a Runner,
    /// The stages.
    pub stages: &'a [Stage],
    /// Their outcomes.
    pub outcomes: &'a [(StageName, Outcome)],
    /// The preset's full name.
    pub preset: &'a str,
}

impl Results<'_> {
    fn outcome(&self, stage: &StageName) -> Result<&Outcome> {
        match self.outcomes.iter().find(|(name, _)| name == stage) {
            Some((_, outcome)) => Ok(outcome),
            None => bail!("the report needs the stage {stage}, which was not done"),
        }
    }

    /// The evaluation that a stage has written.
    pub fn evaluation(&self, stage: &StageName) -> Result<Evaluation> {
        let path = self.outcome(stage)?.folder.join("eval.json");
        let text = fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        Evaluation::from_json(&text).with_context(|| format!("{} is no evaluation", path.display()))
    }

    /// Perplexity over entropy, as a point that says whether the samples collapsed.
    pub fn frontier_point(&self, stage: &StageName, label: &str) -> Result<Option<Point>> {
        let evaluation = self.evaluation(stage)?;
        let point = match (evaluation.get(name::ENTROPY), evaluation.get(name::GEN_PPL)) {
            (Some(entropy), Some(ppl)) => Some(Point::new(entropy.value, ppl).label(label)),
            _ => None,
        };
        let collapsed = evaluation.is_collapsed();
        Ok(point.map(|point| point.collapsed(collapsed)))
    }

    /// Perplexity over steps.
    pub fn quality_point(&self, stage: &StageName, steps: u64) -> Result<Option<Point>> {
        Ok(self.evaluation(stage)?.get(name::GEN_PPL).map(|ppl| Point::new(steps as f64, ppl)))
    }

    /// The course of a figure over the steps of a training stage.
    pub fn course(&self, stage: &StageName, figure: &str) -> Result<Vec<(f64, f64)>> {
        let path = self.outcome(stage)?.folder.join("metrics.jsonl");
        let text = fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(lines.filter_map(|line| Some((line.get("step")?.as_f64()?, line.get(figure)?.as_f64()?))).collect())
    }

    /// The last value of a figure of a training stage.
    pub fn last(&self, stage: &StageName, figure: &str) -> Result<Option<f64>> {
        Ok(self.course(stage, figure)?.last().map(|&(_, value)| value))
    }

    /// The first `number` samples of seed 0 of several systems, each a stage and a name, side by side.
    pub fn samples(&self, title: &str, systems: &[(StageName, String)], number: usize) -> Result<SampleList> {
        let files = systems
            .iter()
            .map(|(stage, label)| Ok((label.as_str(), self.outcome(stage)?.folder.join("samples-0.jsonl"))))
            .collect::<Result<Vec<_>>>()?;
        let files: Vec<(&str, &Path)> = files.iter().map(|(label, path)| (*label, path.as_path())).collect();
        SampleList::read(title, "seed 0", &files, 0..number).context("the report cannot show samples")
    }

    /// The origin of the numbers and their cost.
    pub fn provenance(&self, command: String) -> Provenance {
        let stages = self.outcomes.iter().map(|(name, outcome)| StageCost {
            name: name.to_string(),
            seconds: outcome.record.seconds,
            note: self.note(&outcome.record),
        });
        let configs = self.outcomes.iter().filter(|(name, _)| name.is_in("train") || name.is_in("judge"));
        Provenance {
            host: self.runner.host.clone(),
            revision: self.runner.revision.clone(),
            preset: self.preset.to_owned(),
            command,
            configs: configs
                .map(|(name, outcome)| ConfigHash {
                    name: name.to_string(),
                    hash: short(&outcome.record.hash).to_owned(),
                })
                .collect(),
            stages: stages.collect(),
            facts: Vec::new(),
        }
    }

    /// The differences of a stage's run from this one.
    fn note(&self, record: &Record) -> String {
        let other_revision =
            (record.revision != self.runner.revision).then(|| format!("at revision {}", record.revision));
        let other_host = (record.host != self.runner.host).then(|| format!("on {}", record.host));
        let at_once = (record.jobs > 1).then(|| format!("{} stages at once", record.jobs));
        [other_revision, other_host, at_once].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    /// All figures of all stages, for programs: evaluations whole, of trainings the last of each figure.
    fn metrics(&self) -> Result<Value> {
        let mut stages = serde_json::Map::new();
        for (name, outcome) in self.outcomes {
            let mut entry = json!({
                "seconds": outcome.record.seconds,
                "jobs": outcome.record.jobs,
                "inputs": short(&outcome.record.hash),
                "revision": outcome.record.revision,
                "host": outcome.record.host,
                "calls": self.stages.iter().find(|stage| &stage.name == name).map(|stage| {
                    stage.calls.iter().map(|call| call.words.join(OsStr::new(" ")).to_string_lossy().into_owned()).collect::<Vec<_>>()
                }),
            });
            if outcome.folder.join("eval.json").exists() {
                entry["evaluation"] = serde_json::from_str(&self.evaluation(name)?.to_json()?)?;
            }
            let path = outcome.folder.join("metrics.jsonl");
            if let Ok(text) = fs::read_to_string(&path) {
                let mut last = serde_json::Map::new();
                for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
                    if let Value::Object(line) = line {
                        last.extend(line);
                    }
                }
                entry["training"] = Value::Object(last);
            }
            stages.insert(name.to_string(), entry);
        }
        Ok(json!({
            "preset": self.preset,
            "host": self.runner.host,
            "revision": self.runner.revision,
            "stages": stages,
        }))
    }
}

/// Writes `report.html`, `report.md` with its plots, and `metrics.json` into a folder.
///
/// # Errors
/// If a stage's files cannot be read or the folder cannot be written to.
pub fn write(report: &Report, results: &Results, folder: &Path) -> Result<Vec<PathBuf>> {
    let written =
        report.write(folder).with_context(|| format!("the report cannot be written to {}", folder.display()))?;
    let path = folder.join("metrics.json");
    let text = serde_json::to_string_pretty(&results.metrics()?)?;
    elf_files::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))?;
    Ok(vec![written.html, written.markdown, path])
}

/// The date in UTC, 2026-05-31.
pub fn today() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%d").to_string()
}

/// Stages that never ran, for tests of reports.
#[cfg(test)]
pub mod pretended {
    use super::super::work_folder::WorkFolder;
    use super::*;

    pub fn runner(root: &Path) -> Runner {
        Runner {
            elf: "elf".into(),
            root: root.to_owned(),
            work: WorkFolder::new(root.to_owned()),
            revision: "r".to_owned(),
            host: "h".to_owned(),
            jobs: 1,
        }
    }

    pub fn outcome(root: &Path, name: &str, host: &str) -> (StageName, Outcome) {
        let folder = root.join(name);
        fs::create_dir_all(&folder).unwrap();
        let record = Record {
            jobs: 1,
            hash: "0123456789abcdef".to_owned(),
            finished: true,
            seconds: 61.0,
            at: 0,
            revision: "r".to_owned(),
            host: host.to_owned(),
        };
        (name.into(), Outcome { record, folder })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_and_samples_of_stages_are_found() {
        let root = tempfile::tempdir().unwrap();
        let runner = pretended::runner(root.path());
        let outcome = |name: &str, host: &str| pretended::outcome(root.path(), name, host);
        let outcomes = vec![outcome("train/x", "h"), outcome("eval/a", "h"), outcome("eval/b", "elsewhere")];
        fs::write(
            root.path().join("train/x/metrics.jsonl"),
            "{\"step\": 1, \"loss\": 2.5}\n{\"step\": 2, \"validation_loss\": 2.0}\n{\"step\": 2, \"loss\": 1.5}\n{\"st",
        )
        .unwrap();
        for (stage, word) in [("a", "one"), ("b", "two")] {
            let line = |i| json!({"index": i, "prediction": word, "input": "s", "seed": 5}).to_string();
            let lines: Vec<String> = (0..3).map(line).collect();
            fs::write(root.path().join("eval").join(stage).join("samples-0.jsonl"), lines.join("\n")).unwrap();
        }
        let results = Results { runner: &runner, stages: &[], outcomes: &outcomes, preset: "p" };
        assert_eq!(results.course(&"train/x".into(), "loss").unwrap(), [(1.0, 2.5), (2.0, 1.5)]);
        assert_eq!(results.last(&"train/x".into(), "validation_loss").unwrap(), Some(2.0));
        let systems = [("eval/a", "A"), ("eval/b", "B")].map(|(stage, label)| (stage.into(), label.to_owned()));
        let list = results.samples("t", &systems, 2).unwrap();
        assert_eq!(list.samples.len(), 2);
        assert_eq!(list.samples[1].outputs, [("A", "one"), ("B", "two")].map(|(a, b)| (a.to_owned(), b.to_owned())));
        assert_eq!(list.samples[1].source.as_deref(), Some("s"));

        let provenance = results.provenance("c".to_owned());
        assert_eq!(provenance.configs.len(), 1);
        assert!(provenance.stages[0].note.is_empty());
        assert!(provenance.stages[2].note.contains("elsewhere"));
        assert!(results.evaluation(&"eval/none".into()).unwrap_err().to_string().contains("eval/none"));
        assert_eq!(results.metrics().unwrap()["stages"]["train/x"]["training"]["validation_loss"], 2.0);
    }

    #[test]
    fn a_date_has_the_form_of_folders() {
        let today = today();
        assert_eq!(today.len(), 10);
        assert!(today.chars().all(|c| c.is_ascii_digit() || c == '-'));
    }
}
