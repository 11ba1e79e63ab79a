//! `report.html`: a single self-contained file.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::Laid;
use super::model::{Block, Direction, PlotKind, Provenance, SampleList, Table};
use super::number::written;
use super::plot::dark_rules;
use super::table::{Head, ReadyCell, ReadyRow, ReadyTable};
use super::text::clean;

/// Plots with more numbers than this have no table of them below.
const MAX_NUMBERS: usize = 80;

/// The page.
pub fn page(laid: &Laid) -> String {
    let report = laid.report;
    let style = format!(
        "{}@media screen and (prefers-color-scheme: dark) {{{}}}",
        include_str!("style.css"),
        dark_rules("figure.plot svg ")
    );
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (text(&report.title)) }
                style { (PreEscaped(style)) }
            }
            body {
                div class="page" {
                    header {
                        h1 { (text(&report.title)) }
                        p class="byline" {
                            @for fact in [&report.date, &report.provenance.preset, &report.provenance.revision] {
                                @if !fact.is_empty() { span { (text(fact)) } }
                            }
                        }
                    }
                    main {
                        @if !report.summary.is_empty() {
                            div class="summary" { @for paragraph in &report.summary { p { (text(paragraph)) } } }
                        }
                        (contents(laid))
                        @for (section, id) in report.sections.iter().zip(&laid.sections) {
                            section aria-labelledby=(id) {
                                h2 id=(id) { (text(&section.title)) }
                                @if section.blocks.is_empty() { p class="missing" { "Nothing was measured here." } }
                                @for block in &section.blocks { (self::block(laid, block)) }
                            }
                        }
                        (provenance(&report.provenance))
                    }
                    footer { "Everything on this page is in this file; nothing is loaded. Plots and tables: elf-eval " (env!("CARGO_PKG_VERSION")) "." }
                }
            }
        }
    };
    page.into_string()
}

fn text(text: &str) -> String {
    clean(text)
}

fn contents(laid: &Laid) -> Markup {
    html! {
        @if laid.sections.len() > 1 {
            nav class="contents" aria-label="Contents" {
                ol {
                    @for (section, id) in laid.report.sections.iter().zip(&laid.sections) {
                        li { a href={ "#" (id) } { (text(&section.title)) } }
                    }
                    li { a href="#provenance" { "Where the numbers come from" } }
                }
            }
        }
    }
}

fn block(laid: &Laid, block: &Block) -> Markup {
    match block {
        Block::Heading(words) => html! { h3 { (text(words)) } },
        Block::Paragraph(words) => html! { p { (text(words)) } },
        Block::Note(words) => html! { p class="note" role="note" { (text(words)) } },
        Block::Code(words) => html! { pre { code { (text(words)) } } },
        Block::Table(table) => self::table(table),
        Block::Samples(samples) => self::samples(samples),
        Block::Plot(plot) => {
            let drawn = laid.plot(plot);
            html! {
                figure class="plot" {
                    (caption(&plot.title, &plot.caption))
                    @match drawn.and_then(|d| d.drawing.as_ref().map(|drawing| (drawing, &d.name))) {
                        Some((drawing, name)) => {
                            (PreEscaped(drawing.inline(&format!("plot-{name}"))))
                            @if drawing.omitted > 0 { p class="legend" { (omitted(drawing.omitted)) } }
                        }
                        None => p class="missing" { "Nothing to draw: there are no numbers." }
                    }
                    @if let Some(numbers) = numbers(&plot.kind) {
                        details { summary { "Numbers" } (self::table(&numbers)) }
                    }
                }
            }
        }
    }
}

/// A remark on points that are not in a plot.
pub fn omitted(points: usize) -> String {
    let (are, s) = if points == 1 { ("is", "") } else { ("are", "s") };
    format!("{points} point{s} {are} not drawn: not a finite number, or not above zero on a logarithmic axis.")
}

