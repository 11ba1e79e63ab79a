//! The walk over the messages of a stream, which notes where batches and dictionaries lie.

use std::collections::HashMap;
use std::ops::Range;

use arrow::ipc::{DictionaryBatch, Endianness, Message, MetadataVersion, RecordBatch, Schema, root_as_message};

use super::batch::{InMessage, Parts, dictionary_values};
use super::layout::{Layout, LayoutError};
use super::{Contents, FILE_MARK, STREAM_START};

/// Why a file cannot be read. The path is added later.
pub(super) enum Fault {
    /// The bytes contradict the format.
    Damaged(String),
    /// The format allows it, this reader does not.
    Unsupported(String),
    /// The schema lacks a column, or one has the wrong type.
    Layout(LayoutError),
}

/// A message's place in the file.
struct Envelope {
    metadata: Range<usize>,
    next: usize,
}

/// Notes the contents of the Arrow stream or file in `bytes`.
pub(super) fn contents(bytes: &[u8]) -> Result<Contents, Fault> {
    // Zeros fill up the mark of a file to eight bytes, those of some writers to 64.
    let as_file = bytes.starts_with(FILE_MARK);
    let mut at = if as_file { 8 } else { 0 };
    while as_file && at < 64 && bytes.get(at..at + 8) == Some(&[0; 8]) {
        at += 8;
    }
    if bytes.get(at..).is_none_or(|rest| !rest.starts_with(STREAM_START)) {
        let reason = if bytes.is_empty() { "it is empty" } else { "it does not begin as an Arrow stream does" };
        return Err(Fault::Damaged(reason.to_owned()));
    }
    let mut walk = Walk::default();
    while let Some(envelope) = envelope(bytes, at).map_err(Fault::Damaged)? {
        let message = root_as_message(&bytes[envelope.metadata.clone()])
            .map_err(|e| Fault::Damaged(format!("the message at byte {at} cannot be read: {e}")))?;
        let length = usize::try_from(message.bodyLength()).ok();
        let end = length.and_then(|length| envelope.next.checked_add(length)).filter(|&end| end <= bytes.len());
        let end = end.ok_or_else(|| Fault::Damaged(format!("the message at byte {at} is longer than the file")))?;
        walk.message(&message, envelope.next..end).map_err(|fault| match fault {
            Fault::Damaged(reason) => Fault::Damaged(format!("the message at byte {at} {reason}")),
            other => other,
        })?;
        at = end;
    }
    if walk.layout.is_none() {
        return Err(Fault::Damaged("it has no schema".to_owned()));
    }
    // After the end mark, a stream ends and a file has its index.
    let rest = &bytes[(at + 8).min(bytes.len())..];
    match as_file {
        true if !rest.ends_with(FILE_MARK) => Err(Fault::Damaged("its closing mark is missing".to_owned())),
        false if !rest.is_empty() => Err(Fault::Damaged(format!("{} bytes follow its end mark", rest.len()))),
        _ => Ok(walk.contents),
    }
}

/// The state between two messages.
#[derive(Default)]
struct Walk {
    layout: Option<Layout>,
    contents: Contents,
    /// The current values of each dictionary: a range of [`Contents::dictionaries`].
    current: HashMap<i64, Range<usize>>,
}

impl Walk {
    fn message(&mut self, message: &Message<'_>, body: Range<usize>) -> Result<(), Fault> {
        if let Some(schema) = message.header_as_schema() {
            return self.schema(schema, message.version());
        }
        if self.layout.is_none() {
            return Err(Fault::Damaged("comes before a schema".to_owned()));
        }
        if let Some(dictionary) = message.header_as_dictionary_batch() {
            self.dictionary(&dictionary, &body)
        } else if let Some(batch) = message.header_as_record_batch() {
            self.batch(batch, body)
        } else {
            Err(Fault::Damaged(format!("is of an unknown kind ({})", kind(message))))
        }
    }

    fn schema(&mut self, schema: Schema<'_>, version: MetadataVersion) -> Result<(), Fault> {
        if self.layout.is_some() {
            return Err(Fault::Damaged("is a second schema".to_owned()));
        }
        if schema.endianness() != Endianness::Little {
            return Err(Fault::Unsupported("its numbers are big-endian".to_owned()));
        }
        if version < MetadataVersion::V4 {
            return Err(Fault::Unsupported("it is of an Arrow version before 0.8".to_owned()));
        }
        let found = Layout::of(schema, version).map_err(Fault::Layout)?;
        self.contents.conditional = found.condition.is_some();
        self.layout = Some(found);
        Ok(())
    }

    fn dictionary(&mut self, dictionary: &DictionaryBatch<'_>, body: &Range<usize>) -> Result<(), Fault> {
        uncompressed(dictionary.data().as_ref())?;
        let id = dictionary.id();
        let Some(lengths) = self.layout.as_ref().and_then(|layout| layout.dictionary(id)) else { return Ok(()) };
        let strings = dictionary_values(dictionary, body, lengths).map_err(Fault::Damaged)?;
        let dictionaries = &mut self.contents.dictionaries;
        let new = dictionaries.len()..dictionaries.len() + 1;
        // A delta extends the dictionary's former values, provided that they are the last ones noted.
        let range = match self.current.get(&id) {
            Some(old) if dictionary.isDelta() && old.end == new.start => old.start..new.end,
            Some(_) if dictionary.isDelta() => {
                return Err(Fault::Unsupported("the parts of its dictionaries are interleaved".to_owned()));
            }
            _ => new,
        };
        dictionaries.push(strings);
        self.current.insert(id, range);
        Ok(())
    }

    fn batch(&mut self, batch: RecordBatch<'_>, body: Range<usize>) -> Result<(), Fault> {
        uncompressed(Some(&batch))?;
        let Some(layout) = &self.layout else { return Ok(()) };
        let contents = &mut self.contents;
        let (batch, elements) =
            Parts { batch, body }.batch(layout, &self.current, contents.rows).map_err(Fault::Damaged)?;
        contents.rows = contents
            .rows
            .checked_add(batch.rows)
            .ok_or_else(|| Fault::Damaged("claims more rows than can be counted".to_owned()))?;
        contents.ids = contents.ids.saturating_add(elements);
        if batch.rows > 0 {
            contents.batches.push(batch);
        }
        Ok(())
    }
}

fn uncompressed(batch: Option<&RecordBatch<'_>>) -> Result<(), Fault> {
    match batch.is_some_and(|batch| batch.compression().is_some()) {
        true => Err(Fault::Unsupported("its buffers are compressed".to_owned())),
        false => Ok(()),
    }
}

/// The message at byte `at`; `None` at the end mark.
fn envelope(file: &[u8], at: usize) -> InMessage<Option<Envelope>> {
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
