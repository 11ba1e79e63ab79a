//! The sections of trainings: ablations, distillation, and the losses of the models that are compared.

use anyhow::Result;
use elf_eval::report::{Axis, Block, Cell, Chart, Column, Number, Plot, PlotKind, Row, Section, Series, Table};

use super::figures::{UNCONDITIONAL_METRICS, steps, unconditional_columns};
use crate::reproduce::mini::samplers::Sampler;
use crate::reproduce::mini::settings::{ABLATIONS, COMPARED, Model, STEPS, TASKS, Writer};
use crate::reproduce::mini::{Mini, names};
use crate::reproduce::results::Results;

/// The section of the ablations.
pub fn ablations(epochs: f64, results: &Results) -> Result<Section> {
    let mut columns = unconditional_columns();
    columns.insert(1, Column::lower("validation loss").decimals(3));
    columns[0] = Column::new("change");
    let mut table = Table::new(
        format!(
            "One change each (the T5 with random weights has four layers of 256 channels), {epochs} passes over the training texts, sampled with {} in {STEPS} steps.",
            Sampler::of(&TASKS[0])
        ),
        columns,
    );
    let note = table.add_footnote(
        "Losses with other latents, other predictions or other shares of decode rows cannot be compared with this one: compare the samples.",
    );
    let mut heading = "";
    for ablation in ABLATIONS {
        let evaluation = results.evaluation(&names::ablation_texts(ablation))?;
        let mut row = Row::of_evaluation(ablation.label, &evaluation, &UNCONDITIONAL_METRICS);
        let loss = results.last(&names::ablation(ablation), "validation_loss")?;
        let comparable = !["encoder", "prediction", "decode rows"].contains(&ablation.group);
        row.cells.insert(
            1,
            loss.map_or(Cell::Empty, |loss| {
                let loss = Number::new(loss);
                Cell::Number(if comparable { loss } else { loss.footnote(note) })
            }),
        );
        if ablation.group != heading {
            heading = ablation.group;
            row = row.group(heading);
        }
        table = table.row(row);
    }
    Ok(Section::new("Ablations on the definitions").with(table))
}

/// The section of the distilled student.
pub fn distillation(mini: &Mini, results: &Results) -> Result<Section> {
    let mut table = Table::new(
        format!(
            "A student that learned its teacher's runs from noise, for 4 steps, in {} steps of training. It is sampled with {}, its teacher with {}, \
             which takes twice as many passes for each step.",
            mini.scale.distillation_steps,
            Sampler::few_steps(),
            Sampler::of(&TASKS[0])
        ),
        unconditional_columns(),
    );
    let students = mini.students().into_iter().map(|(n, stage)| (n, stage.name)).collect::<Vec<_>>();
    let teacher = mini.scale.steps.iter().map(|&n| (n, names::texts(&TASKS[0], Writer::Plain(Model::Elf), Some(n))));
    let mut chart = Chart::new(Axis::log("steps"), Axis::log("Gen. PPL"));
    for (label, texts) in [("student", students), ("teacher", teacher.collect())] {
        let mut points = Vec::new();
        for (number, (n, stage)) in texts.iter().enumerate() {
            let evaluation = results.evaluation(stage)?;
            let row = Row::of_evaluation(steps(*n), &evaluation, &UNCONDITIONAL_METRICS);
            table = table.row(if number == 0 { row.group(label) } else { row });
            let collapsed = evaluation.is_collapsed();
            points.extend(results.quality_point(stage, *n)?.map(|point| point.collapsed(collapsed)));
        }
        chart = chart.series(Series::new(label, points));
    }
    Ok(Section::new("Few steps")
        .with(table)
        .with(Plot::new("distilled", "Student and teacher", PlotKind::Lines(chart)).caption("Steps of sampling.")))
}

/// The section of held-out losses.
pub fn trainings(results: &Results) -> Result<Section> {
    let mut section = Section::new("Trainings");
    let mut table = Table::new(
        "Held-out figures at the end of each training. ELF's loss is no likelihood; MDLM's is an upper bound on the nats for each token, \
         GPT-2's is exact. Where ELF's last passes have settings of their own, its loss jumps there; where MDLM learns translations by GPT-2s, its \
         figures are of real ones.",
        [
            Column::new("task"),
            Column::new("system"),
            Column::new("steps"),
            Column::new("validation loss").decimals(3),
            Column::new("NLL").unit("nats/token").decimals(3),
        ],
    );
    for task in &TASKS {
        let mut chart = Chart::new(Axis::new("optimiser steps"), Axis::new("validation loss"));
        for (number, model) in COMPARED.into_iter().enumerate() {
            let stage = names::training(task, model);
            let course = results.course(&stage, "validation_loss")?;
            let row = Row::new([
                Cell::from(if number == 0 { task.name } else { "" }),
                Cell::from(model.label()),
                course.last().map(|&(step, _)| step).into(),
                course.last().map(|&(_, loss)| loss).into(),
                results.last(&stage, "validation_nll")?.into(),
            ]);
            table = table.row(row);
            if model == Model::Elf {
                chart = chart
                    .series(Series::of("validation", course))
                    .series(Series::of("training", results.course(&stage, "loss")?));
            }
        }
        section = section.with(
            Plot::new(format!("loss-{}", task.name), format!("ELF's loss on {}", task.name), PlotKind::Lines(chart))
                .caption("Of the averaged parameters on held-out texts, and of training batches."),
        );
    }
    section.blocks.insert(0, Block::Table(table));
    Ok(section)
}
