//! Text columns out of Parquet, JSONL and plain text, row by row in constant memory.
//!
//! The kind of a file follows from its name: `.parquet`; `.jsonl`, `.ndjson` or `.json` (one JSON object per line); anything else
//! is plain text, whose only column is called `text`. A folder stands for its data files, in the order of their names.

mod jsonl;
mod parquet_text;
mod plain;

pub(crate) use jsonl::JsonLines;

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The one column of a plain text file.
pub const TEXT_COLUMN: &str = "text";

/// What a document is in a plain text file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlainText {
    /// Every line is a document; empty lines are skipped.
    #[default]
    Lines,
    /// Every file is a document; one file must fit into memory.
    WholeFile,
}

/// One row: the texts of the columns asked for, in the order asked for.
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
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        match extension.as_str() {
            "parquet" => Kind::Parquet,
            "jsonl" | "ndjson" | "json" => Kind::Jsonl,
            _ => Kind::Plain,
        }
    }
}

/// Names that make a file of a folder a data file. Other files of a folder (notes, licences without extension) are left alone.
pub const DATA_EXTENSIONS: [&str; 6] = ["parquet", "jsonl", "ndjson", "json", "txt", "text"];

impl Source {
    /// Text columns `columns` of `paths` (files or folders). Opens every file's beginning, so that a wrong name or column is
    /// reported now and not after an hour.
    ///
    /// # Errors
    /// If a path or a column is missing, a column is not text, or a file is damaged at a place that opening it reads.
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
        let source = Self { files, columns: columns.iter().map(|&c| c.to_owned()).collect(), plain };
        for file in &source.files {
            match Kind::of(file) {
                Kind::Parquet => drop(parquet_text::open(file, &source.columns)?),
                Kind::Jsonl => {
                    if let Some(first) = jsonl::Rows::open(file, &source.columns)?.next() {
                        first?;
                    }
                }
                Kind::Plain => plain::check_columns(file, &source.columns)?,
            }
        }
        Ok(source)
    }

    /// The files, folders expanded.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The columns.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// All rows of all files, in order. Files are opened one at a time; after an error nothing more comes.
    pub fn rows(&self) -> impl Iterator<Item = Result<TextRow>> + Send + use<> {
        let Self { files, columns, plain } = self.clone();
        let mut failed = false;
        files.into_iter().flat_map(move |file| open_rows(&file, &columns, plain)).take_while(move |row| {
            let go_on = !failed;
            failed |= row.is_err();
            go_on
        })
    }

    /// The rows of a source with one column, as plain strings.
    pub fn texts(&self) -> impl Iterator<Item = Result<String>> + Send + use<> {
        self.rows().map(|row| row.map(|columns| columns.into_iter().next().unwrap_or_default()))
    }
}

type Rows = Box<dyn Iterator<Item = Result<TextRow>> + Send>;

fn open_rows(file: &Path, columns: &[String], plain: PlainText) -> Rows {
    let opened: Result<Rows> = match Kind::of(file) {
        Kind::Parquet => parquet_text::rows(file, columns),
        Kind::Jsonl => jsonl::Rows::open(file, columns).map(|rows| Box::new(rows) as Rows),
        Kind::Plain => plain::rows(file, columns, plain),
    };
    opened.unwrap_or_else(|e| Box::new(std::iter::once(Err(e))))
}

fn expand(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let about = fs::metadata(path).map_err(Error::io("open", path))?;
    if !about.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    let mut inside = Vec::new();
    for entry in fs::read_dir(path).map_err(Error::io("list", path))? {
        let file = entry.map_err(Error::io("list", path))?.path();
        let extension = file.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        if DATA_EXTENSIONS.contains(&extension.as_str()) && file.is_file() {
            inside.push(file);
        }
    }
    if inside.is_empty() {
        return Err(Error::NothingFound {
            what: "text files",
            path: path.to_owned(),
            remedy: format!("name a file, or a folder with files ending in .{}", DATA_EXTENSIONS.join(", .")),
        });
    }
    inside.sort();
    files.extend(inside);
    Ok(())
}
