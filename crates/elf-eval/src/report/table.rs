//! Preparation of a table for writing: digits, the best number of each column, notes.

use super::model::{Cell, Column, Direction, Row, RowKind, Table};
use super::number::{Number, Uncertainty, decimals_for, written};

/// A table ready to be written.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ReadyTable {
    /// Headings of columns.
    pub heads: Vec<Head>,
    /// Rows, each with one cell per column.
    pub rows: Vec<ReadyRow>,
    /// Notes below the table, referred to by index.
    pub notes: Vec<String>,
    /// Explanations of the marks.
    pub legend: String,
}

/// Heading of a column.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Head {
    /// Name and unit.
    pub title: String,
    /// The better direction.
    pub better: Option<Direction>,
    /// Whether all its cells with content are numbers.
    pub numeric: bool,
    /// The note with the source, if its numbers were published by others.
    pub published: Option<usize>,
}

/// A row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ReadyRow {
    /// Heading of the group that begins with it.
    pub group: Option<String>,
    /// Its kind.
    pub standing: Standing,
    /// Notes about the whole row.
    pub notes: Vec<usize>,
    /// Its cells.
    pub cells: Vec<ReadyCell>,
}

/// The kind of a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Standing {
    /// A system that is compared.
    #[default]
    Measured,
    /// A system whose samples collapsed.
    Collapsed,
    /// A baseline that does not compete.
    Reference,
    /// Published by others.
    Published,
}

impl Standing {
    /// The word that goes with the row's name, and its class.
    pub fn tag(self) -> Option<&'static str> {
        match self {
            Standing::Measured => None,
            Standing::Collapsed => Some("collapsed"),
            Standing::Reference => Some("reference"),
            Standing::Published => Some("published"),
        }
    }
}

/// A cell.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ReadyCell {
    /// Its text or number; empty if there is none.
    pub text: String,
    /// The number's uncertainty.
    pub uncertainty: Option<String>,
    /// Whether it is a number.
    pub number: bool,
    /// Whether it is the best of its column.
    pub best: bool,
    /// Note about it.
    pub note: Option<usize>,
}

impl ReadyTable {
    /// Prepares a table. Cells beyond the last column are dropped; missing ones are empty.
    pub fn of(table: &Table) -> Self {
        let mut notes = table.footnotes.clone();
        let mut note = |text: &str| {
            notes.iter().position(|n| n == text).unwrap_or_else(|| {
                notes.push(text.to_owned());
                notes.len() - 1
            })
        };
        let mut heads: Vec<Head> = table.columns.iter().map(|c| head(c, &mut note)).collect();
        let decimals: Vec<usize> =
            table.columns.iter().enumerate().map(|(i, c)| c.decimals.unwrap_or_else(|| digits(table, i))).collect();
        let mut rows: Vec<ReadyRow> = table.rows.iter().map(|row| ready(row, &decimals, &mut note)).collect();
        for (i, head) in heads.iter_mut().enumerate() {
            let mut filled = rows.iter().map(|r| &r.cells[i]).filter(|c| !c.text.is_empty()).peekable();
            head.numeric = filled.peek().is_some() && filled.all(|c| c.number);
        }
        for (i, column) in table.columns.iter().enumerate() {
            for row in best(&table.rows, i, column, decimals[i]) {
                rows[row].cells[i].best = true;
            }
        }
        // References to missing notes are dropped.
        let known = |index: &usize| *index < notes.len();
        for row in &mut rows {
            row.notes.retain(known);
            row.cells.iter_mut().for_each(|c| c.note = c.note.filter(known));
        }
        let legend = legend(table, &rows);
        Self { heads, rows, notes, legend }
    }
}

fn head(column: &Column, note: &mut impl FnMut(&str) -> usize) -> Head {
    let title = match &column.unit {
        Some(unit) => format!("{} ({unit})", column.title),
        None => column.title.clone(),
    };
    Head {
        title,
        better: column.better.filter(|_| column.published.is_none()),
        numeric: false,
        published: column.published.as_ref().map(|source| note(&format!("Published: {source}"))),
    }
}

