//! The report of the preset `mini`.

use anyhow::Result;
use elf_eval::evaluation::{Evaluation, name};
use elf_eval::report::{
    Axis, Block, Cell, Chart, Column, GuideAxis, Number, Plot, PlotKind, Report, Row, RowKind, Section, Series, Table,
};

use super::mini::Mini;
use super::mini_samplers::{BLOCKS, CONDITIONAL_BLOCKS, FEW_STEPS, GUIDED, PAPER_SDE};
use super::mini_settings::{
    BLOCK_ELF, DECODED_AT, GUIDE_SCALE, GUIDED_ELF, OBJECTIVES, PLAIN_ELF, STEPS, System, TASKS, Task, ablation_stage,
    system_label,
};
use super::results::{Results, today};

/// How many samples of each system are shown.
const SHOWN: usize = 8;

/// Figures of unconditional text, in the order of tables.
const UNCONDITIONAL_METRICS: [&str; 8] = [
    name::GEN_PPL,
    name::ENTROPY,
    name::DISTINCT[1],
    name::DISTINCT[3],
    name::REPEATED_5GRAM,
    name::LENGTH,
    name::COPIED_RUN,
    name::EXACT_COPIES,
];

/// The stage of the test texts' own evaluation.
const DATA: &str = "eval/descriptions/data";

