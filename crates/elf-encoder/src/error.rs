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
    #[error("{} is not a usable T5 configuration: {reason}", path.display())]
    ConfigFile {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what would be right.
        reason: String,
    },

    /// An encoder's settings contradict each other or make no model.
    #[error("no T5 encoder can have these settings: {0}")]
    Config(String),

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
    /// A tensor of another shape than expected.
    pub(crate) fn shape(what: &str, found: &tch::Tensor, expected: impl Into<String>) -> Self {
        Self::Core(elf_core::Error::Shape { what: what.to_owned(), found: found.size(), expected: expected.into() })
    }
}
