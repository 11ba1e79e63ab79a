//! Rows of text to token ids, chunk by chunk.

use crossbeam_channel::Sender;
use rayon::prelude::*;

use crate::error::Result;
use crate::source::TextRow;
use crate::tokenizer::Tokenizer;

/// Largest chunk of documents that is tokenised at once, in rows and in bytes: enough to keep all cores busy in constant memory.
const ROWS_PER_CHUNK: usize = 1024;
const BYTES_PER_CHUNK: usize = 8 << 20;

/// Number and length in characters of the texts with unknown tokens that are shown.
pub(super) const EXAMPLES: usize = 3;
const EXAMPLE_LENGTH: usize = 60;

/// Rows of the source that are tokenised together.
pub(super) struct Chunk {
    rows: Vec<TextRow>,
    ends_shard: bool,
}

/// Reads `rows` from the `skip`th on in chunks, none of which exceeds a shard of `per_shard` rows.
pub(super) fn read_chunks(
    rows: impl Iterator<Item = Result<TextRow>>,
    skip: u64,
    per_shard: usize,
    sender: &Sender<Result<Chunk>>,
) {
    let mut chunk = Chunk { rows: Vec::new(), ends_shard: false };
    let (mut bytes, mut in_shard) = (0usize, 0usize);
    for (i, row) in rows.enumerate() {
        let row = match row {
            Ok(_) if (i as u64) < skip => continue,
            Ok(row) => row,
            Err(e) => {
                // Sending fails only if the receiver was dropped, and then the error concerns nobody.
                let _ = sender.send(Err(e));
                return;
            }
        };
        bytes += row.iter().map(String::len).sum::<usize>();
        in_shard += 1;
        chunk.rows.push(row);
        chunk.ends_shard = in_shard == per_shard;
        if chunk.ends_shard || chunk.rows.len() >= ROWS_PER_CHUNK || bytes >= BYTES_PER_CHUNK {
            in_shard %= per_shard;
            bytes = 0;
            let full = std::mem::replace(&mut chunk, Chunk { rows: Vec::new(), ends_shard: false });
            if sender.send(Ok(full)).is_err() {
                return;
            }
        }
    }
    // The last chunk closes the open shard, even if it is empty. Without an open shard the sink ignores it.
    chunk.ends_shard = true;
    let _ = sender.send(Ok(chunk));
}

/// The tokenizer and the tokens that it does not add itself.
pub(super) struct Encoder<'a> {
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) target_eos: Option<i32>,
    pub(super) condition_eos: Option<i32>,
    pub(super) unknown: Option<i32>,
}

/// An encoded document.
pub(super) struct Document {
    pub(super) target: Vec<i32>,
    pub(super) condition: Vec<i32>,
    /// Number of unknown ids in both.
    pub(super) unknown: u64,
}

/// A chunk's documents.
pub(super) struct EncodedChunk {
    /// One per row; `None` if the target has no text.
    pub(super) documents: Vec<Option<Document>>,
    /// The first texts with unknown ids.
    pub(super) unknown_examples: Vec<String>,
    pub(super) ends_shard: bool,
}

impl Encoder<'_> {
    pub(super) fn encode(&self, chunk: &Chunk) -> Result<EncodedChunk> {
        let encode = |row: &TextRow| {
            let mut target = self.tokenizer.encode(row.first().map_or("", String::as_str))?;
            if target.is_empty() {
                return Ok(None);
            }
            target.extend(self.target_eos);
            let mut condition = self.tokenizer.encode(row.get(1).map_or("", String::as_str))?;
            condition.extend(self.condition_eos);
            let unknown = self.unknown_in(&target) + self.unknown_in(&condition);
            Ok(Some(Document { target, condition, unknown }))
        };
        let documents: Vec<Option<Document>> = chunk.rows.par_iter().map(encode).collect::<Result<_>>()?;
        let with_unknown = |(row, document): (&TextRow, &Option<Document>)| {
            let document = document.as_ref().filter(|document| document.unknown > 0)?;
            let text = row.get(usize::from(self.unknown_in(&document.target) == 0))?;
            Some(text.chars().take(EXAMPLE_LENGTH).collect())
        };
        let unknown_examples = chunk.rows.iter().zip(&documents).filter_map(with_unknown).take(EXAMPLES).collect();
        Ok(EncodedChunk { documents, unknown_examples, ends_shard: chunk.ends_shard })
    }

    fn unknown_in(&self, ids: &[i32]) -> u64 {
        self.unknown.map_or(0, |unknown| ids.iter().filter(|&&id| id == unknown).count() as u64)
    }
}
