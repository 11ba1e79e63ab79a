//! `FILE:COLUMN`, the value of `--text`: one text column of one file. A corpus may consist of several.

use std::path::PathBuf;
use std::str::FromStr;

use crate::{Host, Result};
use elf_data::source::{PlainText, Source};
use elf_hub::What;

/// One column of one file, folder or Hugging Face id of a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextColumn {
    /// The file, folder or id.
    pub input: PathBuf,
    /// The column's name.
    pub column: String,
}

impl FromStr for TextColumn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.rsplit_once(':') {
            Some((input, column)) if !input.is_empty() && !column.is_empty() => {
                Ok(Self { input: input.into(), column: column.to_owned() })
            }
            _ => Err("write it as FILE:COLUMN, for example data/texts.parquet:text".to_owned()),
        }
    }
}

impl std::fmt::Display for TextColumn {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}:{}", self.input.display(), self.column)
    }
}

impl TextColumn {
    /// Opens it for reading.
    ///
    /// # Errors
    /// If there is no such file or no such column.
    pub fn open(&self, host: &Host) -> Result<Source> {
        open_columns(&self.input, &[&self.column], host)
    }
}

/// Opens columns of one file, folder or Hugging Face id of a data set for reading.
///
/// # Errors
/// If there is no such file or one of the columns is missing.
pub fn open_columns(input: &PathBuf, columns: &[&str], host: &Host) -> Result<Source> {
    let files = host.locate_all(std::slice::from_ref(input), What::Dataset)?;
    Ok(Source::open(&files, columns, PlainText::Lines)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_colon_separates() {
        let parsed: TextColumn = "a:b/c.parquet:text".parse().unwrap();
        assert_eq!((parsed.input, parsed.column), (PathBuf::from("a:b/c.parquet"), "text".to_owned()));
    }

    #[test]
    fn either_part_may_not_be_missing() {
        for text in ["file.parquet", "file.parquet:", ":text", ""] {
            assert!(text.parse::<TextColumn>().is_err(), "{text:?}");
        }
    }
}