fn ready(row: &Row, decimals: &[usize], note: &mut impl FnMut(&str) -> usize) -> ReadyRow {
    let mut notes: Vec<usize> = row.footnote.into_iter().collect();
    let standing = match &row.kind {
        RowKind::Measured => Standing::Measured,
        RowKind::Reference => Standing::Reference,
        RowKind::Collapsed(sentence) => {
            notes.extend((!sentence.is_empty()).then(|| note(sentence)));
            Standing::Collapsed
        }
        RowKind::Published(source) => {
            notes.push(note(&format!("Published: {source}")));
            Standing::Published
        }
    };
    let cells = decimals.iter().enumerate().map(|(i, decimals)| match row.cells.get(i) {
        None | Some(Cell::Empty) => ReadyCell::default(),
        Some(Cell::Text(text)) => ReadyCell { text: text.clone(), ..ReadyCell::default() },
        Some(Cell::Number(n)) => ReadyCell {
            text: written(n.value, *decimals),
            uncertainty: n.uncertainty_written(*decimals),
            number: true,
            best: false,
            note: n.footnote,
        },
    });
    ReadyRow { group: row.group.clone(), standing, notes, cells: cells.collect() }
}

fn number(row: &Row, column: usize) -> Option<Number> {
    match row.cells.get(column) {
        Some(Cell::Number(number)) => Some(*number),
        _ => None,
    }
}

fn digits(table: &Table, column: usize) -> usize {
    decimals_for(&table.rows.iter().filter_map(|row| number(row, column)).collect::<Vec<_>>())
}

/// The rows with the best number of a column: only among systems that are compared, did not collapse and have a finite number,
/// and only if there are at least two of them. Those that show the same digits are equally good.
pub fn best(rows: &[Row], index: usize, column: &Column, decimals: usize) -> Vec<usize> {
    let Some(direction) = column.better.filter(|_| column.published.is_none()) else { return Vec::new() };
    let competes = |row: &Row| row.kind == RowKind::Measured;
    let values: Vec<(usize, f64)> = rows
        .iter()
        .enumerate()
        .filter(|(_, row)| competes(row))
        .filter_map(|(i, row)| Some((i, number(row, index)?.value)).filter(|(_, v)| v.is_finite()))
        .collect();
    let numbers = values.iter().map(|(_, v)| *v);
    let winner = match direction {
        Direction::Higher => numbers.max_by(f64::total_cmp),
        Direction::Lower => numbers.min_by(f64::total_cmp),
    };
    let Some(winner) = winner.filter(|_| values.len() > 1) else { return Vec::new() };
    let shown = written(winner, decimals);
    values.into_iter().filter(|(_, v)| written(*v, decimals) == shown).map(|(i, _)| i).collect()
}

