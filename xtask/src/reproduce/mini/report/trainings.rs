//! The sections of trainings: ablations, distillation, and the losses of the models that are compared.

use anyhow::Result;
use elf_eval::report::{Axis, Block, Cell, Chart, Column, Number, Plot, PlotKind, Row, Section, Series, Table};

use super::figures::{UNCONDITIONAL_METRICS, steps, unconditional_columns};
use crate::reproduce::mini::samplers::{FEW_STEPS, PAPER_SDE};
use crate::reproduce::mini::settings::{COMPARED, Model, STEPS, TASKS};
use crate::reproduce::mini::{Mini, names};
use crate::reproduce::results::Results;

/// The section of the ablations.
pub fn ablations(mini: &Mini, results: &Results) -> Result<Section> {
    let mut columns = unconditional_columns();
    columns.insert(1, Column::lower("validation loss").decimals(3));
    columns[0] = Column::new("change");
    let mut table = Table::new(
        format!(
            "One change each, {} passes over the training texts, sampled with {PAPER_SDE} in {STEPS} steps.",
            mini.scale.ablation_epochs
        ),
        columns,
    );
    let note = table.add_footnote(
        "Losses with other latents, other predictions or other shares of decode rows cannot be compared with this one: compare the samples.",
    );
    let mut heading = "";
    for ablation in mini.scale.ablations {
        let evaluation = results.evaluation(&names::ablation_texts(ablation))?;
        let mut row = Row::of_evaluation(ablation.label, &evaluation, &UNCONDITIONAL_METRICS);
        let loss = results.last(&names::ablation(ablation), "validation_loss")?;
        let comparable = !["encoder", "decode share"].contains(&ablation.group);
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
    Ok(Section::new("Ablations on the descriptions").with(table))
}

/// The section of distilled students.
pub fn distillation(mini: &Mini, results: &Results) -> Result<Section> {
    let students = mini.students();
    let mut table = Table::new(
        format!(
            "Progressive distillation: students of the model of descriptions and their teacher at the same steps, both sampled with {FEW_STEPS}. \
             Each round took {} passes over the training texts.",
            mini.scale.distillation_epochs
        ),
        unconditional_columns(),
    );
    let mut chart = Chart::new(Axis::log("steps"), Axis::log("Gen. PPL"));
    for (own, label) in [(true, "students"), (false, "teacher")] {
        let mut points = Vec::new();
        let mut first = true;
        for student in students.iter().filter(|student| student.is_student == own) {
            let stage = &student.texts.name;
            let evaluation = results.evaluation(stage)?;
            let row = Row::of_evaluation(steps(student.steps), &evaluation, &UNCONDITIONAL_METRICS);
            table = table.row(if first { row.group(label) } else { row });
            first = false;
            let collapsed = evaluation.is_collapsed();
            points.extend(results.quality_point(stage, student.steps)?.map(|point| point.collapsed(collapsed)));
        }
        chart = chart.series(Series::new(label, points));
    }
    Ok(Section::new("Few steps").with(table).with(
        Plot::new("distilled", "Students and teacher", PlotKind::Lines(chart))
            .caption("Each student has a step count of its own."),
    ))
}

/// The section of held-out losses.
pub fn trainings(results: &Results) -> Result<Section> {
    let mut section = Section::new("Trainings");
    let mut table = Table::new(
        "Held-out figures at the end of each training. ELF's loss is no likelihood; MDLM's is an upper bound on the nats for each token, \
         GPT-2's is exact.",
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
