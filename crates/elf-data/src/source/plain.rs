//! Plain text files.

use std::fs;
use std::path::Path;

use elf_files::lines::Lines;

use super::column::{Cell, ColumnPath};
use super::{PlainText, Rows, TEXT_COLUMN};
use crate::error::{Error, Result};

pub(super) fn check_columns(path: &Path, columns: &[ColumnPath]) -> Result<()> {
    match columns.iter().find(|column| column.name() != TEXT_COLUMN) {
        None => Ok(()),
        Some(wrong) => Err(Error::missing_column(path, wrong.name(), &[TEXT_COLUMN.to_owned()])),
    }
}

pub(super) fn rows(path: &Path, columns: &[ColumnPath], plain: PlainText) -> Result<Rows> {
    check_columns(path, columns)?;
    let row = move |text: String, times: usize| vec![Cell::Text(text); times];
    let times = columns.len();
    match plain {
        PlainText::Lines | PlainText::EveryLine => {
            let lines = Lines::open(path)?.zip(1..).map(|(line, number)| Ok((number, line?)));
            let kept = move |line: &Result<(u64, String)>| match line {
                Ok((_, text)) => plain == PlainText::EveryLine || !text.trim().is_empty(),
                Err(_) => true,
            };
            Ok(Box::new(lines.filter(kept).map(move |line| line.map(|(number, text)| (number, row(text, times))))))
        }
        PlainText::WholeFile => {
            let bytes = fs::read(path).map_err(Error::io("read", path))?;
            let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).map_or(bytes.clone(), <[u8]>::to_vec);
            let text = String::from_utf8(bytes).map_err(|e| Error::BadRecord {
                path: path.to_owned(),
                place: format!("byte {}", e.utf8_error().valid_up_to()),
                reason: "not UTF-8: convert the file, for example with iconv".to_owned(),
            });
            Ok(Box::new(std::iter::once(text.map(|text| (1, row(text, times))))))
        }
    }
}
