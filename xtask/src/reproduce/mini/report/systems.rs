//! The sections that compare ELF with its baselines.

use anyhow::Result;
use elf_eval::evaluation::name;
use elf_eval::report::{Axis, Chart, Column, GuideAxis, Plot, PlotKind, Row, RowKind, Section, Series, Table};

use super::figures::{SHOWN, UNCONDITIONAL_METRICS, conditional_metrics, steps_label, unconditional_columns};
use crate::reproduce::mini::samplers::Sampler;
use crate::reproduce::mini::settings::{Model, STEPS, TASKS, Task, Writer};
use crate::reproduce::mini::texts::System;
use crate::reproduce::mini::{Mini, names};
use crate::reproduce::results::Results;
use crate::reproduce::stage::StageName;

/// The systems of unconditional text, in the order of legends.
const WRITERS: [Writer; 4] =
    [Writer::Plain(Model::Elf), Writer::PaperSampler, Writer::Plain(Model::Mdlm), Writer::Plain(Model::Gpt2)];

/// The section of unconditional text.
pub fn unconditional(mini: &Mini, results: &Results) -> Result<Section> {
    let task = &TASKS[0];
    let systems: Vec<System> = mini.systems(task).into_iter().map(|(system, _)| system).collect();
    let data = results.evaluation(&names::test_texts())?;
    let mut table = Table::new(
        "Definitions from nothing. The judge is a GPT-2 trained on the same training texts and used for nothing else. \
         Entropy in nats; repeats: share of texts with a 5-gram of words twice; copied run: words of the longest run that a training text \
         has too, on average; copies: share of texts that are training texts. ± is the standard error over seeds. Only systems whose \
         entropy is at most 5% under the data's compete.",
        unconditional_columns(),
    )
    .row(Row::of_evaluation("test texts", &data, &UNCONDITIONAL_METRICS).kind(RowKind::Reference));
    for system in &systems {
        let evaluation = results.evaluation(&system.stage)?;
        table = table.row(Row::of_evaluation(steps_label(system), &evaluation, &UNCONDITIONAL_METRICS));
    }

    let mut frontier = Chart::new(Axis::new("entropy (nats)"), Axis::log("Gen. PPL"));
    let mut quality = Chart::new(Axis::log("steps"), Axis::log("Gen. PPL"));
    for writer in WRITERS {
        let (mut points, mut course) = (Vec::new(), Vec::new());
        for system in systems.iter().filter(|system| system.writer == writer) {
            let text = system.steps.map_or(String::new(), |steps| steps.to_string());
            points.extend(results.frontier_point(&system.stage, &text)?);
            if let Some(steps) = system.steps {
                course.extend(results.quality_point(&system.stage, steps)?);
            }
        }
        frontier = frontier.series(Series::new(writer.label(), points));
        if !course.is_empty() {
            quality = quality.series(Series::new(writer.label(), course));
        }
    }
    frontier = frontier.series(Series::new("test texts", results.frontier_point(&names::test_texts(), "")?));
    if let Some(entropy) = data.get(name::ENTROPY) {
        frontier = frontier.guide(GuideAxis::X, entropy.value, "data");
    }
    let shown: Vec<(StageName, String)> = systems
        .iter()
        .filter(|system| system.steps.is_none_or(|steps| steps == STEPS))
        .map(|system| (system.stage.clone(), system.writer.label()))
        .collect();
    Ok(Section::new(task.title)
        .paragraph(format!(
            "WordNet's definitions of at most 18 words. ELF and MDLM write all words at once. ELF is sampled with {}, and once with the paper's \
             sampler, {}; MDLM by ancestral sampling; GPT-2 at temperature 1. Passes over the training texts: {}.",
            Sampler::of(task),
            Sampler::paper_sde(),
            passes(mini, task),
        ))
        .with(results.samples(&format!("What they write ({STEPS} steps)"), &shown, SHOWN)?)
        .with(table)
        .with(
            Plot::new("frontier", "Perplexity and entropy", PlotKind::Scatter(frontier)).caption(
                "Lower is better only at the data's entropy: text of little variety is easy to predict. Numbers are steps.",
            ),
        )
        .with(Plot::new("steps", "Quality against steps", PlotKind::Lines(quality)).caption("GPT-2 needs one step for each token.")))
}

/// The passes of each model over the data of a task, in words.
fn passes(mini: &Mini, task: &Task) -> String {
    let epochs = mini.epochs(task);
    let gpt2 = format!("GPT-2 at most {} with its best evaluation kept", epochs.min(mini.scale.gpt2_epochs));
    let blocks = if task.blocks { format!(", ELF, token by token {}", mini.scale.block_epochs) } else { String::new() };
    format!("ELF and MDLM {epochs}, {gpt2}{blocks}")
}

/// The section of a conditional task.
pub fn conditional(mini: &Mini, task: &Task, results: &Results) -> Result<Section> {
    let systems: Vec<System> = mini.systems(task).into_iter().map(|(system, _)| system).collect();
    let (metrics, _) = conditional_metrics(task);
    let columns = std::iter::once(Column::new("system")).chain(metrics.iter().map(|&metric| {
        if metric == name::LENGTH { Column::new("words").decimals(1) } else { Column::higher(metric).decimals(2) }
    }));
    let mut method = None;
    let mut caption = format!(
        "The test split. All are of one size; ELF, token by token has a further table of the vocabulary's size. ELF is sampled with {}, token by \
         token with {}. ± is the standard error over seeds, brackets are 95% of a bootstrap over examples. Passes over the training pairs: {}.",
        Sampler::of(task),
        Sampler::blocks(task),
        passes(mini, task),
    );
    if task.learns_translations {
        caption.push_str(
            " ELF and MDLM learn translations of the training sources by GPT-2s, none of which has seen the sources that it translates; \
             GPT-2, and ELF, token by token learn the real ones.",
        );
    }
    if task.from_blocks {
        caption.push_str(" ELF begins as ELF, token by token, whose passes come in addition, and has its table.");
    }
    let mut table = Table::new(caption, columns);
    for system in &systems {
        let evaluation = results.evaluation(&system.stage)?;
        method = method.or_else(|| evaluation.get(name::BLEU).and_then(|bleu| bleu.method.clone()));
        table = table.row(Row::of_evaluation(steps_label(system), &evaluation, &metrics));
    }
    let shown: Vec<(StageName, String)> =
        systems.iter().map(|system| (system.stage.clone(), system.writer.label())).collect();
    let mut section = Section::new(task.title).with(table);
    if let Some(method) = method {
        section = section.paragraph(format!("BLEU signature: {method}"));
    }
    Ok(section.with(results.samples("What they write", &shown, SHOWN)?))
}
