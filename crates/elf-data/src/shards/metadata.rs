//! The metadata of a shard: how it was made.

use serde::{Deserialize, Serialize};

use crate::packing::Packing;

/// The version of the shard format that this crate writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// Which columns end in an EOS token.
///
/// The tokenizer adds none. The ELF authors' published data has one after conditions, and a target filled up with EOS needs none:
/// hence one setting per column.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EosOptions {
    /// Append EOS to targets. Required by [`Packing::Concat`], which separates documents by it.
    pub target: bool,
    /// Append EOS to conditions.
    pub condition: bool,
}

/// How a shard was made. Stored as JSON in the shard itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardMetadata {
    /// [`FORMAT_VERSION`] at the time of writing.
    pub format_version: u32,
    /// [`Tokenizer::fingerprint`](crate::Tokenizer::fingerprint).
    pub tokenizer: String,
    /// [`Tokenizer::vocab_size`](crate::Tokenizer::vocab_size); every id is below it.
    pub vocab_size: usize,
    /// EOS per column.
    pub eos: EosOptions,
    /// How documents became rows.
    pub packing: Packing,
    /// Names of the files that the texts came from.
    pub source: Vec<String>,
    /// The text column of the targets.
    pub target_column: String,
    /// The text column of the conditions.
    pub condition_column: Option<String>,
    /// Documents in this shard, empty ones not counted.
    pub documents: u64,
    /// Rows in this shard.
    pub rows: u64,
    /// Ids in this shard's `input_ids`.
    pub tokens: u64,
    /// Ids in this shard's `condition_input_ids`.
    pub condition_tokens: u64,
}

impl ShardMetadata {
    /// The first difference in how two shards were made, or `None`. Counts are not compared.
    pub(crate) fn difference(&self, other: &Self) -> Option<&'static str> {
        if self.tokenizer != other.tokenizer || self.vocab_size != other.vocab_size {
            Some("they were made with different tokenizers")
        } else if self.eos != other.eos {
            Some("their EOS options differ")
        } else if self.packing != other.packing {
            Some("their packing differs")
        } else if self.condition_column.is_some() != other.condition_column.is_some() {
            Some("only one of them has conditions")
        } else {
            None
        }
    }
}
