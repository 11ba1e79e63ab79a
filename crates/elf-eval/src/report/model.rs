//! The content of a report: plain data, which can be read from JSON.
//!
//! All text is plain, without HTML or Markdown, and is escaped when it is written. An empty part (a table without rows, a
//! plot without points, no costs) is not an error; the report says that it is missing.

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
    /// The summary, one paragraph each.
    pub summary: Vec<String>,
    /// The origin of the numbers.
    pub provenance: Provenance,
    /// The sections, in order.
    pub sections: Vec<Section>,
}

/// The origin and the costs of a report's numbers.
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
    /// The configurations, with hashes of their contents.
    pub configs: Vec<ConfigHash>,
    /// The costs of the stages.
    pub stages: Vec<StageCost>,
    /// Further facts about the run: name and value.
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

/// The costs of one stage.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageCost {
    /// The stage.
    pub name: String,
    /// Wall-clock time in seconds.
    pub seconds: f64,
    /// Details: the device, the number of steps or passes, whether it was reused from an earlier run.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// A section of a report.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// Its heading.
    pub title: String,
    /// Its parts, in order.
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
    /// A highlighted remark, such as a limit of a measurement.
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
    /// A sentence about its content.
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
    /// Number of decimals; `None` derives it from the numbers' uncertainty and size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decimals: Option<usize>,
    /// The source, if its numbers were published by others. Such a column is set apart, and never marked or compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<String>,
}

/// The better direction of a column's numbers.
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
    /// The kind of the row.
    #[serde(default)]
    pub kind: RowKind,
    /// Heading of the group that starts with this row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// A footnote about the whole row, by index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub footnote: Option<usize>,
}

/// The kind of a row, which decides whether its numbers may be the best.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowKind {
    /// A system that is compared.
    #[default]
    Measured,
    /// A system whose samples collapsed, with the verdict. It is marked, and none of its numbers is ever the best.
    Collapsed(String),
    /// A baseline that does not compete, such as the data itself.
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
    /// Its title, in a few words.
    pub title: String,
    /// A description in a sentence or two, also for readers who cannot see it.
    pub caption: String,
    /// Axes and marks.
    pub kind: PlotKind,
}

/// The drawing of a plot.
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
    /// The quantity with its unit, such as "entropy (nats)".
    pub label: String,
    /// Logarithmic. Points at or below zero are then left out, and the plot says so.
    #[serde(default)]
    pub log: bool,
}

/// A line or a cloud of points of one system.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Series {
    /// Name, drawn near it.
    pub name: String,
    /// The points. Those with a number that is not finite are left out.
    #[serde(default)]
    pub points: Vec<Point>,
    /// The source, if it was published by others. Drawn hollow and dashed.
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
    /// The axis of the value.
    pub axis: GuideAxis,
    /// The value.
    #[serde(with = "super::number::any")]
    pub value: f64,
    /// Its label, such as "data".
    pub label: String,
}

/// The axis of a guide's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuideAxis {
    /// The horizontal axis: the line is vertical.
    X,
    /// The vertical axis: the line is horizontal.
    Y,
}

/// Horizontal bars, in groups.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BarChart {
    /// The quantity with its unit.
    pub axis: Axis,
    /// The name of each group.
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
    /// One value per group; `None` where nothing was measured.
    pub values: Vec<Option<Number>>,
    /// The source, if it was published by others. Drawn hollow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<String>,
}

/// Generated texts, selected by a rule.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SampleList {
    /// A description of the texts.
    pub title: String,
    /// The rule of their selection, such as "seed 0, samples 0 to 7".
    pub picked: String,
    /// The texts.
    pub samples: Vec<Sample>,
}

/// The texts of one or several systems for one input, or from one seed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// Its number among the samples.
    pub index: u64,
    /// The input, for conditional tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The expected text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Name and text of each system. The name may be empty if there is only one.
    pub outputs: Vec<(String, String)>,
}
