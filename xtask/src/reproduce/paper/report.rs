//! The report of one of the paper's presets: our numbers next to the published ones.

use anyhow::Result;
use elf_eval::evaluation::name;
use elf_eval::report::{Axis, Cell, Chart, Column, Plot, PlotKind, Point, Report, Row, Section, Series, Table};

use super::{DISTILLATION_SOURCE, Paper, SOURCE};
use crate::reproduce::preset::Preset;
use crate::reproduce::results::{Results, today};

/// Makes the report.
///
/// # Errors
/// If a stage's results cannot be read.
pub fn report(paper: &Paper, results: &Results) -> Result<Report> {
    let conditional = matches!(paper.preset, Preset::DeEn | Preset::Xsum);
    let section =
        if conditional { conditional_section(paper, results)? } else { unconditional_section(paper, results)? };
    let flag = if paper.from_released { " --from-released" } else { "" };
    Ok(Report {
        title: title(paper.preset).to_owned(),
        date: today(),
        summary: vec![if paper.from_released {
            "The authors' released checkpoint, sampled and judged by this program.".to_owned()
        } else {
            "Trained, sampled and judged by this program with the released recipe.".to_owned()
        }],
        provenance: results.provenance(format!("cargo xtask reproduce {}{flag}", paper.preset.name())),
        sections: vec![section],
    })
}

fn title(preset: Preset) -> &'static str {
    match preset {
        Preset::Mini | Preset::OwtB => "ELF-B on OpenWebText",
        Preset::OwtM => "ELF-M on OpenWebText",
        Preset::OwtL => "ELF-L on OpenWebText",
        Preset::DeEn => "ELF-B on WMT14, German to English",
        Preset::Xsum => "ELF-B on XSum",
        Preset::Pd => "ELF-B on OpenWebText in few steps",
    }
}

fn unconditional_section(paper: &Paper, results: &Results) -> Result<Section> {
    let source = if paper.preset == Preset::Pd { DISTILLATION_SOURCE } else { SOURCE };
    let mut table = Table::new(
        "1,000 samples of 1,024 tokens, judged by GPT-2 Large.",
        [
            Column::new("sampler"),
            Column::lower("Gen. PPL").decimals(1),
            Column::new("entropy").unit("nats").decimals(2),
            Column::new("Gen. PPL, published").decimals(1).published(source),
            Column::new("entropy, published").decimals(2).published(source),
            Column::lower("texts with a repeated 5-gram").decimals(2),
        ],
    );
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for setting in paper.settings() {
        let evaluation = results.evaluation(&setting.stage)?;
        let mut row =
            Row::of_evaluation(&setting.label, &evaluation, &[name::GEN_PPL, name::ENTROPY, name::REPEATED_5GRAM]);
        row.cells.insert(3, Cell::from(setting.published.ppl));
        row.cells.insert(4, Cell::from(setting.published.entropy));
        table = table.row(row);
        ours.extend(results.quality_point(&setting.stage, setting.steps)?);
        theirs.extend(setting.published.ppl.map(|ppl| Point::new(setting.steps as f64, ppl)));
    }
    let chart = Chart::new(Axis::log("steps"), Axis::log("Gen. PPL"))
        .series(Series::new("this program", ours))
        .series(Series::new("published", theirs).published(source));
    let shown = paper.settings().pop().map(|setting| (setting.stage, setting.label));
    let mut section = Section::new("Generative perplexity").with(table).with(
        Plot::new("steps", "Quality against steps", PlotKind::Lines(chart))
            .caption("Published numbers are hollow and dashed."),
    );
    if let Some((stage, label)) = shown {
        section = section.with(results.samples("Samples", &[(stage, label)], 4)?);
    }
    Ok(section)
}

fn conditional_section(paper: &Paper, results: &Results) -> Result<Section> {
    let translation = paper.preset == Preset::DeEn;
    let metrics: &[&str] = if translation { &[name::BLEU] } else { &[name::ROUGE_1, name::ROUGE_2, name::ROUGE_L] };
    let mut columns = vec![Column::new("sampler")];
    columns.extend(metrics.iter().map(|&metric| Column::higher(metric).decimals(1)));
    columns
        .extend(metrics.iter().map(|metric| Column::new(format!("{metric}, published")).decimals(1).published(SOURCE)));
    let mut table = Table::new(
        "The authors' token data hold a training and a validation split; the published numbers are of the test split.",
        columns,
    );
    let mut shown = None;
    for setting in paper.settings() {
        let mut row = Row::of_evaluation(&setting.label, &results.evaluation(&setting.stage)?, metrics);
        match setting.published.rouge {
            Some(rouge) => row.cells.extend(rouge.map(Cell::from)),
            None => row.cells.push(Cell::from(setting.published.bleu)),
        }
        table = table.row(row);
        shown = Some((setting.stage, setting.label));
    }
    let mut section = Section::new(if translation { "Translation" } else { "Summaries" }).with(table);
    if let Some((stage, label)) = shown {
        section = section.with(results.samples("Samples", &[(stage, label)], 8)?);
    }
    Ok(section)
}
