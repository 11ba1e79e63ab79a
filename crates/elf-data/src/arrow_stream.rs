//! Arrow IPC files of token ids, as Hugging Face `save_to_disk` writes them, mapped into memory.
//!
//! Opening walks the messages of a stream once and notes, for each record batch, at which bytes its columns lie; rows are then
//! read straight from the mapping, in a time that depends neither on the number of rows nor on the size of a batch.
//! The columns are resolved here rather than by Arrow's decoder, because that one validates a whole batch whenever one row of it
//! is wanted, and panics if a damaged message points outside its body. Here every read is checked against the file's length.

mod column;
mod layout;
mod messages;

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::carried::CarriedText;
use crate::error::{Error, Result};
use crate::shards::reader::{Ragged, RowGroup};
use column::{IdError, IntegersAt, ListsAt, StringsAt};

const REMEDY: &str = "copy or download it again, or write it again with `save_to_disk`";

/// Rows that are decoded together when all rows are visited in order.
const ROWS_OF_GROUP: usize = 4096;

/// The bytes with which Arrow IPC data begins: a stream, and a file (a stream between two marks, with an index at its end).
const STREAM_START: &[u8] = &[0xff; 4];
const FILE_MARK: &[u8] = b"ARROW1";

/// Whether a file that begins so holds Arrow IPC data.
pub(crate) fn is_arrow(beginning: &[u8]) -> bool {
    beginning.starts_with(STREAM_START) || beginning.starts_with(FILE_MARK)
}

/// An opened Arrow IPC file: it is known where each batch lies; no row is read.
#[derive(Debug)]
pub(crate) struct ArrowFile {
    pub(crate) path: PathBuf,
    mapping: Mmap,
    batches: Vec<Batch>,
    // Values of dictionary-encoded columns; a batch names its part.
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
        // SAFETY: the mapping is read only through bounds-checked slices, and no reference into it leaves this module. What remains
        // is that somebody cuts the file while it is in use; no program that maps files can rule that out.
        let mapping = unsafe { Mmap::map(&file) }.map_err(Error::io("map the Arrow file", path))?;
        let mut opened = Self {
            path: path.to_owned(),
            mapping,
            batches: Vec::new(),
            dictionaries: Vec::new(),
            conditional: false,
            rows: 0,
            ids: 0,
        };
        opened.read_messages()?;
        Ok(opened)
    }

    pub(crate) fn is_conditional(&self) -> bool {
        self.conditional
    }

    /// Number of ids in both columns.
    pub(crate) fn ids(&self) -> u64 {
        self.ids
    }

    /// Rows of each group: parts of the file that are small enough to be decoded at once.
    pub(crate) fn rows_of_groups(&self) -> Vec<usize> {
        let whole = self.rows / ROWS_OF_GROUP;
        let rest = self.rows % ROWS_OF_GROUP;
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
        let begin = group.saturating_mul(ROWS_OF_GROUP).min(self.rows);
        let end = begin.saturating_add(ROWS_OF_GROUP).min(self.rows);
        let mut rows = RowGroup { input: Ragged::default(), condition: self.conditional.then(Ragged::default) };
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

    /// What is carried along with `row`, which must exist.
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
        for strings in &self.dictionaries[values.clone()] {
            match index.checked_sub(strings.len()) {
                None => return strings.get(&self.mapping, index),
                Some(rest) => index = rest,
            }
        }
        Err(BEYOND)
    }

    /// The batch of `row`, and the row's number within it. Empty batches are never noted, so that the last that begins at or
    /// before a row holds it.
    fn batch_of(&self, row: usize) -> (&Batch, usize) {
        let batch = &self.batches[self.batches.partition_point(|batch| batch.rows_before <= row) - 1];
        (batch, row - batch.rows_before)
    }

    fn id_error(&self, error: IdError, row: usize, vocab_size: usize) -> Error {
        match error {
            IdError::OutOfRange(id) => Error::IdOutOfRange { path: self.path.clone(), row, id, vocab_size },
            IdError::Damaged(reason) => self.damaged(format!("row {row} {reason}")),
        }
    }

    fn damaged(&self, reason: String) -> Error {
        Error::Damaged { path: self.path.clone(), reason, remedy: REMEDY }
    }
}
