//! Text to token shards to batches.
//!
//! The path of a corpus: [`source`] streams text columns out of Parquet, JSONL or plain text; [`selection`] takes some of them by rules; [`Tokenizer`] turns text into ids;
//! [`shards::prepare`] packs and writes them as Parquet token shards; [`Dataset`] opens such shards (or those of others, Hugging
//! Face's `save_to_disk` folders included) for random access by row; [`evaluation`] reads pairs of texts to evaluate with; [`Order`] says which row comes when, for every rank; [`Collator`] cuts, joins and pads rows to a [`Batch`];
//! [`Loader`] does all this ahead of time on a thread of its own.
//!
//! What this crate deliberately does not know: tensors, devices, models, training. A [`Batch`] is plain vectors of numbers, and
//! masks are kept as two lengths per row until somebody asks for them in full.
//! It never prints and reads no environment variables: progress goes to callbacks, problems come back as [`Error`].

mod arrow_stream;
mod carried;
mod collate;
mod data_file;
mod dataset;
mod error;
pub mod evaluation;
mod loader;
mod order;
mod packing;
pub mod selection;
pub mod shards;
pub mod source;
mod tokenizer;
mod unigram_training;

pub use carried::CarriedText;
pub use collate::{Batch, CollateConfig, Collator, PadToken, is_label_dropped};
pub use dataset::{Dataset, Example, OpenOptions};
pub use error::{Error, Result};
pub use loader::{Loaded, Loader, LoaderConfig};
pub use order::{Cursor, EpochOrder, Grouping, Order, OrderConfig, Share};
pub use packing::{Packer, Packing};
pub use tokenizer::{EOS, PAD, Tokenizer, UNK};
pub use unigram_training::{Trained, UnigramConfig, train_unigram};
