//! The section that compares samplers and guidance.

use anyhow::Result;
use elf_eval::evaluation::name;
use elf_eval::report::{Axis, Chart, Column, GuideAxis, Plot, PlotKind, Row, Section, Series, Table};

use super::figures::{UNCONDITIONAL_METRICS, unconditional_columns};
use crate::reproduce::mini::settings::{DECODED_AT, GUIDE_SCALE, Model, STEPS, TASKS, Writer};
use crate::reproduce::mini::texts::SamplerStudy;
use crate::reproduce::mini::{Mini, names};
use crate::reproduce::results::Results;

/// Makes the section.
pub fn samplers(mini: &Mini, results: &Results) -> Result<Section> {
    let study = mini.sampler_study();
    Ok(Section::new("Samplers and guidance")
        .with(all_settings(&study, results)?)
        .with(
            Plot::new("samplers", "SDE and ODE", PlotKind::Lines(sde_and_ode(mini, &study, results)?))
                .caption("SDE with gamma 1.5, w 3 for both."),
        )
        .with(Plot::new("gamma", "What gamma and guidance trade", PlotKind::Scatter(trades(&study, results)?)).caption(
            "More of each makes text more probable and less varied, up to a point. Numbers are gamma, w and s.",
        ))
        .with(condition_guidance(&study, results)?))
}

/// A table with a row for each setting.
fn all_settings(study: &SamplerStudy, results: &Results) -> Result<Table> {
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
    Ok(table)
}

/// Perplexity over steps.
fn sde_and_ode(mini: &Mini, study: &SamplerStudy, results: &Results) -> Result<Chart> {
    let lines = Chart::new(Axis::log("steps"), Axis::log("Gen. PPL"));
    let mut sde = Vec::new();
    for (system, _) in
        mini.systems(&TASKS[0]).into_iter().filter(|(system, _)| system.writer == Writer::Plain(Model::Elf))
    {
        if let Some(steps) = system.steps {
            sde.extend(results.quality_point(&system.stage, steps)?);
        }
    }
    let mut straight = Vec::new();
    for setting in &study.ode {
        straight.extend(results.quality_point(&setting.stage, setting.steps)?);
    }
    Ok(lines.series(Series::new("SDE", sde)).series(Series::new("ODE", straight)))
}

/// Perplexity over entropy along each setting that trades one for the other.
fn trades(study: &SamplerStudy, results: &Results) -> Result<Chart> {
    let mut chart = Chart::new(Axis::new("entropy (nats)"), Axis::log("Gen. PPL"));
    let settings = [("gamma", &study.gammas), ("guidance w", &study.scales), ("autoguidance s", &study.guide_scales)];
    for (label, studied) in settings {
        let mut points = Vec::new();
        for setting in studied {
            points.extend(results.frontier_point(&setting.stage, &setting.value)?);
        }
        chart = chart.series(Series::new(label, points));
    }
    if let Some(entropy) = results.evaluation(&names::test_texts())?.get(name::ENTROPY) {
        chart = chart.guide(GuideAxis::X, entropy.value, "data");
    }
    Ok(chart)
}

/// A table of condition guidance scales.
fn condition_guidance(study: &SamplerStudy, results: &Results) -> Result<Table> {
    let mut guidance = Table::new(
        format!("Condition guidance in translation, ODE, {STEPS} steps."),
        [Column::new("scale"), Column::higher("BLEU").decimals(2), Column::higher("ROUGE-L").decimals(2)],
    );
    for setting in &study.condition_guidance {
        let evaluation = results.evaluation(&setting.stage)?;
        let label = format!("s {}", setting.value);
        guidance = guidance.row(Row::of_evaluation(label, &evaluation, &[name::BLEU, name::ROUGE_L]));
    }
    Ok(guidance)
}
