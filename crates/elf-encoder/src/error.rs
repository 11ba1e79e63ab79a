//! What can go wrong between token ids and latents.

use std::path::PathBuf;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of an encoder, of its files, or of latent statistics.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Tensors, parameters or files of tensors.
    #[error(transparent)]
    Core(#[from] elf_core::Error),

    /// An encoder's configuration file is not what it should be.
    #[error("{} is not a usable encoder configuration: {reason}", path.display())]
    ConfigFile {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what would be right.
        reason: String,
    },

    /// An encoder's settings contradict each other or make no model.
    #[error("no encoder can have these settings: {0}")]
    Config(String),

    /// A layer that an encoder does not have or cannot give.
    #[error("encoder_layer {0}")]
    Layer(String),

    /// A `tokenizer.json` does not say what an encoder needs to know of it.
    #[error("{} must lie with the encoder and name the id of its special token [CLS]: {reason}", path.display())]
    TokenizerFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// Rows that are longer than the positions that the encoder has learned.
    #[error(
        "rows of {tokens} tokens are longer than the {most} that the encoder takes: shorten them (max_length) to {most} at most"
    )]
    TooLong {
        /// Tokens of a row.
        tokens: i64,
        /// The most that are possible.
        most: i64,
    },

    /// Token ids that the encoder has no embedding for.
    #[error(
        "token id {id} is outside the encoder's vocabulary of {vocab_size}: the ids come from another tokenizer than the encoder's"
    )]
    Vocabulary {
        /// The first such id found: the largest, or a negative one.
        id: i64,
        /// How many entries the encoder knows.
        vocab_size: i64,
    },

    /// Texts that cannot be corrupted as asked, or that are no corruption.
    #[error("span corruption: {0}")]
    Corruption(String),

    /// Statistics of latents that cannot be used or measured.
    #[error("latent statistics: {0}")]
    Stats(String),
}

impl From<tch::TchError> for Error {
    fn from(source: tch::TchError) -> Self {
        Self::Core(source.into())
    }
}

impl Error {
    /// Names the file whose settings are refused; other errors stay as they are.
    pub(crate) fn in_file(self, path: &std::path::Path) -> Self {
        match self {
            Self::Config(reason) => Self::ConfigFile { path: path.to_owned(), reason },
            other => other,
        }
    }

    /// A tensor of another shape than expected.
    pub(crate) fn shape(what: &str, found: &tch::Tensor, expected: impl Into<String>) -> Self {
        Self::Core(elf_core::Error::Shape { what: what.to_owned(), found: found.size(), expected: expected.into() })
    }
}