/// The numbers of a plot as a table, unless there are too many to read.
fn numbers(kind: &PlotKind) -> Option<Table> {
    use super::model::{Cell, Column, Row};
    let table = match kind {
        PlotKind::Scatter(chart) | PlotKind::Lines(chart) => {
            let columns = ["series", &chart.x.label, &chart.y.label, "label"].map(Column::new);
            let rows = chart.series.iter().flat_map(|s| {
                s.points.iter().map(|p| {
                    let label = p.label.clone().unwrap_or_default() + if p.collapsed { " (collapsed)" } else { "" };
                    Row::new([Cell::from(s.name.as_str()), p.x.into(), p.y.into(), label.into()])
                })
            });
            Table { rows: rows.collect(), ..Table::new("", columns) }
        }
        PlotKind::Bars(chart) => {
            let names = chart.series.iter().map(|s| if s.name.is_empty() { &chart.axis.label } else { &s.name });
            let columns = std::iter::once(Column::new("")).chain(names.map(Column::new));
            let rows = chart.groups.iter().enumerate().map(|(i, group)| {
                let values = chart.series.iter().map(|s| Cell::from(s.values.get(i).copied().flatten()));
                Row::new(std::iter::once(Cell::from(group.as_str())).chain(values))
            });
            Table { rows: rows.collect(), ..Table::new("", columns) }
        }
    };
    (1..=MAX_NUMBERS).contains(&table.rows.len()).then_some(table)
}

/// A caption with a highlighted first sentence.
fn caption(first: &str, rest: &str) -> Markup {
    html! { figcaption { strong { (text(first)) } @if !rest.is_empty() { " " (text(rest)) } } }
}

/// The first sentence of a caption, and the rest.
fn first_sentence(caption: &str) -> (&str, &str) {
    // Not after a number or an abbreviation: the next sentence begins with a capital.
    let ends = caption.match_indices(". ").map(|(at, _)| at + 1);
    let end = ends.into_iter().find(|&end| caption[end..].trim_start().starts_with(char::is_uppercase));
    let (first, rest) = caption.split_at(end.unwrap_or(caption.len()));
    (first, rest.trim_start())
}

fn table(table: &Table) -> Markup {
    let ready = ReadyTable::of(table);
    let empty = ready.rows.is_empty() || ready.heads.is_empty();
    html! {
        // A short table stays on one page of paper.
        figure class=(classes(&[("table", true), ("short", ready.rows.len() <= 16)])) {
            @if !table.caption.is_empty() {
                @let (first, rest) = first_sentence(&table.caption);
                (caption(first, rest))
            }
            div class="scroll" role="region" tabindex="0" aria-label=(text(if table.caption.is_empty() { "Table" } else { &table.caption })) {
                table {
                    thead { tr { @for head in &ready.heads { (self::head(head)) } } }
                    tbody {
                        @for row in &ready.rows {
                            @if let Some(group) = &row.group {
                                tr class="group" { th scope="rowgroup" colspan=(ready.heads.len()) { (text(group)) } }
                            }
                            (self::row(row, &ready.heads))
                        }
                    }
                }
            }
            @if empty { p class="missing" { "Nothing was measured here." } }
            @if !ready.legend.is_empty() { p class="legend" { (ready.legend) } }
            @if !ready.notes.is_empty() { ol class="notes" { @for note in &ready.notes { li { (text(note)) } } } }
        }
    }
}

fn head(head: &Head) -> Markup {
    let published = head.published.is_some();
    html! {
        th scope="col" class=(classes(&[("number", head.numeric), ("published", published)])) {
            @if published { span class="tag" { "published" } }
            (text(&head.title))
            @if let Some(note) = head.published { sup { (note + 1) } }
            @match head.better {
                Some(Direction::Higher) => span class="arrow" title="higher is better" aria-label="higher is better" role="img" { "↑" },
                Some(Direction::Lower) => span class="arrow" title="lower is better" aria-label="lower is better" role="img" { "↓" },
                None => ""
            }
        }
    }
}

