//! Arrow IPC files of token ids, as Hugging Face `save_to_disk` writes them, mapped into memory.
//!
//! Opening walks the messages of a stream once and notes the bytes at which the columns of each record batch begin. Rows are then
//! read from the mapping, in a time that depends neither on the number of rows nor on the size of a batch.
//! Arrow's own decoder is not used, because it validates whole batches, which would read the whole file, and panics if a damaged
//! message points outside its body. Here every read is checked against the file's length.

mod batch;
mod column;
mod layout;
mod messages;

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::{Error, Result};
use crate::example::CarriedText;
use crate::row_group::{Ragged, RowGroup};
use column::{IdError, IntegersAt, ListsAt, StringsAt};
use layout::LayoutError;
use messages::Fault;

const REMEDY: &str = "copy or download it again, or write it again with `save_to_disk`";

/// Number of rows that are decoded together when all rows are visited in order.
const ROWS_OF_GROUP: usize = 4096;

/// The bytes with which Arrow IPC data begins: a stream, and a file (a stream between two marks, with an index at its end).
const STREAM_START: &[u8] = &[0xff; 4];
const FILE_MARK: &[u8] = b"ARROW1";

/// Whether a file with these first bytes holds Arrow IPC data.
pub(crate) fn is_arrow(beginning: &[u8]) -> bool {
    beginning.starts_with(STREAM_START) || beginning.starts_with(FILE_MARK)
}

/// An opened Arrow IPC file: the places of its batches are known, no row has been read.
#[derive(Debug)]
pub(crate) struct ArrowFile {
    pub(crate) path: PathBuf,
    mapping: Mmap,
    contents: Contents,
}

/// Where the data of a file lie.
#[derive(Debug, Default)]
struct Contents {
    /// Batches with at least one row.
    batches: Vec<Batch>,
    /// Values of dictionary-encoded columns; each batch refers to a range of them.
    dictionaries: Vec<StringsAt>,
    conditional: bool,
    rows: usize,
    ids: u64,
}

/// Where the columns of one record batch lie.
#[derive(Debug)]
struct Batch {
    rows_before: usize,
    rows: usize,
    input: ListsAt,
    condition: Option<ListsAt>,
    index: Option<IntegersAt>,
    input_text: Option<TextsAt>,
    target_text: Option<TextsAt>,
}

/// Where the strings of one column of one record batch lie.
#[derive(Debug)]
enum TextsAt {
    Plain(StringsAt),
    Dictionary { indices: IntegersAt, values: Range<usize> },
}

