//! Text columns out of Parquet, JSON lines and plain text, row by row in constant memory.
//!
//! The name of a file decides its kind: `.parquet`; `.jsonl`, `.ndjson` or `.json` (one JSON object per line); any other is plain
//! text, whose only column is `text`. A further `.gz`, `.zst` or `.zstd` is ignored: text files may be compressed. A folder stands
//! for the data files of its only split, in the order of their names; `FOLDER/SPLIT` names one of several splits.
//!
//! A column may lie inside a struct or an object: `translation.en` is the field `en` of `translation`.

mod column;
mod jsonl;
mod parquet_text;
mod plain;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::splits;
use column::{Cell, ColumnPath};

/// The one column of a plain text file.
pub const TEXT_COLUMN: &str = "text";

/// The rows of a plain text file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlainText {
    /// Every line with text is a row; empty lines are skipped.
    #[default]
    Lines,
    /// Every line is a row; an empty line is an empty text. For files whose rows belong to the rows of another file.
    EveryLine,
    /// Every file is one row, and must fit into memory.
    WholeFile,
}

/// One row: the texts of the columns, in the order in which the source was opened with them.
pub type TextRow = Vec<String>;

/// Text columns of one or more files.
#[derive(Clone, Debug)]
pub struct Source {
    files: Vec<PathBuf>,
    columns: Vec<String>,
    plain: PlainText,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Parquet,
    Jsonl,
    Plain,
}

impl Kind {
    fn of(path: &Path) -> Self {
        match extension(path).as_str() {
            "parquet" => Kind::Parquet,
            "jsonl" | "ndjson" | "json" => Kind::Jsonl,
            _ => Kind::Plain,
        }
    }
}

/// A file name's extension in lower case, without that of a compression.
fn extension(path: &Path) -> String {
    let of = |path: &Path| path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    match of(path).as_str() {
        "gz" | "zst" | "zstd" => of(Path::new(path.file_stem().unwrap_or_default())),
        other => other.to_owned(),
    }
}

/// Extensions of a folder's data files. Other files in it, such as notes and licences, are ignored.
pub const DATA_EXTENSIONS: [&str; 6] = ["parquet", "jsonl", "ndjson", "json", "txt", "text"];

impl Source {
    /// Text columns `columns` of `paths` (files or folders). Opens the beginning of every file, so that a wrong name or column is
    /// reported at once.
    ///
    /// # Errors
    /// If a path or a column is missing, a column is not text, or a file is damaged at a place that opening reads.
    pub fn open<P: AsRef<Path>>(paths: &[P], columns: &[&str], plain: PlainText) -> Result<Self> {
        if columns.is_empty() {
            return Err(Error::Config("no text column was named".to_owned()));
        }
        if paths.is_empty() {
            return Err(Error::Config("no input file was named".to_owned()));
        }
        let mut files = Vec::new();
        for path in paths {
            expand(path.as_ref(), &mut files)?;
        }
        let columns_read: Vec<ColumnPath> = columns.iter().map(|name| ColumnPath::new(name)).collect();
        for file in &files {
            match Kind::of(file) {
                Kind::Parquet => drop(parquet_text::open(file, &columns_read)?),
                Kind::Jsonl => {
                    if let Some(first) = jsonl::Rows::open(file, &columns_read)?.next() {
                        first?;
                    }
                }
                Kind::Plain => plain::check_columns(file, &columns_read)?,
            }
        }
        Ok(Self { files, columns: columns.iter().map(|&c| c.to_owned()).collect(), plain })
    }

    /// The files, with those of folders.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The columns.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// All rows of all files, in order. Files are opened one at a time; the iterator ends after an error.
    pub fn rows(&self) -> impl Iterator<Item = Result<TextRow>> + Send + use<> {
        let columns = self.columns.clone();
        self.cells().map(move |row| {
            let (file, number, cells) = row?;
            let texts = cells.into_iter().zip(&columns).map(|(cell, column)| {
                cell.text().ok_or_else(|| Error::BadRecord {
                    path: file.as_path().to_owned(),
                    place: format!("row {number}"),
                    reason: format!(
                        "`{column}` is a list of texts where one text per row is needed: name another column"
                    ),
                })
            });
            texts.collect()
        })
    }

    /// The rows of a source with one column, as plain strings.
    pub fn texts(&self) -> impl Iterator<Item = Result<String>> + Send + use<> {
        self.rows().map(|row| row.map(|columns| columns.into_iter().next().unwrap_or_default()))
    }

    /// The rows of a source with one column, as one or more texts each: a column of lists of texts holds several references per row.
    pub fn text_lists(&self) -> impl Iterator<Item = Result<Vec<String>>> + Send + use<> {
        self.cells().map(|row| row.map(|(_, _, cells)| cells.into_iter().next().map(Cell::texts).unwrap_or_default()))
    }

    fn cells(&self) -> impl Iterator<Item = Result<(Arc<PathBuf>, u64, Vec<Cell>)>> + Send + use<> {
        let Self { files, columns, plain } = self.clone();
        let columns: Vec<ColumnPath> = columns.iter().map(|name| ColumnPath::new(name)).collect();
        let mut failed = false;
        let of_file = move |file: PathBuf| {
            let rows = open_rows(&file, &columns, plain);
            let file = Arc::new(file);
            rows.map(move |row| row.map(|(number, cells)| (Arc::clone(&file), number, cells)))
        };
        files.into_iter().flat_map(of_file).take_while(move |row| {
            let go_on = !failed;
            failed |= row.is_err();
            go_on
        })
    }
}

/// Rows of one file, each with its number from 1.
type Rows = Box<dyn Iterator<Item = Result<(u64, Vec<Cell>)>> + Send>;

fn open_rows(file: &Path, columns: &[ColumnPath], plain: PlainText) -> Rows {
    let opened: Result<Rows> = match Kind::of(file) {
        Kind::Parquet => parquet_text::rows(file, columns),
        Kind::Jsonl => jsonl::Rows::open(file, columns).map(|rows| Box::new(rows) as Rows),
        Kind::Plain => plain::rows(file, columns, plain),
    };
    opened.unwrap_or_else(|e| Box::new(std::iter::once(Err(e))))
}

/// Appends the files that `path` stands for: a file itself, the files of a folder's only split, or those of a split of a folder.
fn expand(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_file() || elf_files::is_special(path) {
        files.push(path.to_owned());
        return Ok(());
    }
    let is_data = |file: &Path| DATA_EXTENSIONS.contains(&extension(file).as_str());
    match (splits::files(path, &is_data)?, fs::metadata(path)) {
        (Some(found), _) => files.extend(found),
        (None, Err(e)) => return Err(Error::io("open", path)(e)),
        (None, Ok(_)) => {
            return Err(Error::NothingFound {
                what: "text files",
                path: path.to_owned(),
                remedy: format!("name a file, or a folder with files ending in .{}", DATA_EXTENSIONS.join(", .")),
            });
        }
    }
    Ok(())
}
