//! Errors of GPT-2 and its files.

use std::path::PathBuf;

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the model, its files, or its tokeniser.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operation on tensors, parameters or files of tensors failed.
    #[error(transparent)]
    Core(#[from] elf_core::Error),

    /// The configuration file cannot be used.
    #[error("{} is not a usable GPT-2 configuration: {reason}", path.display())]
    ConfigFile {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to use in its place.
        reason: String,
    },

    /// Invalid or contradictory settings.
    #[error("no GPT-2 can have these settings: {0}")]
    Config(String),

    /// The checkpoint has a separate vocabulary head, unlike GPT-2.
    #[error("{}: lm_head.weight differs from the embedding of tokens; GPT-2 uses one table for both, so this is another kind of model", path.display())]
    UntiedHead {
        /// The file.
        path: PathBuf,
    },

    /// Token ids that the model has no embedding for.
    #[error(
        "token id {id} is outside the model's vocabulary of {vocab_size}: the ids come from another tokenizer than the model's"
    )]
    Vocabulary {
        /// The first such id found: the largest, or a negative one.
        id: i64,
        /// Entries of the model's vocabulary.
        vocab_size: i64,
    },

    /// More tokens than the model has positions for.
    #[error("a sequence of {length} tokens was given, but the model has only {positions} positions; cut it")]
    TooLong {
        /// Tokens in the sequence.
        length: i64,
        /// Positions of the model.
        positions: i64,
    },

    /// The tokeniser's file cannot be used.
    #[error("cannot use the tokenizer {}: {source}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The tokeniser and the model in one folder do not belong together.
    #[error("the tokenizer {} does not belong to the model in the same folder: {reason}", path.display())]
    ForeignTokenizer {
        /// The tokeniser's file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },

    /// A text could not be tokenised.
    #[error("a text could not be tokenised: {0}")]
    Tokenise(#[source] Box<dyn std::error::Error + Send + Sync>),

    /// A setting of decoding that is out of its range.
    #[error("{setting}: {reason}")]
    Setting {
        /// The setting's name.
        setting: &'static str,
        /// What is wrong with it, and what to use in its place.
        reason: String,
    },

    /// Settings of the judge that are out of their range.
    #[error(transparent)]
    Judge(#[from] elf_eval::Error),
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

impl From<Error> for elf_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Core(error) => error,
            other => Self::Config(other.to_string()),
        }
    }
}