/// Makes the report.
///
/// # Errors
/// If a stage's results cannot be read.
pub fn report(mini: &Mini, results: &Results, quick: bool) -> Result<Report> {
    let mut sections = vec![unconditional(mini, results)?];
    for task in &TASKS[1..] {
        sections.push(conditional(mini, task, results)?);
    }
    if mini.scale.sampler_study {
        sections.push(samplers(mini, results)?);
    }
    sections.push(ablations(mini, results)?);
    sections.push(distillation(mini, results)?);
    sections.push(trainings(results)?);
    let mut summary = findings(mini, results)?;
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

fn unconditional_columns() -> Vec<Column> {
    vec![
        Column::new("system"),
        Column::lower("Gen. PPL"),
        Column::new("entropy").decimals(2),
        Column::new("distinct-2").decimals(2),
        Column::new("distinct-4").decimals(2),
        Column::lower("repeats").decimals(2),
        Column::new("words").decimals(1),
        Column::new("copied run").decimals(1),
        Column::lower("copies").decimals(3),
    ]
}

fn steps_label(system: &System) -> String {
    match system.steps {
        Some(n) => format!("{}, {}", system.label, steps(n)),
        None => system.label.clone(),
    }
}

/// So many steps, in words.
fn steps(n: u64) -> String {
    format!("{n} step{}", if n == 1 { "" } else { "s" })
}

fn unconditional(mini: &Mini, results: &Results) -> Result<Section> {
    let systems: Vec<System> = mini.comparison().into_iter().map(|(system, _)| system).collect();
    let data = results.evaluation(DATA)?;
    let mut table = Table::new(
        "Package descriptions from nothing. The judge is a GPT-2 trained longer on the same training texts and used for nothing else. \
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
    for label in [PLAIN_ELF, GUIDED_ELF, BLOCK_ELF, "MDLM", "GPT-2"] {
        let (mut points, mut course) = (Vec::new(), Vec::new());
        for system in systems.iter().filter(|system| system.label == label) {
            let text = system.steps.map_or(String::new(), |steps| steps.to_string());
            points.extend(results.frontier_point(&system.stage, &text)?);
            if let Some(steps) = system.steps {
                course.extend(results.quality_point(&system.stage, steps)?);
            }
        }
        frontier = frontier.series(Series::new(label, points));
        if !course.is_empty() {
            quality = quality.series(Series::new(label, course));
        }
    }
    frontier = frontier.series(Series::new("test texts", results.frontier_point(DATA, "")?));
    if let Some(entropy) = data.get(name::ENTROPY) {
        frontier = frontier.guide(GuideAxis::X, entropy.value, "data");
    }
    let shown: Vec<(String, String)> = systems
        .iter()
        .filter(|system| system.steps.is_none_or(|steps| steps == STEPS))
        .map(|system| (system.stage.clone(), system.label.clone()))
        .collect();
    Ok(Section::new(TASKS[0].title)
        .paragraph(format!(
            "First sentences of Debian's package descriptions, of at most 31 tokens, none twice. ELF is sampled with {PAPER_SDE}; \
             guided, with {} and for a guide the ablations' run of the same recipe ({} passes), which doubles what a step costs; the model that \
             writes token by token, trained for {} passes and with a table of the vocabulary's size besides, with {BLOCKS}; MDLM by ancestral sampling; GPT-2 at temperature 1.",
            GUIDED,
            mini.scale.ablation_epochs,
            mini.scale.block_epochs[0]
        ))
        .with(table)
        .with(
            Plot::new("frontier", "Perplexity and entropy", PlotKind::Scatter(frontier)).caption(
                "Lower is better only at the data's entropy: text of little variety is easy to predict. Numbers are steps.",
            ),
        )
        .with(Plot::new("steps", "Quality against steps", PlotKind::Lines(quality)).caption("GPT-2 needs one step a token."))
        .with(results.samples(&format!("What they write ({STEPS} steps)"), &shown, SHOWN)?))
}

/// The names of the figures of a conditional task and which of them decides.
fn conditional_metrics(task: &Task) -> ([&'static str; 5], &'static str) {
    match task.name {
        "de-en" => ([name::BLEU, name::ROUGE_1, name::ROUGE_2, name::ROUGE_L, name::LENGTH], name::BLEU),
        _ => ([name::ROUGE_1, name::ROUGE_2, name::ROUGE_L, name::BLEU, name::LENGTH], name::ROUGE_L),
    }
}

fn conditional(mini: &Mini, task: &Task, results: &Results) -> Result<Section> {
    let systems: Vec<System> = mini.conditional(task).into_iter().map(|(system, _)| system).collect();
    let (metrics, _) = conditional_metrics(task);
    let passes = TASKS.iter().zip(mini.scale.block_epochs).find(|(of, _)| of.name == task.name).map_or(0.0, |(_, n)| n);
    let columns = std::iter::once(Column::new("system")).chain(metrics.iter().map(|&metric| {
        if metric == name::LENGTH { Column::new("words").decimals(1) } else { Column::higher(metric).decimals(2) }
    }));
    let mut method = None;
    let mut table = Table::new(
        format!(
            "The test split; equal sizes, data and passes over the data, except for ELF, token by token: it has a table of the \
             vocabulary's size besides, made {passes} passes and is sampled with {CONDITIONAL_BLOCKS}. ± is the standard error over seeds, \
             brackets are 95% of a bootstrap over examples."
        ),
        columns,
    );
    for system in &systems {
        let evaluation = results.evaluation(&system.stage)?;
        method = method.or_else(|| evaluation.get(name::BLEU).and_then(|bleu| bleu.method.clone()));
        table = table.row(Row::of_evaluation(steps_label(system), &evaluation, &metrics));
    }
    let shown: Vec<(String, String)> =
        systems.iter().map(|system| (system.stage.clone(), system.label.clone())).collect();
    let mut section = Section::new(task.title).with(table);
    if let Some(method) = method {
        section = section.paragraph(format!("BLEU signature: {method}"));
    }
    Ok(section.with(results.samples("What they write", &shown, SHOWN)?))
}

fn samplers(mini: &Mini, results: &Results) -> Result<Section> {
    let study = mini.sampler_study();
    let mut table = Table::new("The same trained model under other samplers.", unconditional_columns());
    let groups = [
        ("ODE".to_owned(), &study.ode, "", " steps"),
        (format!("SDE, {STEPS} steps"), &study.gammas, "gamma ", ""),
        (format!("Self-conditioning guidance, {STEPS} steps"), &study.scales, "w ", ""),
        (format!("Autoguidance, {STEPS} steps, decoded at {DECODED_AT}"), &study.guide_scales, "s ", ""),
        (format!("Time of decoding, {STEPS} steps, autoguidance {GUIDE_SCALE}"), &study.decode_times, "t ", ""),
        (format!("Grid, {STEPS} steps"), &study.grids, "", " grid"),
    ];
    for (heading, settings, before, after) in groups {
        for (number, setting) in settings.iter().enumerate() {
            let label = format!("{before}{}{after}", setting.value);
            let row = Row::of_evaluation(label, &results.evaluation(&setting.stage)?, &UNCONDITIONAL_METRICS);
            table.rows.push(if number == 0 { row.group(&heading) } else { row });
        }
    }

    let mut lines = Chart::new(Axis::log("steps"), Axis::log("Gen. PPL"));
    let mut sde = Vec::new();
    for (system, _) in mini.comparison().into_iter().filter(|(system, _)| system.label == PLAIN_ELF) {
        if let Some(steps) = system.steps {
            sde.extend(results.quality_point(&system.stage, steps)?);
        }
    }
    let mut straight = Vec::new();
    for setting in &study.ode {
        straight.extend(results.quality_point(&setting.stage, setting.steps)?);
    }
    lines = lines.series(Series::new("SDE", sde)).series(Series::new("ODE", straight));

    let mut frontier = Chart::new(Axis::new("entropy (nats)"), Axis::log("Gen. PPL"));
    let mut by_gamma = Vec::new();
    for setting in &study.gammas {
        by_gamma.extend(results.frontier_point(&setting.stage, &setting.value)?);
    }
    let mut by_scale = Vec::new();
    for setting in &study.scales {
        by_scale.extend(results.frontier_point(&setting.stage, &setting.value)?);
    }
    let mut by_guide = Vec::new();
    for setting in &study.guide_scales {
        by_guide.extend(results.frontier_point(&setting.stage, &setting.value)?);
    }
    frontier = frontier
        .series(Series::new("gamma", by_gamma))
        .series(Series::new("guidance w", by_scale))
        .series(Series::new("autoguidance s", by_guide));
    if let Some(entropy) = results.evaluation(DATA)?.get(name::ENTROPY) {
        frontier = frontier.guide(GuideAxis::X, entropy.value, "data");
    }

    let mut guidance = Table::new(
        format!("Condition guidance in translation, ODE, {STEPS} steps."),
        [Column::new("scale"), Column::higher("BLEU").decimals(2), Column::higher("ROUGE-L").decimals(2)],
    );
    for setting in &study.condition_guidance {
        let evaluation = results.evaluation(&setting.stage)?;
        let label = format!("s {}", setting.value);
        guidance = guidance.row(Row::of_evaluation(label, &evaluation, &[name::BLEU, name::ROUGE_L]));
    }
    Ok(Section::new("Samplers and guidance")
        .with(table)
        .with(Plot::new("samplers", "SDE and ODE", PlotKind::Lines(lines)).caption("SDE with gamma 1.5, w 3 for both."))
        .with(Plot::new("gamma", "What gamma and guidance trade", PlotKind::Scatter(frontier)).caption(
            "More of each makes text more probable and less varied, up to a point. Numbers are gamma, w and s.",
        ))
        .with(guidance))
}

fn ablations(mini: &Mini, results: &Results) -> Result<Section> {
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
        "Losses of other latents, other predictions and other shares of decode rows are losses of another thing: compare the samples.",
    );
    let mut heading = "";
    for ablation in mini.scale.ablations {
        let evaluation = results.evaluation(&ablation_stage(ablation))?;
        let mut row = Row::of_evaluation(ablation.label, &evaluation, &UNCONDITIONAL_METRICS);
        let loss = results.last(&format!("train/ablations/{}", ablation.name), "validation_loss")?;
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

fn distillation(mini: &Mini, results: &Results) -> Result<Section> {
    let students = mini.students();
    let mut table = Table::new(
        format!(
            "Progressive distillation: students of the model of descriptions beside their teacher at the same steps, both sampled with {FEW_STEPS}. \
             Each round took {} passes over the training texts.",
            mini.scale.distillation_epochs
        ),
        unconditional_columns(),
    );
    let mut chart = Chart::new(Axis::log("steps"), Axis::log("Gen. PPL"));
    for (own, label) in [(true, "students"), (false, "teacher")] {
        let mut points = Vec::new();
        let mut first = true;
        for (steps, _, stage) in students.iter().filter(|(_, of, _)| *of == own) {
            let evaluation = results.evaluation(&stage.name)?;
            let row = Row::of_evaluation(self::steps(*steps), &evaluation, &UNCONDITIONAL_METRICS);
            table = table.row(if first { row.group(label) } else { row });
            first = false;
            let collapsed = evaluation.is_collapsed();
            points.extend(results.quality_point(&stage.name, *steps)?.map(|point| point.collapsed(collapsed)));
        }
        chart = chart.series(Series::new(label, points));
    }
    Ok(Section::new("Few steps").with(table).with(
        Plot::new("distilled", "Students and teacher", PlotKind::Lines(chart))
            .caption("Each student has a step count of its own."),
    ))
}

fn trainings(results: &Results) -> Result<Section> {
    let mut section = Section::new("Trainings");
    let mut table = Table::new(
        "Held-out figures at the end of each training. ELF's loss is no likelihood; MDLM's is an upper bound on the nats a token that \
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
        for (number, objective) in OBJECTIVES.into_iter().enumerate() {
            let stage = format!("train/{}/{objective}", task.name);
            let course = results.course(&stage, "validation_loss")?;
            let row = Row::new([
                Cell::from(if number == 0 { task.name } else { "" }),
                Cell::from(system_label(objective)),
                course.last().map(|&(step, _)| step).into(),
                course.last().map(|&(_, loss)| loss).into(),
                results.last(&stage, "validation_nll")?.into(),
            ]);
            table = table.row(row);
            if objective == "elf" {
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

/// The value of a figure, with the standard error if there is one.
fn figure(evaluation: &Evaluation, metric: &str) -> Option<(f64, String)> {
    let metric = evaluation.get(metric)?;
    let text = match metric.standard_error {
        Some(error) => format!("{:.1} ± {error:.1}", metric.value),
        None => format!("{:.1}", metric.value),
    };
    Some((metric.value, text))
}

/// What a hurried reader must know: who wins, by the figures alone.
fn findings(mini: &Mini, results: &Results) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let at = |objective: &str| results.evaluation(&format!("eval/descriptions/{objective}-{STEPS}"));
    let mdlm = at("mdlm")?;
    let in_blocks = results.evaluation("eval/descriptions/elf-blocks")?;
    for (label, elf) in [(PLAIN_ELF, at("elf")?), (GUIDED_ELF, at("elf-guided")?), (BLOCK_ELF, in_blocks)] {
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
        for (system, _) in mini.conditional(task) {
            if let Some((value, text)) = figure(&results.evaluation(&system.stage)?, metric) {
                scores.push((system.label, value, text));
            }
        }
        let (own, others): (Vec<_>, Vec<_>) =
            scores.into_iter().partition(|(label, ..)| [PLAIN_ELF, BLOCK_ELF].contains(&label.as_str()));
        let Some((best_label, best, best_text)) = others.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)) else {
            continue;
        };
        for (label, value, text) in own {
            let verdict = if value > best { "above" } else { "below" };
            found.push(format!(
                "{}: the {metric} of {text} of {label} is {:.1} {verdict} that of the best baseline ({best_label}, {best_text}).",
                task.title,
                (value - best).abs()
            ));
        }
    }
    found.extend(few_steps(mini, results)?);
    Ok(found)
}

/// What distillation is for: the student of so many steps beside its teacher at as few, and at as many as it is used with.
fn few_steps(mini: &Mini, results: &Results) -> Result<Option<String>> {
    const FEW: u64 = 4;
    let students = mini.students();
    let at = |own: bool| -> Result<Option<Evaluation>> {
        let stage = students.iter().find(|(steps, of, _)| (*steps, *of) == (FEW, own));
        stage.map(|(_, _, stage)| results.evaluation(&stage.name)).transpose()
    };
    let (Some(student), Some(teacher)) = (at(true)?, at(false)?) else { return Ok(None) };
    let long = results.evaluation(&format!("eval/descriptions/elf-{STEPS}"))?;
    let told = |evaluation: &Evaluation| {
        let (_, ppl) = figure(evaluation, name::GEN_PPL)?;
        let entropy = evaluation.get(name::ENTROPY)?.value;
        let collapsed = evaluation.is_collapsed();
        Some(format!("{ppl} at {entropy:.2} nats of entropy{}", if collapsed { " (collapsed)" } else { "" }))
    };
    let (Some(student), Some(teacher), Some(long)) = (told(&student), told(&teacher), told(&long)) else {
        return Ok(None);
    };
    Ok(Some(format!(
        "Few steps: the student distilled for {FEW} steps has a Gen. PPL of {student}, its teacher in {FEW} steps {teacher}, in {STEPS} steps {long}."
    )))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Value, json};

    use super::*;
    use crate::reproduce::mini_settings::{FULL, QUICK, Scale};
    use crate::reproduce::results::pretended;

    /// A preset whose stages all ended, each with a perplexity of its own: ELF's 200, guided 150, MDLM's 180, others' 300.
    fn report_of(scale: &Scale) -> Report {
        let root = tempfile::tempdir().unwrap();
        let mini = Mini { work: "w", scale };
        let stages = mini.stages();
        let runner = pretended::runner(root.path());
        let outcomes: Vec<_> = stages.iter().map(|stage| pretended::outcome(root.path(), &stage.name, "h")).collect();
        for (stage, outcome) in &outcomes {
            let write = |file: &str, text: String| fs::write(outcome.folder.join(file), text).unwrap();
            let metrics = json!({"step": 7, "loss": 1.5, "validation_loss": 1.25, "validation_nll": 1.125});
            write("metrics.jsonl", metrics.to_string());
            write(
                "samples-0.jsonl",
                (0..8).map(|i| format!("{}\n", json!({"index": i, "prediction": stage}))).collect(),
            );
            let ppl = [
                ("elf-guided-", 150.0),
                ("elf-blocks", 20.0),
                ("descriptions/elf-", 200.0),
                ("mdlm-", 180.0),
                ("student-4", 210.0),
            ];
            let ppl = ppl.iter().find(|(part, _)| stage.contains(part)).map_or(300.0, |(_, ppl)| *ppl);
            let names =
                UNCONDITIONAL_METRICS.into_iter().chain(TASKS.iter().flat_map(|task| conditional_metrics(task).0));
            let all: Vec<Value> = names
                .map(|name| json!({"name": name, "value": if name == name::GEN_PPL { ppl } else { 2.5 }, "method": "by hand"}))
                .collect();
            write("eval.json", json!({"schema": 1, "title": stage, "metrics": all}).to_string());
        }
        let results = Results { runner: &runner, stages: &stages, outcomes: &outcomes, preset: "mini" };
        report(&mini, &results, false).unwrap()
    }

    /// Every stage that the report asks for is one of the preset's, and every evaluation that is made is shown.
    #[test]
    fn the_report_shows_what_the_stages_made() {
        for scale in [&FULL, &QUICK] {
            let text = report_of(scale).to_markdown();
            for system in
                ["ELF, 32 steps", "ELF, guided, 32 steps", "MDLM, 32 steps", "GPT-2", "student", "GPT-2, beam 4"]
            {
                assert!(text.contains(system), "{system} is missing in\n{text}");
            }
            for ablation in scale.ablations {
                assert!(text.contains(ablation.label), "{}", ablation.label);
            }
            assert!(text.contains("200.0 of ELF is not lower than MDLM's 180.0"), "{text}");
            assert!(text.contains("150.0 of ELF, guided is lower than MDLM's 180.0"), "{text}");
            assert!(text.contains("20.0 of ELF, token by token is lower than MDLM's 180.0"), "{text}");
            for elf in ["ELF", "ELF, token by token"] {
                let found =
                    format!("the BLEU of 2.5 of {elf} is 0.0 below that of the best baseline (GPT-2, beam 4, 2.5)");
                assert!(text.contains(&found), "{found} in\n{text}");
            }
            let few = "for 4 steps has a Gen. PPL of 210.0 at 2.50 nats of entropy, its teacher in 4 steps 300.0 at 2.50 nats of \
                       entropy, in 32 steps 200.0";
            assert!(text.contains(few) && text.contains("| 1 step "), "{text}");
            assert_eq!(scale.sampler_study, text.contains("Autoguidance"));
        }
    }
}
