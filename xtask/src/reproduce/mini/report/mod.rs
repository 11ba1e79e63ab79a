//! The report of the preset `mini`.

mod figures;
mod filling;
mod findings;
mod samplers;
mod systems;
mod trainings;

use anyhow::Result;
use elf_eval::report::Report;

use super::Mini;
use super::settings::TASKS;
use crate::reproduce::results::{Results, today};

/// Makes the report.
///
/// # Errors
/// If a stage's results cannot be read.
pub fn report(mini: &Mini, results: &Results, quick: bool) -> Result<Report> {
    let mut sections = vec![
        systems::unconditional(mini, results)?,
        filling::filling(mini, results)?,
        trainings::distillation(mini, results)?,
    ];
    for task in &TASKS[1..] {
        sections.push(systems::conditional(mini, task, results)?);
    }
    if mini.scale.sampler_study {
        sections.push(samplers::samplers(mini, results)?);
    }
    sections.push(trainings::ablations(mini.scale.ablation_epochs, results)?);
    sections.push(trainings::trainings(results)?);
    let mut summary = findings::findings(mini, results)?;
    if quick {
        summary.insert(
            0,
            "This is the quick form: every kind of stage ran, with so little training that the figures say nothing about ELF. \
             The full preset is for that."
                .to_owned(),
        );
    }
    Ok(Report {
        title: "ELF and its baselines on three small tasks".to_owned(),
        date: today(),
        summary,
        provenance: results.provenance(format!("cargo xtask reproduce mini{}", if quick { " --quick" } else { "" })),
        sections,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use serde_json::{Value, json};

    use elf_eval::evaluation::name;

    use super::figures::{UNCONDITIONAL_METRICS, conditional_metrics};
    use super::filling::FILLING_METRICS;
    use super::*;
    use crate::reproduce::mini::settings::{ABLATIONS, FULL, QUICK, Scale};
    use crate::reproduce::results::pretended;

    /// The report of a preset whose stages have all ended. Perplexities are ELF's 150, MDLM's 300, the student's 210, others' 250.
    fn report_of(scale: &Scale) -> Report {
        let root = tempfile::tempdir().unwrap();
        let mini = Mini { work: Path::new("w"), scale };
        let stages = mini.stages();
        let runner = pretended::runner(root.path());
        let outcomes: Vec<_> =
            stages.iter().map(|stage| pretended::outcome(root.path(), stage.name.as_str(), "h")).collect();
        for (stage, outcome) in &outcomes {
            let write = |file: &str, text: String| fs::write(outcome.folder.join(file), text).unwrap();
            let metrics = json!({"step": 7, "loss": 1.5, "validation_loss": 1.25, "validation_nll": 1.125});
            write("metrics.jsonl", metrics.to_string());
            write(
                "samples-0.jsonl",
                (0..8).map(|i| format!("{}\n", json!({"index": i, "prediction": stage.as_str()}))).collect(),
            );
            let ppl = [
                ("elf-paper-sampler", 400.0),
                ("definitions/elf-", 150.0),
                ("mdlm-", 300.0),
                ("definitions/data", 100.0),
                ("student-4", 210.0),
            ];
            let ppl = ppl.iter().find(|(part, _)| stage.as_str().contains(part)).map_or(250.0, |(_, ppl)| *ppl);
            let names = UNCONDITIONAL_METRICS.into_iter().chain(FILLING_METRICS[..2].iter().copied());
            let names = names.chain(TASKS.iter().flat_map(|task| conditional_metrics(task).0));
            let all: Vec<Value> = names
                .map(|name| json!({"name": name, "value": if name == name::GEN_PPL { ppl } else { 2.5 }, "method": "by hand"}))
                .collect();
            write("eval.json", json!({"schema": 1, "title": stage.as_str(), "metrics": all}).to_string());
        }
        let results = Results { runner: &runner, stages: &stages, outcomes: &outcomes, preset: "mini" };
        report(&mini, &results, false).unwrap()
    }

    /// Every stage that the report asks for is one of the preset's, and every evaluation that is made is shown.
    #[test]
    fn the_report_shows_what_the_stages_made() {
        for scale in [&FULL, &QUICK] {
            let text = report_of(scale).to_markdown();
            for system in [
                "ELF, 32 steps",
                "ELF, the paper's sampler, 32 steps",
                "MDLM, 32 steps",
                "GPT-2",
                "student",
                "GPT-2, beam 4",
            ] {
                assert!(text.contains(system), "{system} is missing in\n{text}");
            }
            for ablation in ABLATIONS {
                assert!(text.contains(ablation.label), "{}", ablation.label);
            }
            for found in [
                "1.50 times that of the test texts (150.0 and 100.0)",
                "0.50 times MDLM's of 300.0 in as many",
                "0.60 times GPT-2's of 250.0, which writes token by token",
                "400.0",
            ] {
                assert!(text.contains(found), "{found} in\n{text}");
            }
            for elf in ["ELF", "ELF, token by token"] {
                let found =
                    format!("the BLEU of 2.5 of {elf} is 0.0 below that of the best baseline (GPT-2, beam 4, 2.5)");
                assert!(text.contains(&found), "{found} in\n{text}");
            }
            let few = "in 4 steps has a Gen. PPL of 210.0 at 2.50 nats, its teacher in as many 150.0 at 2.50 nats and in 32 150.0 at 2.50 nats";
            assert!(text.contains(few) && text.contains("2 steps"), "{text}");
            assert!(text.contains("2.5 and 2.5 at 15%; 2.5 and 2.5 at 30%") && text.contains("80% hidden"), "{text}");
            assert_eq!(scale.sampler_study, text.contains("word guide"));
        }
    }
}