fn row(row: &ReadyRow, heads: &[Head]) -> Markup {
    let tag = row.standing.tag();
    html! {
        tr class=[tag] {
            @for (i, (cell, head)) in row.cells.iter().zip(heads).enumerate() {
                @if i == 0 && !cell.number {
                    th scope="row" {
                        (text(&cell.text))
                        @for note in &row.notes { sup { (note + 1) } }
                        @if let Some(tag) = tag { span class="tag" { (tag) } }
                    }
                } @else {
                    td class=(classes(&[("number", head.numeric || cell.number), ("published", head.published.is_some())])) {
                        (self::cell(cell))
                        @if i == 0 { @for note in &row.notes { sup { (note + 1) } } @if let Some(tag) = tag { span class="tag" { (tag) } } }
                    }
                }
            }
        }
    }
}

fn cell(cell: &ReadyCell) -> Markup {
    html! {
        @if cell.best { strong { (text(&cell.text)) } } @else { (text(&cell.text)) }
        @if let Some(uncertainty) = &cell.uncertainty { span class="uncertainty" { (uncertainty) } }
        @if let Some(note) = cell.note { sup { (note + 1) } }
    }
}

fn classes(classes: &[(&str, bool)]) -> String {
    classes.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect::<Vec<_>>().join(" ")
}

fn samples(list: &SampleList) -> Markup {
    html! {
        h3 { (text(&list.title)) }
        p class="legend" { "Picked by rule: " (text(&list.picked)) }
        @if list.samples.is_empty() { p class="missing" { "There are no samples." } }
        ul class="samples" {
            @for sample in &list.samples {
                @let single = sample.source.is_none() && sample.reference.is_none() && matches!(sample.outputs.as_slice(), [(name, _)] if name.is_empty());
                li {
                    span class="index" { (sample.index) }
                    dl class=(classes(&[("single", single)])) {
                        @for (name, words) in [("source", &sample.source), ("reference", &sample.reference)] {
                            @if let Some(words) = words { dt { (name) } dd class="given" dir="auto" { (text(words)) } }
                        }
                        @for (name, words) in &sample.outputs {
                            @if !single { dt { (text(if name.is_empty() { "output" } else { name })) } }
                            dd dir="auto" {
                                @if words.trim().is_empty() { span class="missing" { "(empty)" } } @else { (text(words)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn provenance(of: &Provenance) -> Markup {
    let facts = super::facts(of);
    html! {
        section aria-labelledby="provenance" {
            h2 id="provenance" { "Where the numbers come from" }
            @if !facts.is_empty() {
                dl class="facts" { @for (name, value) in &facts { dt { (text(name)) } dd { (text(value)) } } }
            }
            @if !of.command.is_empty() { pre { code { (text(&of.command)) } } }
            @if !of.stages.is_empty() { (table(&super::costs(&of.stages))) }
            @if !of.configs.is_empty() { (table(&super::config_table(&of.configs))) }
            @if facts.is_empty() && of.stages.is_empty() && of.configs.is_empty() { p class="missing" { "Not stated." } }
        }
    }
}

/// A time in seconds, in readable units.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if !s.is_finite() || s < 0.0 => "n/a".into(),
        s if s < 99.5 => format!("{} s", written(s, usize::from(s < 9.95))),
        s if s < 99.5 * 60.0 => format!("{} min", written(s / 60.0, usize::from(s < 9.95 * 60.0))),
        s => format!("{} h", written(s / 3600.0, 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caption_stands_out_by_its_first_sentence() {
        let split = |caption| first_sentence(caption);
        assert_eq!(split("What it costs. Times are of one device."), ("What it costs.", "Times are of one device."));
        assert_eq!(split("Gen. perplexity vs. steps"), ("Gen. perplexity vs. steps", ""));
        assert_eq!(split(""), ("", ""));
        assert_eq!(split("Ends so. "), ("Ends so. ", ""));
    }
}