impl ArrowFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open the Arrow file", path))?;
        // SAFETY: the mapping is read only through bounds-checked slices, and no reference into it leaves this module. Another
        // process may still truncate the file meanwhile, which no program that maps files can rule out.
        let mapping = unsafe { Mmap::map(&file) }.map_err(Error::io("map the Arrow file", path))?;
        match messages::contents(&mapping) {
            Ok(contents) => Ok(Self { path: path.to_owned(), mapping, contents }),
            Err(fault) => Err(error(path, fault)),
        }
    }

    pub(crate) fn is_conditional(&self) -> bool {
        self.contents.conditional
    }

    /// Number of ids in both columns.
    pub(crate) fn ids(&self) -> u64 {
        self.contents.ids
    }

    /// Number of rows of each group, a part of the file that is decoded at once.
    pub(crate) fn rows_of_groups(&self) -> Vec<usize> {
        let whole = self.contents.rows / ROWS_OF_GROUP;
        let rest = self.contents.rows % ROWS_OF_GROUP;
        std::iter::repeat_n(ROWS_OF_GROUP, whole).chain((rest > 0).then_some(rest)).collect()
    }

    /// Target and condition of `row`, which must exist. Every id is checked against `vocab_size`.
    pub(crate) fn row(&self, row: usize, vocab_size: usize) -> Result<(Vec<i32>, Option<Vec<i32>>)> {
        let (batch, within) = self.batch_of(row);
        let ids = |lists: &ListsAt| {
            let mut to = Vec::new();
            lists.append(&self.mapping, within, vocab_size, &mut to).map_err(|e| self.id_error(e, row, vocab_size))?;
            Ok::<_, Error>(to)
        };
        Ok((ids(&batch.input)?, batch.condition.as_ref().map(ids).transpose()?))
    }

    /// Decodes group `group` of [`rows_of_groups`](Self::rows_of_groups).
    pub(crate) fn read(&self, group: usize, vocab_size: usize) -> Result<RowGroup> {
        let begin = group.saturating_mul(ROWS_OF_GROUP).min(self.contents.rows);
        let end = begin.saturating_add(ROWS_OF_GROUP).min(self.contents.rows);
        let mut rows =
            RowGroup { input: Ragged::default(), condition: self.contents.conditional.then(Ragged::default) };
        for row in begin..end {
            let (batch, within) = self.batch_of(row);
            let append = |lists: &ListsAt, to: &mut Ragged| {
                to.push_with(|ids| lists.append(&self.mapping, within, vocab_size, ids))
                    .map_err(|e| self.id_error(e, row, vocab_size))
            };
            append(&batch.input, &mut rows.input)?;
            if let (Some(lists), Some(to)) = (&batch.condition, &mut rows.condition) {
                append(lists, to)?;
            }
        }
        Ok(rows)
    }

    /// Number and texts of `row`, which must exist.
    pub(crate) fn carried(&self, row: usize) -> Result<CarriedText> {
        let (batch, within) = self.batch_of(row);
        let bad = |reason: &str| self.damaged(format!("row {row} {reason}"));
        let text = |at: &Option<TextsAt>| -> Result<Option<String>> {
            let found = match at {
                None => return Ok(None),
                Some(TextsAt::Plain(strings)) => strings.get(&self.mapping, within),
                Some(TextsAt::Dictionary { indices, values }) => match indices.get(&self.mapping, within) {
                    None => return Ok(None),
                    Some(index) => self.dictionary_value(values, index),
                },
            };
            Ok(found.map_err(bad)?.map(str::to_owned))
        };
        let index = batch.index.as_ref().and_then(|integers| integers.get(&self.mapping, within));
        Ok(CarriedText { index, input: text(&batch.input_text)?, target: text(&batch.target_text)? })
    }

    fn dictionary_value(&self, values: &Range<usize>, index: i64) -> Result<Option<&str>, &'static str> {
        const BEYOND: &str = "has an index beyond its dictionary";
        let mut index = usize::try_from(index).map_err(|_| BEYOND)?;
        for strings in &self.contents.dictionaries[values.clone()] {
            match index.checked_sub(strings.len()) {
                None => return strings.get(&self.mapping, index),
                Some(rest) => index = rest,
            }
        }
        Err(BEYOND)
    }

    /// The batch of `row`, and the row's number within it. Empty batches are not noted, so that the last batch that begins at or
    /// before a row holds it.
    fn batch_of(&self, row: usize) -> (&Batch, usize) {
        let batch = &self.contents.batches[self.contents.batches.partition_point(|batch| batch.rows_before <= row) - 1];
        (batch, row - batch.rows_before)
    }

    fn id_error(&self, error: IdError, row: usize, vocab_size: usize) -> Error {
        match error {
            IdError::OutOfRange(id) => Error::IdOutOfRange { path: self.path.clone(), row, id, vocab_size },
            IdError::Damaged(reason) => self.damaged(format!("row {row} {reason}")),
        }
    }

    fn damaged(&self, reason: String) -> Error {
        damaged(&self.path, reason)
    }
}

fn damaged(path: &Path, reason: String) -> Error {
    Error::Damaged { path: path.to_owned(), reason, remedy: REMEDY }
}

fn error(path: &Path, fault: Fault) -> Error {
    let unsupported = |reason: &str| {
        Error::Config(format!(
            "`{}` cannot be read: {reason}; write it with `datasets`' save_to_disk, or as Parquet with to_parquet",
            path.display()
        ))
    };
    match fault {
        Fault::Damaged(reason) => damaged(path, reason),
        Fault::Unsupported(reason) => unsupported(&reason),
        Fault::Layout(LayoutError::MissingInput { present }) => {
            Error::missing_column(path, crate::shards::INPUT_IDS, &present)
        }
        Fault::Layout(LayoutError::WrongType { column, found }) => {
            Error::WrongType { path: path.to_owned(), column, found, wanted: "lists of integers" }
        }
        Fault::Layout(LayoutError::Unsupported { column, found }) => {
            unsupported(&format!("column `{column}` holds {found}"))
        }
        Fault::Layout(LayoutError::Damaged(reason)) => damaged(path, reason.to_owned()),
    }
}
