//! Builders for reports in code.

use std::ops::Range;
use std::path::Path;

use super::model::*;
use super::number::Number;
use crate::evaluation::{Evaluation, Metric};
use crate::{Result, jsonl};

impl Section {
    /// An empty section.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), blocks: Vec::new() }
    }

    /// With a block at its end: a [`Table`], [`Plot`], [`SampleList`] or any [`Block`].
    pub fn with(mut self, block: impl Into<Block>) -> Self {
        self.blocks.push(block.into());
        self
    }

    /// With a heading below the section's.
    pub fn heading(self, text: impl Into<String>) -> Self {
        self.with(Block::Heading(text.into()))
    }

    /// With a paragraph.
    pub fn paragraph(self, text: impl Into<String>) -> Self {
        self.with(Block::Paragraph(text.into()))
    }

    /// With a highlighted remark.
    pub fn note(self, text: impl Into<String>) -> Self {
        self.with(Block::Note(text.into()))
    }
}

impl From<Table> for Block {
    fn from(table: Table) -> Self {
        Block::Table(table)
    }
}

impl From<Plot> for Block {
    fn from(plot: Plot) -> Self {
        Block::Plot(plot)
    }
}

impl From<SampleList> for Block {
    fn from(samples: SampleList) -> Self {
        Block::Samples(samples)
    }
}

impl Table {
    /// A table without rows.
    pub fn new(caption: impl Into<String>, columns: impl IntoIterator<Item = Column>) -> Self {
        Self { caption: caption.into(), columns: columns.into_iter().collect(), ..Self::default() }
    }

    /// With a row at its end.
    pub fn row(mut self, row: Row) -> Self {
        self.rows.push(row);
        self
    }

    /// Adds a footnote and returns its index.
    pub fn add_footnote(&mut self, text: impl Into<String>) -> usize {
        self.footnotes.push(text.into());
        self.footnotes.len() - 1
    }
}

impl Column {
    /// A column of words, or of numbers without a better direction.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), ..Self::default() }
    }

    /// A column whose highest number is the best.
    pub fn higher(title: impl Into<String>) -> Self {
        Self { better: Some(Direction::Higher), ..Self::new(title) }
    }

    /// A column whose lowest number is the best.
    pub fn lower(title: impl Into<String>) -> Self {
        Self { better: Some(Direction::Lower), ..Self::new(title) }
    }

    /// With the unit of its numbers.
    pub fn unit(self, unit: impl Into<String>) -> Self {
        Self { unit: Some(unit.into()), ..self }
    }

    /// With this number of decimals.
    pub fn decimals(self, decimals: usize) -> Self {
        Self { decimals: Some(decimals), ..self }
    }

    /// As a column of numbers published by others.
    pub fn published(self, source: impl Into<String>) -> Self {
        Self { published: Some(source.into()), better: None, ..self }
    }
}

impl Row {
    /// A row of a system that is compared.
    pub fn new(cells: impl IntoIterator<Item = Cell>) -> Self {
        Self { cells: cells.into_iter().collect(), ..Self::default() }
    }

    /// The first row of a group.
    pub fn group(self, heading: impl Into<String>) -> Self {
        Self { group: Some(heading.into()), ..self }
    }

    /// Of another kind.
    pub fn kind(self, kind: RowKind) -> Self {
        Self { kind, ..self }
    }

    /// With a footnote, by index.
    pub fn footnote(self, index: usize) -> Self {
        Self { footnote: Some(index), ..self }
    }

    /// A row of one evaluation: a name, and the metrics of these names in order, empty where one was not measured. It is
    /// marked as collapsed if the evaluation says so.
    pub fn of_evaluation(name: impl Into<String>, evaluation: &Evaluation, metrics: &[&str]) -> Self {
        let cells = metrics.iter().map(|metric| evaluation.get(metric).map_or(Cell::Empty, Cell::from));
        let kind = evaluation
            .collapse()
            .filter(|c| c.collapsed)
            .map_or(RowKind::Measured, |c| RowKind::Collapsed(c.sentence.clone()));
        Self::new(std::iter::once(Cell::Text(name.into())).chain(cells)).kind(kind)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Cell::Text(text.to_owned())
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Cell::Text(text)
    }
}

impl From<f64> for Cell {
    fn from(value: f64) -> Self {
        Cell::Number(value.into())
    }
}

