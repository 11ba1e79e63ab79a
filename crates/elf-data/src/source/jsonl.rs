//! Text columns of JSON lines: one JSON object per line.

use std::path::Path;

use elf_files::lines::JsonLines;
use serde_json::{Map, Value};

use super::column::{Cell, ColumnPath};
use crate::error::{Error, Result};

/// The rows of a file.
pub(super) struct Rows {
    lines: JsonLines,
    columns: Vec<ColumnPath>,
}

impl Rows {
    pub(super) fn open(path: &Path, columns: &[ColumnPath]) -> Result<Self> {
        Ok(Self { lines: JsonLines::open(path)?, columns: columns.to_vec() })
    }

    fn row(&self, number: u64, object: &Map<String, Value>) -> Result<Vec<Cell>> {
        let path = self.lines.path();
        let bad = |reason: String| Error::BadRecord { path: path.to_owned(), place: format!("line {number}"), reason };
        let cell = |column: &ColumnPath| match find(object, column) {
            Some(Value::String(text)) => Ok(Cell::Text(text.clone())),
            Some(Value::Array(members)) if members.iter().all(Value::is_string) => {
                Ok(Cell::Texts(members.iter().filter_map(Value::as_str).map(str::to_owned).collect()))
            }
            Some(other) => {
                let remedy = if other.is_null() { ": fill or remove such rows" } else { "" };
                Err(bad(format!("`{column}` is {}, not a string{remedy}", kind(other))))
            }
            None if number == 1 => {
                let mut present: Vec<String> = object.keys().cloned().collect();
                present.sort();
                Err(Error::missing_column(path, column.name(), &present))
            }
            None => Err(bad(format!("the object has no `{column}`"))),
        };
        self.columns.iter().map(cell).collect()
    }
}

impl Iterator for Rows {
    type Item = Result<(u64, Vec<Cell>)>;

    fn next(&mut self) -> Option<Self::Item> {
        let line = self.lines.next()?.map_err(Error::from);
        Some(line.and_then(|(number, object)| Ok((number, self.row(number, &object)?))))
    }
}

/// The value of a column: the field of its whole name, or else the field that its parts lead to.
fn find<'a>(object: &'a Map<String, Value>, column: &ColumnPath) -> Option<&'a Value> {
    if let Some(value) = object.get(column.name()) {
        return Some(value);
    }
    let mut parts = column.parts();
    let first = object.get(parts.next()?)?;
    parts.try_fold(first, |value, part| value.get(part))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
