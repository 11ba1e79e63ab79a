//! The summary of the report.

use anyhow::Result;
use elf_eval::evaluation::{Evaluation, name};

use super::figures::{conditional_metrics, figure};
use crate::reproduce::mini::settings::{Model, STEPS, TASKS, Writer};
use crate::reproduce::mini::{Mini, names};
use crate::reproduce::results::Results;

/// The summary: which system is better, by the figures alone.
pub fn findings(mini: &Mini, results: &Results) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let of = |writer, steps| results.evaluation(&names::texts(&TASKS[0], writer, steps));
    let mdlm = of(Writer::Plain(Model::Mdlm), Some(STEPS))?;
    for (writer, steps) in
        [(Writer::Plain(Model::Elf), Some(STEPS)), (Writer::Guided, Some(STEPS)), (Writer::Plain(Model::Blocks), None)]
    {
        let (label, elf) = (writer.label(), of(writer, steps)?);
        let (Some((ppl, text)), Some((other, other_text))) =
            (figure(&elf, name::GEN_PPL), figure(&mdlm, name::GEN_PPL))
        else {
            continue;
        };
        let standing = |evaluation: &Evaluation| {
            evaluation.collapse().map_or(String::new(), |collapse| collapse.sentence.trim_end_matches('.').to_owned())
        };
        let collapsed = elf.is_collapsed();
        let (verdict, note) = match (ppl < other, collapsed) {
            (true, false) => ("lower", ""),
            (true, true) => ("lower", ", but at collapsed entropy, which is no win"),
            (false, _) => ("not lower", ""),
        };
        found.push(format!(
            "Unconditional text: the Gen. PPL of {text} of {label} is {verdict} than MDLM's {other_text} at {STEPS} steps{note}. {label}: {}. MDLM: {}.",
            standing(&elf),
            standing(&mdlm)
        ));
    }
    for task in &TASKS[1..] {
        let (_, metric) = conditional_metrics(task);
        let mut scores = Vec::new();
        for (system, _) in mini.systems(task) {
            if let Some((value, text)) = figure(&results.evaluation(&system.stage)?, metric) {
                scores.push((system.writer, value, text));
            }
        }
        let (own, others): (Vec<_>, Vec<_>) =
            scores.into_iter().partition(|(writer, ..)| matches!(writer, Writer::Plain(Model::Elf | Model::Blocks)));
        let Some((best_writer, best, best_text)) = others.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)) else {
            continue;
        };
        let best_label = best_writer.label();
        for (writer, value, text) in own {
            let verdict = if value > best { "above" } else { "below" };
            found.push(format!(
                "{}: the {metric} of {text} of {} is {:.1} {verdict} that of the best baseline ({best_label}, {best_text}).",
                task.title,
                writer.label(),
                (value - best).abs()
            ));
        }
    }
    found.extend(few_steps(mini, results)?);
    Ok(found)
}

/// The purpose of distillation: a student in few steps, its teacher in as few, and the teacher in its usual number of steps.
fn few_steps(mini: &Mini, results: &Results) -> Result<Option<String>> {
    const FEW: u64 = 4;
    let students = mini.students();
    let at = |is_student: bool| -> Result<Option<Evaluation>> {
        let student = students.iter().find(|student| (student.steps, student.is_student) == (FEW, is_student));
        student.map(|student| results.evaluation(&student.texts.name)).transpose()
    };
    let (Some(student), Some(teacher)) = (at(true)?, at(false)?) else { return Ok(None) };
    let long = results.evaluation(&names::texts(&TASKS[0], Writer::Plain(Model::Elf), Some(STEPS)))?;
    let in_words = |evaluation: &Evaluation| {
        let (_, ppl) = figure(evaluation, name::GEN_PPL)?;
        let entropy = evaluation.get(name::ENTROPY)?.value;
        let collapsed = evaluation.is_collapsed();
        Some(format!("{ppl} at {entropy:.2} nats of entropy{}", if collapsed { " (collapsed)" } else { "" }))
    };
    let (Some(student), Some(teacher), Some(long)) = (in_words(&student), in_words(&teacher), in_words(&long)) else {
        return Ok(None);
    };
    Ok(Some(format!(
        "Few steps: the student distilled for {FEW} steps has a Gen. PPL of {student}, its teacher in {FEW} steps {teacher}, in {STEPS} steps {long}."
    )))
}
