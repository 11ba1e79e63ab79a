//! The walk over the messages of a stream, which notes where things lie.

use std::collections::HashMap;
use std::ops::Range;

use arrow::ipc::{DictionaryBatch, Endianness, Message, MetadataVersion, RecordBatch, root_as_message};

use super::column::{IntegersAt, Lengths, ListsAt, StringsAt};
use super::layout::{IntegerColumn, Layout, LayoutError, ListColumn, Place, TextColumn};
use super::{ArrowFile, Batch, FILE_MARK, STREAM_START, TextsAt};
use crate::error::{Error, Result};

/// A message's place in the file.
struct Envelope {
    metadata: Range<usize>,
    next: usize,
}

/// Whatever is wrong with a message; the path is added later.
type Reason<T> = std::result::Result<T, String>;

impl ArrowFile {
    pub(super) fn read_messages(&mut self) -> Result<()> {
        // Zeros fill up the mark of a file to eight bytes, those of some writers to 64.
        let as_file = self.mapping.starts_with(FILE_MARK);
        let mut at = if as_file { 8 } else { 0 };
        while as_file && at < 64 && self.mapping.get(at..at + 8) == Some(&[0; 8]) {
            at += 8;
        }
        if self.mapping.get(at..).is_none_or(|rest| !rest.starts_with(STREAM_START)) {
            return Err(self.foreign());
        }
        let mut layout = None;
        let mut current: HashMap<i64, Range<usize>> = HashMap::new();
        while let Some(envelope) = envelope(&self.mapping, at).map_err(|reason| self.damaged(reason))? {
            let bytes = &self.mapping[envelope.metadata.clone()];
            let message = root_as_message(bytes)
                .map_err(|e| self.damaged(format!("the message at byte {at} cannot be read: {e}")))?;
            let length = usize::try_from(message.bodyLength()).ok();
            let end = length.and_then(|length| envelope.next.checked_add(length));
            let Some(end) = end.filter(|&end| end <= self.mapping.len()) else {
                return Err(self.damaged(format!("the message at byte {at} is longer than the file")));
            };
            let body = envelope.next..end;
            let in_message = |reason: String| self.damaged(format!("the message at byte {at} {reason}"));
            if let Some(schema) = message.header_as_schema() {
                if layout.is_some() {
                    return Err(in_message("is a second schema".to_owned()));
                }
                if schema.endianness() != Endianness::Little {
                    return Err(self.unreadable("its numbers are big-endian"));
                }
                if message.version() < MetadataVersion::V4 {
                    return Err(self.unreadable("it is of an Arrow version before 0.8"));
                }
                let found = Layout::of(schema, message.version()).map_err(|e| self.layout_error(e))?;
                self.conditional = found.condition.is_some();
                layout = Some(found);
            } else {
                let Some(layout) = &layout else { return Err(in_message("comes before a schema".to_owned())) };
                let compressed = |batch: &RecordBatch<'_>| batch.compression().is_some();
                if let Some(dictionary) = message.header_as_dictionary_batch() {
                    if dictionary.data().as_ref().is_some_and(compressed) {
                        return Err(self.unreadable("its buffers are compressed"));
                    }
                    if let Some(lengths) = layout.dictionary(dictionary.id()) {
                        let strings = dictionary_values(&dictionary, &body, lengths).map_err(in_message)?;
                        let new = self.dictionaries.len()..self.dictionaries.len() + 1;
                        // A delta lengthens what was there, provided that nothing else came between.
                        let range = match current.get(&dictionary.id()) {
                            Some(old) if dictionary.isDelta() && old.end == new.start => old.start..new.end,
                            Some(_) if dictionary.isDelta() => {
                                return Err(self.unreadable("the parts of its dictionaries are interleaved"));
                            }
                            _ => new,
                        };
                        self.dictionaries.push(strings);
                        current.insert(dictionary.id(), range);
                    }
                } else if let Some(batch) = message.header_as_record_batch() {
                    if compressed(&batch) {
                        return Err(self.unreadable("its buffers are compressed"));
                    }
                    let parts = Parts { batch, body };
                    let (batch, elements) = parts.batch(layout, &current, self.rows).map_err(in_message)?;
                    self.rows = self
                        .rows
                        .checked_add(batch.rows)
                        .ok_or_else(|| in_message("claims more rows than can be counted".to_owned()))?;
                    self.ids = self.ids.saturating_add(elements);
                    if batch.rows > 0 {
                        self.batches.push(batch);
                    }
                } else {
                    return Err(in_message(format!("is of an unknown kind ({})", kind(&message))));
                }
            }
            at = end;
        }
        // Behind the end mark there is nothing, or a file's index.
        let rest = &self.mapping[(at + 8).min(self.mapping.len())..];
        if layout.is_none() {
            return Err(self.damaged("it has no schema".to_owned()));
        }
        match as_file {
            true if !rest.ends_with(FILE_MARK) => Err(self.damaged("its closing mark is missing".to_owned())),
            false if !rest.is_empty() => Err(self.damaged(format!("{} bytes follow its end mark", rest.len()))),
            _ => Ok(()),
        }
    }

    fn foreign(&self) -> Error {
        match self.mapping.is_empty() {
            true => self.damaged("it is empty".to_owned()),
            false => self.damaged("it does not begin as an Arrow stream does".to_owned()),
        }
    }

    fn unreadable(&self, reason: &str) -> Error {
        Error::Config(format!(
            "`{}` cannot be read: {reason}; write it with `datasets`' save_to_disk, or as Parquet with to_parquet",
            self.path.display()
        ))
    }

