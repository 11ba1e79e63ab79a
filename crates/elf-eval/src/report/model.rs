//! What a report holds: plain data, to be filled by whoever ran the experiments, and readable from JSON.
//!
//! Nothing here is HTML or Markdown: all text is plain and is escaped where it is written. A part
//! that is left empty (a table without rows, a plot without points, no costs) is not an error; the
//! report says that it is missing.

use serde::{Deserialize, Serialize};

use super::number::Number;

/// A whole report.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Report {
    /// The title, such as "ELF on three small tasks".
    pub title: String,
    /// The day of the run, as it is to be printed: 2026-05-31.
    pub date: String,
    /// What a hurried reader must know, one paragraph each.
    pub summary: Vec<String>,
    /// Where the numbers come from.
    pub provenance: Provenance,
    /// The sections, in order.
    pub sections: Vec<Section>,
}

/// Where the numbers of a report come from, and what they cost.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Provenance {
    /// The machine: processor, cores, memory, accelerators.
    pub host: String,
    /// The revision of the program, such as a git commit (say so if the tree had changes).
    pub revision: String,
    /// The preset that was reproduced.
    pub preset: String,
    /// The command that made the report.
    pub command: String,
    /// What was configured, by content.
    pub configs: Vec<ConfigHash>,
    /// What the stages cost.
    pub stages: Vec<StageCost>,
    /// Whatever else identifies the run: name and value.
    pub facts: Vec<(String, String)>,
}

/// A configuration and the hash of its content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigHash {
    /// Name of the file or stage.
    pub name: String,
    /// Hash in hexadecimal.
    pub hash: String,
}

/// What one stage cost.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageCost {
    /// The stage.
    pub name: String,
    /// Wall-clock time in seconds.
    pub seconds: f64,
    /// Where it ran, how many steps or passes it took, whether it was taken over from an earlier run.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// A section of a report.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// Its heading.
    pub title: String,
    /// What it holds, in order.
    #[serde(default)]
    pub blocks: Vec<Block>,
}

/// One part of a section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Block {
    /// A heading below the section's.
    Heading(String),
    /// A paragraph of plain text.
    Paragraph(String),
    /// Something a reader must not miss, such as a limit of what was measured.
    Note(String),
    /// A command line or a piece of a file, set as it is.
    Code(String),
    /// A table.
    Table(Table),
    /// A plot.
    Plot(Plot),
    /// Texts.
    Samples(SampleList),
}

/// A table with uncertainties.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// What it shows, in a sentence.
    pub caption: String,
    /// The columns, the first of which usually names the rows.
    pub columns: Vec<Column>,
    /// The rows, each with at most as many cells as there are columns; those left out are empty.
    #[serde(default)]
    pub rows: Vec<Row>,
    /// Notes below the table, in order. [`Number::footnote`] and [`Row::footnote`] name them by index.
    #[serde(default)]
    pub footnotes: Vec<String>,
}

/// A column of a table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Column {
    /// Its heading.
    pub title: String,
    /// The unit of its numbers, such as "nats" or "%".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Which of its numbers are better. The best one is marked, with all that show the same digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub better: Option<Direction>,
    /// Digits behind the point; without, as many as the numbers' uncertainty and size suggest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decimals: Option<usize>,
    /// If its numbers were published by others: by whom and where. Such a column is set apart, and
    /// never marked or compared with ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<String>,
}

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// More is better, as for BLEU.
    Higher,
    /// Less is better, as for perplexity.
    Lower,
}

/// A row of a table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// The cells.
    pub cells: Vec<Cell>,
    /// What the row stands for.
    #[serde(default)]
    pub kind: RowKind,
    /// Heading of the group that starts with this row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// A footnote about the whole row, by index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub footnote: Option<usize>,
}

/// What a row stands for, and whether it may win.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowKind {
    /// A system that is compared.
    #[default]
    Measured,
    /// A system whose samples collapsed, with the sentence that says so. It is named as such, and no
    /// number of it is ever the best.
    Collapsed(String),
    /// Something to compare with that is no competitor, such as the data itself.
    Reference,
    /// Numbers published by others, with their source. Set apart, and never the best.
    Published(String),
}

/// A cell of a table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cell {
    /// Nothing: it was not measured.
    #[default]
    Empty,
    /// Words.
    Text(String),
    /// A number.
    Number(Number),
}

/// A plot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plot {
    /// Names the file of the plot, so it must differ between plots: small letters, digits and hyphens
    /// (anything else is replaced, and a name given twice is numbered).
    pub name: String,
    /// What it shows, in a few words.
    pub title: String,
    /// What is to be seen in it, in a sentence or two; also for those who cannot see it.
    pub caption: String,
    /// Axes and marks.
    pub kind: PlotKind,
}

/// What is drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlotKind {
    /// Points, labelled one by one, joined within a series in the order given: a perplexity-entropy
    /// frontier is this, with a guide at the data's entropy.
    Scatter(Chart),
    /// Lines, each labelled at its end: loss curves, quality against steps.
    Lines(Chart),
    /// Bars.
    Bars(BarChart),
}

/// Series over two axes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chart {
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// The series, at most eight of which have a colour of their own.
    #[serde(default)]
    pub series: Vec<Series>,
    /// Values that are drawn as a line across the plot.
    #[serde(default)]
    pub guides: Vec<Guide>,
}

/// An axis.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Axis {
    /// What is measured, with its unit: "entropy (nats)".
    pub label: String,
    /// Logarithmic. Points at or below zero are then left out, and the plot says so.
    #[serde(default)]
    pub log: bool,
}

/// A line or a cloud of points of one system.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Series {
    /// Name, written beside it.
    pub name: String,
    /// The points. Those with a number that is not finite are left out.
    #[serde(default)]
    pub points: Vec<Point>,
    /// Published by others: where. Drawn hollow and dashed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<String>,
}

/// A point of a series.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// Its place on the horizontal axis.
    #[serde(with = "super::number::any")]
    pub x: f64,
    /// Its height, with uncertainty if there is any.
    pub y: Number,
    /// Its label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Whether its samples collapsed; it is then crossed.
    #[serde(default)]
    pub collapsed: bool,
}

/// A value drawn as a line across a plot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guide {
    /// On which axis the value is.
    pub axis: GuideAxis,
    /// The value.
    #[serde(with = "super::number::any")]
    pub value: f64,
    /// What it is, such as "data".
    pub label: String,
}

/// On which axis a guide's value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuideAxis {
    /// The horizontal axis: the line stands upright.
    X,
    /// The vertical axis: the line lies.
    Y,
}

/// Bars, lying, one group below the other.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BarChart {
    /// What is measured, with its unit.
    pub axis: Axis,
    /// What the bars of each group have in common.
    pub groups: Vec<String>,
    /// One bar of each group per series.
    pub series: Vec<BarSeries>,
}

/// One bar in each group.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BarSeries {
    /// Name of the series; may be empty if there is only one.
    pub name: String,
    /// One value per group; none where nothing was measured.
    pub values: Vec<Option<Number>>,
    /// Published by others: where. Drawn hollow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<String>,
}

/// Generated texts, picked by a rule and not by hand.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleList {
    /// What they are.
    pub title: String,
    /// The rule by which they were picked: "seed 0, samples 0 to 7".
    pub picked: String,
    /// The texts.
    pub samples: Vec<Sample>,
}

/// What one or several systems wrote for one input, or from one seed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// Its number among the samples.
    pub index: u64,
    /// What it was generated from, for conditional tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// What a good answer would be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// What the systems wrote: name and text. The name may be empty if there is only one.
    pub outputs: Vec<(String, String)>,
}
