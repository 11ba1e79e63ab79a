//! The section that compares settings of the sampler.

use anyhow::Result;
use elf_eval::evaluation::name;
use elf_eval::report::{Axis, Chart, GuideAxis, Plot, PlotKind, Row, Section, Series, Table};

use super::figures::{UNCONDITIONAL_METRICS, unconditional_columns};
use crate::reproduce::mini::samplers::Sampler;
use crate::reproduce::mini::settings::{STEPS, TASKS};
use crate::reproduce::mini::texts::Studied;
use crate::reproduce::mini::{Mini, names};
use crate::reproduce::results::Results;

/// Makes the section.
pub fn samplers(mini: &Mini, results: &Results) -> Result<Section> {
    let study = mini.sampler_study();
    let caption = format!(
        "The same trained model of definitions in {STEPS} steps: its usual setting ({}), one change to it each, and the paper's samplers.",
        Sampler::of(&TASKS[0])
    );
    let mut table = Table::new(caption, unconditional_columns());
    let mut heading = "";
    for setting in &study {
        let row = Row::of_evaluation(&setting.value, &results.evaluation(&setting.stage)?, &UNCONDITIONAL_METRICS);
        let begins = setting.group != heading;
        heading = setting.group;
        table.rows.push(if begins { row.group(heading) } else { row });
    }
    Ok(Section::new("Samplers and guidance").with(table).with(
        Plot::new("samplers", "What each setting trades", PlotKind::Scatter(trades(&study, results)?))
            .caption("Settings that make text more probable make it less varied, up to a point."),
    ))
}

/// Perplexity over entropy along each setting that trades one for the other.
fn trades(study: &[Studied], results: &Results) -> Result<Chart> {
    let mut chart = Chart::new(Axis::new("entropy (nats)"), Axis::log("Gen. PPL"));
    for settings in study.chunk_by(|a, b| a.group == b.group) {
        let mut points = Vec::new();
        for setting in settings {
            points.extend(results.frontier_point(&setting.stage, &setting.value)?);
        }
        let group = settings[0].group;
        chart = chart.series(Series::new(if group.is_empty() { "usual" } else { group }, points));
    }
    if let Some(entropy) = results.evaluation(&names::test_texts())?.get(name::ENTROPY) {
        chart = chart.guide(GuideAxis::X, entropy.value, "data");
    }
    Ok(chart)
}
