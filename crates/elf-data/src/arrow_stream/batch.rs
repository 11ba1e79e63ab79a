//! Where the columns of one record batch lie in the file.

use std::collections::HashMap;
use std::ops::Range;

use arrow::ipc::{DictionaryBatch, RecordBatch};

use super::column::{IntegersAt, Lengths, ListsAt, StringsAt};
use super::layout::{IntegerColumn, Layout, ListColumn, Place, TextColumn};
use super::{Batch, TextsAt};

/// A fault of one message. The message's place and the file's path are added later.
pub(super) type InMessage<T> = std::result::Result<T, String>;

/// The strings of a dictionary.
pub(super) fn dictionary_values(
    dictionary: &DictionaryBatch<'_>,
    body: &Range<usize>,
    lengths: Lengths,
) -> InMessage<StringsAt> {
    let batch = dictionary.data().ok_or("is a dictionary without values")?;
    let parts = Parts { batch, body: body.clone() };
    let rows = parts.rows()?;
    parts.strings(Place { node: 0, buffer: 0 }, lengths, rows)
}

/// A record batch's description and the place of its body.
pub(super) struct Parts<'a> {
    pub(super) batch: RecordBatch<'a>,
    pub(super) body: Range<usize>,
}

impl Parts<'_> {
    /// The places of the columns of `layout`, and the number of ids in them.
    pub(super) fn batch(
        &self,
        layout: &Layout,
        dictionaries: &HashMap<i64, Range<usize>>,
        rows_before: usize,
    ) -> InMessage<(Batch, u64)> {
        let rows = self.rows()?;
        let input = self.lists(&layout.input, rows)?;
        let condition = layout.condition.as_ref().map(|column| self.lists(column, rows)).transpose()?;
        let elements = input.elements as u64 + condition.as_ref().map_or(0, |lists| lists.elements as u64);
        let texts =
            |column: &Option<TextColumn>| column.as_ref().map(|c| self.texts(c, dictionaries, rows)).transpose();
        let batch = Batch {
            rows_before,
            rows,
            input,
            condition,
            index: layout.index.as_ref().map(|column| self.integers(column, rows)).transpose()?,
            input_text: texts(&layout.input_text)?,
            target_text: texts(&layout.target_text)?,
        };
        Ok((batch, elements))
    }

    fn rows(&self) -> InMessage<usize> {
        usize::try_from(self.batch.length()).map_err(|_| "has a negative number of rows".to_owned())
    }

    /// Length and number of nulls of a node.
    fn node(&self, i: usize) -> InMessage<(usize, usize)> {
        let nodes = self.batch.nodes().ok_or("has no nodes")?;
        if i >= nodes.len() {
            return Err("has fewer columns than its schema".to_owned());
        }
        let node = nodes.get(i);
        match (usize::try_from(node.length()), usize::try_from(node.null_count())) {
            (Ok(length), Ok(nulls)) if nulls <= length => Ok((length, nulls)),
            _ => Err("has an impossible number of rows".to_owned()),
        }
    }

    /// Number of nulls of a column of the batch itself, which must have as many rows as the batch.
    fn nulls(&self, i: usize, rows: usize) -> InMessage<usize> {
        match self.node(i)? {
            (length, nulls) if length == rows => Ok(nulls),
            _ => Err("has columns of different lengths".to_owned()),
        }
    }

    /// A buffer's bytes in the file.
    fn buffer(&self, i: usize) -> InMessage<Range<usize>> {
        let buffers = self.batch.buffers().ok_or("has no buffers")?;
        if i >= buffers.len() {
            return Err("has fewer buffers than its schema needs".to_owned());
        }
        let buffer = buffers.get(i);
        let place = || {
            let begin = self.body.start.checked_add(usize::try_from(buffer.offset()).ok()?)?;
            let end = begin.checked_add(usize::try_from(buffer.length()).ok()?)?;
            (end <= self.body.end).then_some(begin..end)
        };
        place().ok_or_else(|| "has a buffer outside its body".to_owned())
    }

    /// The first byte of a buffer that must have at least `count` elements of `width` bytes.
    fn elements(&self, i: usize, count: usize, width: usize) -> InMessage<usize> {
        let range = self.buffer(i)?;
        match count.checked_mul(width) {
            Some(bytes) if bytes <= range.len() => Ok(range.start),
            _ => Err("has a buffer that is too short for its rows".to_owned()),
        }
    }

    fn validity(&self, buffer: usize, nulls: usize, rows: usize) -> InMessage<Option<usize>> {
        match nulls {
            0 => Ok(None),
            _ => self.elements(buffer, rows.div_ceil(8), 1).map(Some),
        }
    }

    /// The first byte of the offsets of `rows` rows.
    fn offsets(&self, buffer: usize, width: usize, rows: usize) -> InMessage<usize> {
        // Some writers leave out the only offset of a column without rows.
        let count = if rows == 0 { Some(0) } else { rows.checked_add(1) };
        self.elements(buffer, count.ok_or("has an impossible number of rows")?, width)
    }

    fn lists(&self, column: &ListColumn, rows: usize) -> InMessage<ListsAt> {
        let &ListColumn { place: Place { node, buffer }, lengths, integer } = column;
        if self.nulls(node, rows)? > 0 {
            return Err("has rows of token ids that are null".to_owned());
        }
        let (elements, nulls) = self.node(node + 1)?;
        if nulls > 0 {
            return Err("has token ids that are null".to_owned());
        }
        // Validity comes before offsets, and the elements' own validity before the elements.
        let (offsets, values) = match lengths {
            Lengths::Offsets { width } => (self.offsets(buffer + 1, width, rows)?, buffer + 3),
            Lengths::Fixed(size) => match rows.checked_mul(size) {
                Some(needed) if needed <= elements => (0, buffer + 2),
                _ => return Err("has fewer token ids than its rows need".to_owned()),
            },
        };
        let values = self.elements(values, elements, integer.width)?;
        Ok(ListsAt { lengths, integer, offsets, values, elements })
    }

    fn integers(&self, column: &IntegerColumn, rows: usize) -> InMessage<IntegersAt> {
        let &IntegerColumn { place: Place { node, buffer }, integer } = column;
        let nulls = self.nulls(node, rows)?;
        let values = self.elements(buffer + 1, rows, integer.width)?;
        Ok(IntegersAt { integer, validity: self.validity(buffer, nulls, rows)?, values })
    }

    fn strings(&self, place: Place, lengths: Lengths, rows: usize) -> InMessage<StringsAt> {
        let nulls = self.nulls(place.node, rows)?;
        let offsets = match lengths {
            Lengths::Offsets { width } => self.offsets(place.buffer + 1, width, rows)?,
            Lengths::Fixed(_) => return Err("has texts of a fixed size".to_owned()),
        };
        let text = self.buffer(place.buffer + 2)?;
        Ok(StringsAt { lengths, len: rows, validity: self.validity(place.buffer, nulls, rows)?, offsets, text })
    }

    fn texts(&self, column: &TextColumn, dictionaries: &HashMap<i64, Range<usize>>, rows: usize) -> InMessage<TextsAt> {
        let Some((id, integer)) = column.dictionary else {
            return Ok(TextsAt::Plain(self.strings(column.place, column.lengths, rows)?));
        };
        let indices = self.integers(&IntegerColumn { place: column.place, integer }, rows)?;
        // A dictionary may be missing if all rows are null. An index into it is then beyond its end.
        Ok(TextsAt::Dictionary { indices, values: dictionaries.get(&id).cloned().unwrap_or_default() })
    }
}