impl From<Number> for Cell {
    fn from(number: Number) -> Self {
        Cell::Number(number)
    }
}

impl From<&Metric> for Cell {
    fn from(metric: &Metric) -> Self {
        Cell::Number(metric.into())
    }
}

impl<T: Into<Cell>> From<Option<T>> for Cell {
    fn from(content: Option<T>) -> Self {
        content.map_or(Cell::Empty, Into::into)
    }
}

impl SampleList {
    /// The samples at some places of the JSONL files that `elf sample` writes, one file per system: for each place the
    /// source and the reference, where a file has them, and the text of each system. `rule` describes the origin of the
    /// files, such as "seed 0"; the places are added to it. A file that ends early ends the list.
    ///
    /// # Errors
    /// If a file cannot be read, is empty, or a line has no text.
    pub fn read(title: impl Into<String>, rule: &str, systems: &[(&str, &Path)], places: Range<usize>) -> Result<Self> {
        let mut samples: Option<Vec<Sample>> = None;
        for (system, path) in systems {
            let lines = jsonl::read_samples(path)?.into_iter().skip(places.start).take(places.len());
            let known = samples.take();
            let first = known.is_none();
            let mut known = known.unwrap_or_default().into_iter();
            let mut merged = Vec::new();
            for (index, line) in (places.start as u64..).zip(lines) {
                let Some(mut sample) = (if first { Some(Sample { index, ..Sample::default() }) } else { known.next() })
                else {
                    break;
                };
                sample.source = sample.source.or(line.input);
                sample.reference = sample.reference.or(line.references.and_then(|texts| texts.into_iter().next()));
                sample.outputs.push(((*system).to_owned(), line.text));
                merged.push(sample);
            }
            samples = Some(merged);
        }
        let samples = samples.unwrap_or_default();
        let picked = match samples.as_slice() {
            [] => format!("{rule}, no samples"),
            [only] => format!("{rule}, sample {}", only.index),
            [first, .., last] => format!("{rule}, samples {} to {}", first.index, last.index),
        };
        Ok(Self { title: title.into(), picked, samples })
    }
}

impl Plot {
    /// A plot without a caption.
    pub fn new(name: impl Into<String>, title: impl Into<String>, kind: PlotKind) -> Self {
        Self { name: name.into(), title: title.into(), caption: String::new(), kind }
    }

    /// With a caption.
    pub fn caption(self, caption: impl Into<String>) -> Self {
        Self { caption: caption.into(), ..self }
    }
}

impl Chart {
    /// Axes without series.
    pub fn new(x: Axis, y: Axis) -> Self {
        Self { x, y, ..Self::default() }
    }

    /// With a series at its end.
    pub fn series(mut self, series: Series) -> Self {
        self.series.push(series);
        self
    }

    /// With a line across it.
    pub fn guide(mut self, axis: GuideAxis, value: f64, label: impl Into<String>) -> Self {
        self.guides.push(Guide { axis, value, label: label.into() });
        self
    }
}

impl Axis {
    /// An axis.
    pub fn new(label: impl Into<String>) -> Self {
        Self { label: label.into(), log: false }
    }

    /// A logarithmic axis.
    pub fn log(label: impl Into<String>) -> Self {
        Self { label: label.into(), log: true }
    }
}

impl Series {
    /// A series of own results.
    pub fn new(name: impl Into<String>, points: impl IntoIterator<Item = Point>) -> Self {
        Self { name: name.into(), points: points.into_iter().collect(), published: None }
    }

    /// A series of bare numbers.
    pub fn of(name: impl Into<String>, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        Self::new(name, points.into_iter().map(|(x, y)| Point::new(x, y)))
    }

    /// As a series published by others.
    pub fn published(self, source: impl Into<String>) -> Self {
        Self { published: Some(source.into()), ..self }
    }
}

impl Point {
    /// A point without a label.
    pub fn new(x: f64, y: impl Into<Number>) -> Self {
        Self { x, y: y.into(), ..Self::default() }
    }

    /// With a label.
    pub fn label(self, label: impl Into<String>) -> Self {
        Self { label: Some(label.into()), ..self }
    }

    /// Crossed, if the samples behind it collapsed.
    pub fn collapsed(self, collapsed: bool) -> Self {
        Self { collapsed, ..self }
    }
}
