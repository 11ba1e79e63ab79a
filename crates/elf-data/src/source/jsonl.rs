//! One JSON object per line.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::TextRow;
use crate::error::{Error, Result};

/// The objects of a file, each with the number of its line, from 1. Empty lines are passed over.
pub(crate) struct JsonLines {
    reader: BufReader<File>,
    path: PathBuf,
    line: Vec<u8>,
    number: u64,
}

impl JsonLines {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        Ok(Self { reader: BufReader::with_capacity(1 << 20, file), path: path.to_owned(), line: Vec::new(), number: 0 })
    }

    fn parse(&self) -> Result<Map<String, Value>> {
        serde_json::from_slice(&self.line).map_err(|e| {
            if e.is_eof() && self.line.last() != Some(&b'\n') {
                return Error::Damaged {
                    path: self.path.clone(),
                    reason: format!("line {}, the last, breaks off", self.number),
                    remedy: "copy the file again, or remove that line",
                };
            }
            Error::BadRecord {
                path: self.path.clone(),
                place: format!("line {}", self.number),
                reason: format!("not a JSON object ({e}): every line must be one"),
            }
        })
    }
}

impl Iterator for JsonLines {
    type Item = Result<(u64, Map<String, Value>)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            self.line.clear();
            match self.reader.read_until(b'\n', &mut self.line) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(e) => return Some(Err(Error::io("read", &self.path)(e))),
            }
            self.number += 1;
            if !self.line.iter().all(u8::is_ascii_whitespace) {
                return Some(self.parse().map(|object| (self.number, object)));
            }
        }
    }
}

pub(super) struct Rows {
    lines: JsonLines,
    columns: Vec<String>,
}

impl Rows {
    pub(super) fn open(path: &Path, columns: &[String]) -> Result<Self> {
        Ok(Self { lines: JsonLines::open(path)?, columns: columns.to_vec() })
    }

    fn texts(&self, number: u64, mut object: Map<String, Value>) -> Result<TextRow> {
        let path = &self.lines.path;
        let bad = |reason: String| Error::BadRecord { path: path.clone(), place: format!("line {number}"), reason };
        let mut row = Vec::with_capacity(self.columns.len());
        for (i, column) in self.columns.iter().enumerate() {
            // The same column may be asked for twice, so only its last use may take the text out.
            let found = if self.columns[i + 1..].contains(column) {
                object.get(column).cloned()
            } else {
                object.remove(column)
            };
            match found {
                Some(Value::String(text)) => row.push(text),
                Some(other) => return Err(bad(format!("`{column}` is {}, not a string", kind(&other)))),
                None if number == 1 => {
                    let mut present: Vec<String> = object.keys().cloned().collect();
                    present.extend(self.columns[..i].iter().cloned());
                    present.sort();
                    present.dedup();
                    return Err(Error::missing_column(path, column, &present));
                }
                None => return Err(bad(format!("the object has no `{column}`"))),
            }
        }
        Ok(row)
    }
}

impl Iterator for Rows {
    type Item = Result<TextRow>;

    fn next(&mut self) -> Option<Self::Item> {
        let line = self.lines.next()?;
        Some(line.and_then(|(number, object)| self.texts(number, object)))
    }
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