fn legend(table: &Table, rows: &[ReadyRow]) -> String {
    let numbers = || {
        table.rows.iter().flat_map(|r| &r.cells).filter_map(|c| if let Cell::Number(n) = c { Some(n) } else { None })
    };
    let has = |test: fn(&Uncertainty) -> bool| {
        numbers().filter(|n| n.ends().is_some()).filter_map(|n| n.uncertainty).any(|u| test(&u))
    };
    let mut sentences = Vec::new();
    if rows.iter().flat_map(|r| &r.cells).any(|c| c.best) {
        let collapsed = rows.iter().any(|r| r.standing == Standing::Collapsed);
        let but = if collapsed { ", collapsed ones left out" } else { "" };
        sentences.push(format!("Bold: the best of the systems compared{but}."));
    }
    if has(|u| matches!(u, Uncertainty::StandardError(_))) {
        sentences.push("±: standard error.".to_owned());
    }
    if has(|u| matches!(u, Uncertainty::Interval { .. })) {
        sentences.push("Brackets: 95% interval.".to_owned());
    }
    sentences.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(rows: Vec<Row>) -> Table {
        Table { rows, ..Table::new("x", [Column::new("system"), Column::lower("PPL").decimals(1)]) }
    }

    fn row(value: f64) -> Row {
        Row::new(["a".into(), value.into()])
    }

    fn bold(table: &Table) -> Vec<usize> {
        let ready = ReadyTable::of(table);
        (0..ready.rows.len()).filter(|i| ready.rows[*i].cells[1].best).collect()
    }

    #[test]
    fn the_best_is_marked_with_its_equals_and_never_a_collapsed_one() {
        assert_eq!(bold(&table(vec![row(3.0), row(2.0), row(4.0)])), [1]);
        assert_eq!(bold(&table(vec![row(2.04), row(2.0), row(4.0)])), [0, 1]);
        let collapsed = row(1.0).kind(RowKind::Collapsed("Collapsed: entropy is low.".into()));
        let data = row(0.5).kind(RowKind::Reference);
        let theirs = row(0.1).kind(RowKind::Published("a paper".into()));
        let all = table(vec![row(3.0), row(2.0), collapsed.clone(), data, theirs]);
        assert_eq!(bold(&all), [1]);
        let ready = ReadyTable::of(&all);
        assert_eq!(ready.notes, ["Collapsed: entropy is low.", "Published: a paper"]);
        assert_eq!((&ready.rows[2].notes[..], ready.rows[2].standing.tag()), (&[0][..], Some("collapsed")));
        assert_eq!(ready.rows[4].notes, [1]);
        assert!(ready.legend.contains("collapsed ones left out"), "{}", ready.legend);
        // No competitor, or no comparable number.
        assert!(bold(&table(vec![row(3.0), collapsed])).is_empty());
        assert!(bold(&table(vec![row(f64::NAN), row(f64::NEG_INFINITY)])).is_empty());
        assert_eq!(bold(&table(vec![row(f64::NAN), row(7.0), row(8.0)])), [1]);
        assert!(ReadyTable::of(&table(vec![])).rows.is_empty());
    }

    #[test]
    fn published_columns_are_apart() {
        let mut table = table(vec![row(3.0), row(2.0)]);
        table.columns[1].published = Some("a paper, Table 1".into());
        let ready = ReadyTable::of(&table);
        assert_eq!((ready.heads[1].published, ready.heads[1].better), (Some(0), None));
        assert!(ready.rows.iter().all(|r| !r.cells[1].best));
    }

    #[test]
    fn rows_of_any_length_and_notes_that_are_not_there() {
        let long = Row::new(["a".into(), 1.0.into(), 2.0.into(), 3.0.into()]).footnote(7);
        let short = Row::new([]);
        let ready = ReadyTable::of(&table(vec![long, short]));
        assert!(ready.rows.iter().all(|r| r.cells.len() == 2 && r.notes.is_empty()));
        assert_eq!(ready.rows[1].cells[1].text, "");
        assert!(ready.heads[1].numeric && !ready.heads[0].numeric);
    }

    proptest! {
        #[test]
        fn exactly_the_best_shown_are_marked(
            values in prop::collection::vec((0.0..9.0f64, any::<bool>()), 0..8), higher in any::<bool>()
        ) {
            let rows: Vec<Row> = values
                .iter()
                .map(|(v, collapsed)| row(*v).kind(if *collapsed { RowKind::Collapsed(String::new()) } else { RowKind::Measured }))
                .collect();
            let column = if higher { Column::higher("x") } else { Column::lower("x") };
            let marked = best(&rows, 1, &column, 1);
            let standing: Vec<f64> = values.iter().filter(|(_, c)| !c).map(|(v, _)| *v).collect();
            prop_assert_eq!(marked.is_empty(), standing.len() < 2);
            for (i, (value, collapsed)) in values.iter().enumerate().filter(|_| standing.len() > 1) {
                let beaten = standing.iter().any(|s| {
                    written(*s, 1) != written(*value, 1) && if higher { s > value } else { s < value }
                });
                prop_assert_eq!(marked.contains(&i), !collapsed && !beaten);
            }
        }
    }
}