    fn layout_error(&self, error: LayoutError) -> Error {
        match error {
            LayoutError::MissingInput { present } => {
                Error::missing_column(&self.path, crate::shards::INPUT_IDS, &present)
            }
            LayoutError::WrongType { column, found } => {
                Error::WrongType { path: self.path.clone(), column, found, wanted: "lists of integers" }
            }
            LayoutError::Unsupported { column, found } => self.unreadable(&format!("column `{column}` holds {found}")),
            LayoutError::Damaged(reason) => self.damaged(reason.to_owned()),
        }
    }
}

/// The message at byte `at`; `None` at the end mark.
fn envelope(file: &[u8], at: usize) -> Reason<Option<Envelope>> {
    let prefix = file.get(at..).and_then(|rest| rest.first_chunk::<8>());
    let Some([mark @ .., a, b, c, d]) = prefix else {
        // A writer that was stopped leaves whole messages without the mark.
        return Err(format!("it breaks off at byte {}, before its end mark", file.len()));
    };
    if mark != STREAM_START {
        return Err(format!("there is no message at byte {at}"));
    }
    let length = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
    if length == 0 {
        return Ok(None);
    }
    let begin = at + 8;
    match begin.checked_add(length).filter(|&end| end <= file.len()) {
        Some(end) => Ok(Some(Envelope { metadata: begin..end, next: end })),
        None => Err(format!("the message at byte {at} is longer than the file")),
    }
}

fn kind(message: &Message<'_>) -> &'static str {
    message.header_type().variant_name().unwrap_or("a later version's")
}

fn dictionary_values(dictionary: &DictionaryBatch<'_>, body: &Range<usize>, lengths: Lengths) -> Reason<StringsAt> {
    let batch = dictionary.data().ok_or("is a dictionary without values")?;
    let parts = Parts { batch, body: body.clone() };
    let rows = parts.rows()?;
    parts.strings(Place { node: 0, buffer: 0 }, lengths, rows)
}

/// A record batch's description and the place of its body.
struct Parts<'a> {
    batch: RecordBatch<'a>,
    body: Range<usize>,
}

impl Parts<'_> {
    /// Where the columns of `layout` lie, and how many ids there are.
    fn batch(
        &self,
        layout: &Layout,
        dictionaries: &HashMap<i64, Range<usize>>,
        rows_before: usize,
    ) -> Reason<(Batch, u64)> {
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

    fn rows(&self) -> Reason<usize> {
        usize::try_from(self.batch.length()).map_err(|_| "has a negative number of rows".to_owned())
    }

    /// Length and number of nulls.
    fn node(&self, i: usize) -> Reason<(usize, usize)> {
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

    /// The node of a column of the batch itself, which has as many rows as the batch. Returns the number of nulls.
    fn nulls(&self, i: usize, rows: usize) -> Reason<usize> {
        match self.node(i)? {
            (length, nulls) if length == rows => Ok(nulls),
            _ => Err("has columns of different lengths".to_owned()),
        }
    }

    /// A buffer's bytes in the file.
    fn buffer(&self, i: usize) -> Reason<Range<usize>> {
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

    /// The beginning of a buffer that must have at least `count` elements of `width` bytes.
    fn elements(&self, i: usize, count: usize, width: usize) -> Reason<usize> {
        let range = self.buffer(i)?;
        match count.checked_mul(width) {
            Some(bytes) if bytes <= range.len() => Ok(range.start),
            _ => Err("has a buffer that is too short for its rows".to_owned()),
        }
    }

    fn validity(&self, buffer: usize, nulls: usize, rows: usize) -> Reason<Option<usize>> {
        match nulls {
            0 => Ok(None),
            _ => self.elements(buffer, rows.div_ceil(8), 1).map(Some),
        }
    }

    /// The beginning of the offsets of `rows` rows.
    fn offsets(&self, buffer: usize, width: usize, rows: usize) -> Reason<usize> {
        // Without rows, some writers leave out even the one offset.
        let count = if rows == 0 { Some(0) } else { rows.checked_add(1) };
        self.elements(buffer, count.ok_or("has an impossible number of rows")?, width)
    }

    fn lists(&self, column: &ListColumn, rows: usize) -> Reason<ListsAt> {
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

    fn integers(&self, column: &IntegerColumn, rows: usize) -> Reason<IntegersAt> {
        let &IntegerColumn { place: Place { node, buffer }, integer } = column;
        let nulls = self.nulls(node, rows)?;
        let values = self.elements(buffer + 1, rows, integer.width)?;
        Ok(IntegersAt { integer, validity: self.validity(buffer, nulls, rows)?, values })
    }

    fn strings(&self, place: Place, lengths: Lengths, rows: usize) -> Reason<StringsAt> {
        let nulls = self.nulls(place.node, rows)?;
        let offsets = match lengths {
            Lengths::Offsets { width } => self.offsets(place.buffer + 1, width, rows)?,
            Lengths::Fixed(_) => return Err("has texts of a fixed size".to_owned()),
        };
        let text = self.buffer(place.buffer + 2)?;
        Ok(StringsAt { lengths, len: rows, validity: self.validity(place.buffer, nulls, rows)?, offsets, text })
    }

    fn texts(&self, column: &TextColumn, dictionaries: &HashMap<i64, Range<usize>>, rows: usize) -> Reason<TextsAt> {
        let Some((id, integer)) = column.dictionary else {
            return Ok(TextsAt::Plain(self.strings(column.place, column.lengths, rows)?));
        };
        let indices = self.integers(&IntegerColumn { place: column.place, integer }, rows)?;
        // A dictionary may be left out if all rows are null; an index into it is then found to be beyond its end.
        Ok(TextsAt::Dictionary { indices, values: dictionaries.get(&id).cloned().unwrap_or_default() })
    }
}
