//! Token shards: Parquet files of token ids that a [`Dataset`](crate::Dataset) reads.
//!
//! A shard has a column `input_ids` and, for conditional tasks, `condition_input_ids`, both lists of int32, compressed with zstd.
//! [`prepare`] also stores how a shard was made ([`ShardMetadata`]), under the key `elf` of the file's key-value metadata. Shards of
//! other tools with these columns (lists of any integer type) are read as well.

mod encode;
mod find;
mod inspect;
mod manifest;
mod metadata;
mod prepare;
pub(crate) mod reader;
mod writer;

pub(crate) use find::find;
pub use inspect::{Lengths, Summary, inspect};
pub use metadata::{EosOptions, FORMAT_VERSION, ShardMetadata};
pub use prepare::{PrepareConfig, PrepareReport, Progress, prepare};

/// The column of target ids.
pub const INPUT_IDS: &str = "input_ids";
/// The column of condition ids.
pub const CONDITION_INPUT_IDS: &str = "condition_input_ids";
/// The key of a shard's metadata.
pub const METADATA_KEY: &str = "elf";
/// The file of a prepared folder that lists its shards and the parameters they were made with.
pub const MANIFEST: &str = "manifest.json";
