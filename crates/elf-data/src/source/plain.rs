//! Plain text files.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use super::{PlainText, Rows, TEXT_COLUMN, TextRow};
use crate::error::{Error, Result};

pub(super) fn check_columns(path: &Path, columns: &[String]) -> Result<()> {
    match columns {
        [only] if only == TEXT_COLUMN => Ok(()),
        _ => {
            let wrong = columns.iter().find(|c| *c != TEXT_COLUMN).map_or(TEXT_COLUMN, String::as_str);
            Err(Error::missing_column(path, wrong, &[TEXT_COLUMN.to_owned()]))
        }
    }
}

pub(super) fn rows(path: &Path, columns: &[String], plain: PlainText) -> Result<Rows> {
    check_columns(path, columns)?;
    match plain {
        PlainText::Lines => {
            let file = File::open(path).map_err(Error::io("open", path))?;
            Ok(Box::new(Lines { reader: BufReader::with_capacity(1 << 20, file), path: path.to_owned(), number: 0 }))
        }
        PlainText::WholeFile => {
            let bytes = fs::read(path).map_err(Error::io("read", path))?;
            let text =
                String::from_utf8(bytes).map_err(|e| not_utf8(path, format!("byte {}", e.utf8_error().valid_up_to())));
            Ok(Box::new(std::iter::once(text.map(|text| vec![text]))))
        }
    }
}

struct Lines {
    reader: BufReader<File>,
    path: PathBuf,
    number: u64,
}

impl Iterator for Lines {
    type Item = Result<TextRow>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut bytes = Vec::new();
            match self.reader.read_until(b'\n', &mut bytes) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(e) => return Some(Err(Error::io("read", &self.path)(e))),
            }
            self.number += 1;
            while matches!(bytes.last(), Some(b'\n' | b'\r')) {
                bytes.pop();
            }
            match String::from_utf8(bytes) {
                Ok(line) if line.trim().is_empty() => {}
                Ok(line) => return Some(Ok(vec![line])),
                Err(_) => return Some(Err(not_utf8(&self.path, format!("line {}", self.number)))),
            }
        }
    }
}

fn not_utf8(path: &Path, place: String) -> Error {
    Error::BadRecord {
        path: path.to_owned(),
        place,
        reason: "not UTF-8: convert the file, for example with iconv".to_owned(),
    }
}
