//! The summary of the report.

use anyhow::Result;
use elf_eval::evaluation::{Evaluation, name};

use super::figures::{conditional_metrics, figure};
use super::filling;
use crate::reproduce::mini::settings::{Model, STEPS, TASKS, Writer};
use crate::reproduce::mini::{Mini, names};
use crate::reproduce::results::Results;

/// The summary: which system is better, by the figures alone.
pub fn findings(mini: &Mini, results: &Results) -> Result<Vec<String>> {
    let mut found: Vec<String> = [unconditional(results)?, filling::finding(results)?, few_steps(mini, results)?]
        .into_iter()
        .flatten()
        .collect();
    for task in &TASKS[1..] {
        let (_, metric) = conditional_metrics(task);
        let mut scores = Vec::new();
        for (system, _) in mini.systems(task) {
            if let Some((value, text)) = figure(&results.evaluation(&system.stage)?, metric) {
                scores.push((system.writer, value, text));
            }
        }
        let (own, others): (Vec<_>, Vec<_>) =
            scores.into_iter().partition(|(writer, ..)| matches!(writer.model(), Model::Elf | Model::Blocks));
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
    Ok(found)
}

/// Texts from nothing: ELF beside real ones, the baselines, and itself under the paper's sampler.
fn unconditional(results: &Results) -> Result<Option<String>> {
    let of = |writer, steps| results.evaluation(&names::texts(&TASKS[0], writer, steps));
    let elf = of(Writer::Plain(Model::Elf), Some(STEPS))?;
    let others = [
        results.evaluation(&names::test_texts())?,
        of(Writer::Plain(Model::Mdlm), Some(STEPS))?,
        of(Writer::Plain(Model::Gpt2), None)?,
        of(Writer::PaperSampler, Some(STEPS))?,
    ];
    let Some((own, own_text)) = figure(&elf, name::GEN_PPL) else { return Ok(None) };
    let others: Vec<_> = others.iter().filter_map(|other| figure(other, name::GEN_PPL)).collect();
    let [(data, data_text), (mdlm, mdlm_text), (gpt2, gpt2_text), (_, paper_text)] = others.as_slice() else {
        return Ok(None);
    };
    let standing =
        elf.collapse().map_or(String::new(), |collapse| format!(" {}.", collapse.sentence.trim_end_matches('.')));
    Ok(Some(format!(
        "Texts from nothing, all words at once, in {STEPS} steps: ELF's Gen. PPL is {:.2} times that of the test texts ({own_text} and \
         {data_text}), {:.2} times MDLM's of {mdlm_text} in as many, and {:.2} times GPT-2's of {gpt2_text}, which writes token by token; under the paper's \
         sampler it is {paper_text}.{standing}",
        own / data,
        own / mdlm,
        own / gpt2,
    )))
}

/// The purpose of distillation: a student in few steps, its teacher in as few, and the teacher in its usual number of steps.
fn few_steps(mini: &Mini, results: &Results) -> Result<Option<String>> {
    const FEW: u64 = 4;
    let Some((_, student)) = mini.students().into_iter().find(|(steps, _)| *steps == FEW) else { return Ok(None) };
    let teacher = |steps| results.evaluation(&names::texts(&TASKS[0], Writer::Plain(Model::Elf), Some(steps)));
    let in_words = |evaluation: &Evaluation| {
        let (_, ppl) = figure(evaluation, name::GEN_PPL)?;
        let entropy = evaluation.get(name::ENTROPY)?.value;
        let collapsed = evaluation.is_collapsed();
        Some(format!("{ppl} at {entropy:.2} nats{}", if collapsed { " (collapsed)" } else { "" }))
    };
    let evaluations = [results.evaluation(&student.name)?, teacher(FEW)?, teacher(STEPS)?];
    let words: Option<Vec<String>> = evaluations.iter().map(in_words).collect();
    let Some([student, few, long]) = words.as_deref() else { return Ok(None) };
    Ok(Some(format!(
        "Few steps: the student in {FEW} steps has a Gen. PPL of {student}, its teacher in as many {few} and in {STEPS} {long}."
    )))
}
