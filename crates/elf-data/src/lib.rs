//! Text to token shards to batches.
//!
//! The path of a corpus:
//!
//! * [`source`] streams text columns out of Parquet, JSON lines or plain text;
//! * [`selection`] keeps some rows of them, by rules;
//! * [`Tokenizer`] turns text into ids;
//! * [`shards::prepare`] packs the ids and writes Parquet token shards;
//! * [`Dataset`] opens such shards, or those of other tools (folders of Hugging Face's `save_to_disk` too), for random access by row;
//! * [`evaluation`] reads pairs of texts to evaluate with;
//! * [`Order`] decides which row comes when, on every rank;
//! * [`Collator`] cuts, joins and pads rows to a [`Batch`];
//! * [`Loader`] makes batches ahead of time on a thread of its own.
//!
//! This crate deliberately does not know tensors, devices, models or training. A [`Batch`] is plain vectors of numbers; two lengths
//! per row stand for its masks. The crate never prints and reads no environment variables: progress goes to callbacks, problems
//! come back as [`Error`].

mod arrow_stream;
mod coins;
mod collate;
mod compact_rows;
mod data_file;
mod dataset;
mod error;
pub mod evaluation;
mod example;
mod given;
mod group_cache;
mod loader;
mod order;
mod packing;
mod parquet_file;
mod row_group;
pub mod selection;
pub mod shards;
pub mod source;
mod splits;
mod tokenizer;
mod unigram_training;
mod wordpiece_cut;
mod words;

pub use collate::{Batch, CollateConfig, Collator, PadToken, is_label_dropped};
pub use dataset::{Dataset, OpenOptions};
pub use error::{Error, Result};
pub use example::{CarriedText, Example};
pub use given::GivenShares;
pub use loader::{Loaded, Loader, LoaderConfig};
pub use order::{Cursor, EpochOrder, Grouping, Order, OrderConfig, Share};
pub use packing::{Packer, Packing};
pub use splits::is_split;
pub use tokenizer::{EOS, PAD, Tokenizer, UNK};
pub use unigram_training::{Trained, UnigramConfig, train_unigram};
pub use wordpiece_cut::{SmallerTokenizer, WordPieceCut};
pub use words::word_list;
