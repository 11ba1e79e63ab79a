//! Errors between a text file and a batch, each with its remedy.

use std::path::{Path, PathBuf};

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of this crate. The message names the thing and says what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened, read or written.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// The attempted action, a verb: "open", "write".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// No file of a wanted kind was found.
    #[error("no {what} in `{}`: {remedy}", path.display())]
    NothingFound {
        /// The kind of file that was searched for.
        what: &'static str,
        /// The file or folder that was searched.
        path: PathBuf,
        /// How to mend it.
        remedy: String,
    },
    /// A tokenizer file is not a tokenizer.
    #[error("`{origin}` is not a usable tokenizer.json: {reason}")]
    Tokenizer {
        /// The file, or "in memory".
        origin: String,
        /// The tokenizer library's reason.
        reason: String,
    },
    /// A tokenizer lacks a special token that was asked for.
    #[error(
        "the tokenizer {origin} has no {} token: use one trained by `elf tokenizer train`, T5's or BERT's", names.join(" or ")
    )]
    MissingToken {
        /// Where the tokenizer came from.
        origin: String,
        /// The token's possible texts.
        names: [&'static str; 2],
    },
    /// A text could not be encoded, or ids not decoded.
    #[error("the tokenizer cannot {action}: {reason}")]
    Tokenize {
        /// "encode a text" or "decode ids".
        action: &'static str,
        /// The tokenizer library's reason.
        reason: String,
    },
    /// Training a tokenizer failed.
    #[error("cannot train a tokenizer: {0}")]
    Training(String),
    /// A wanted text column is not in a file.
    #[error("`{}` has no column `{column}`; it has {present}{hint}", path.display())]
    MissingColumn {
        /// The file.
        path: PathBuf,
        /// The column that was asked for.
        column: String,
        /// The columns of the file.
        present: String,
        /// A question about the most similar name, or nothing.
        hint: String,
    },
    /// A column has the wrong type.
    #[error("column `{column}` of `{}` holds {found}, not {wanted}", path.display())]
    WrongType {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// The type found.
        found: String,
        /// The type needed.
        wanted: &'static str,
    },
    /// A data file is truncated or damaged.
    #[error("`{}` is truncated or damaged ({reason}): {remedy}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The reader's reason.
        reason: String,
        /// How to get an intact file.
        remedy: &'static str,
    },
    /// A file uses a feature of its format that is not read here.
    #[error("`{}` cannot be read: {feature}; {remedy}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The feature.
        feature: String,
        /// How to get a file without it.
        remedy: &'static str,
    },
    /// The lines of a text file cannot be read.
    #[error(transparent)]
    Lines(#[from] elf_files::lines::LineError),
    /// A line or row of a file cannot be used.
    #[error("`{}`, {place}: {reason}", path.display())]
    BadRecord {
        /// The file.
        path: PathBuf,
        /// "line 7" or "row 7", counted from 1.
        place: String,
        /// The fault.
        reason: String,
    },
    /// A setting is out of range or contradicts another.
    #[error("{0}")]
    Config(String),
    /// A folder holds shards of a preparation with other parameters.
    #[error("`{}` holds shards made with other parameters ({difference}): choose another folder, or overwrite", path.display())]
    OtherParameters {
        /// The folder.
        path: PathBuf,
        /// The parameters that differ.
        difference: String,
    },
    /// The caller stopped a preparation. Finished shards stay.
    #[error("stopped after {shards} finished shards in `{}`: run the same command again to go on", path.display())]
    Interrupted {
        /// The folder.
        path: PathBuf,
        /// Number of finished shards.
        shards: usize,
    },
    /// Shards were made with another tokenizer.
    #[error("`{}` was prepared with another tokenizer (fingerprint {shards}, yours is {tokenizer}): use the tokenizer it was made with, or prepare the text again", path.display())]
    TokenizerMismatch {
        /// The shard folder.
        path: PathBuf,
        /// Fingerprint in the shards, shortened.
        shards: String,
        /// Fingerprint of the given tokenizer, shortened.
        tokenizer: String,
    },
    /// Shards of one folder contradict one another.
    #[error("`{}` and `{}` do not belong together: {reason}", first.display(), second.display())]
    MixedShards {
        /// One shard.
        first: PathBuf,
        /// The other.
        second: PathBuf,
        /// The difference.
        reason: String,
    },
    /// A row holds an id outside the vocabulary.
    #[error("`{}`, row {row}: token id {id} is outside the vocabulary of {vocab_size}: the shards belong to another tokenizer or are damaged", path.display())]
    IdOutOfRange {
        /// The shard.
        path: PathBuf,
        /// The row within the shard, from 0.
        row: usize,
        /// The id.
        id: i64,
        /// The vocabulary size.
        vocab_size: usize,
    },
    /// A row number beyond the end.
    #[error("row {row} does not exist: there are {rows} rows, counted from 0")]
    RowOutOfRange {
        /// The requested row.
        row: usize,
        /// The number of rows.
        rows: usize,
    },
    /// An example lacks the condition that `max_input_length` requires.
    #[error(
        "max_input_length is set, so every example needs a condition, but the data has no `condition_input_ids`: prepare it with a condition column, or unset max_input_length"
    )]
    NoCondition,
    /// A cursor does not fit the order.
    #[error("cannot continue from epoch {epoch}, position {position}: {reason}")]
    BadCursor {
        /// The cursor's epoch.
        epoch: u64,
        /// The cursor's position.
        position: u64,
        /// Why the run cannot continue there.
        reason: String,
    },
    /// The loading thread has ended.
    #[error("the data loader stopped unexpectedly; its thread ended without reporting an error")]
    LoaderGone,
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { action, path, source }
    }

    pub(crate) fn missing_column(path: &Path, column: &str, present: &[String]) -> Error {
        let nearest = present
            .iter()
            .map(|name| (strsim::damerau_levenshtein(&name.to_lowercase(), &column.to_lowercase()), name))
            .min()
            .filter(|(distance, name)| *distance <= 1 + name.len().max(column.len()) / 3);
        Error::MissingColumn {
            path: path.to_owned(),
            column: column.to_owned(),
            present: if present.is_empty() { "no columns".to_owned() } else { format!("`{}`", present.join("`, `")) },
            hint: nearest.map(|(_, name)| format!("; did you mean `{name}`?")).unwrap_or_default(),
        }
    }
}
