//! The error type of this library.

use std::fmt::Display;
use std::path::{Path, PathBuf};

/// A result with this library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this library. Its message says what is wrong and how to correct it. Underlying errors are its sources;
/// [`Error::report`] joins all messages in one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting that is out of range, misspelt, or in conflict with another.
    #[error("{reason}")]
    Setting {
        /// The setting's name, as in a configuration file or a call.
        setting: String,
        /// What is wrong and how to correct it.
        reason: String,
    },

    /// A file or folder that is missing, damaged, in use, or of the wrong kind.
    #[error("{reason}")]
    Place {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong and how to correct it.
        reason: String,
    },

    /// Two parts that do not fit together, such as a model and another model's tokenizer.
    #[error("{reason}")]
    Mismatch {
        /// The part that does not fit.
        what: String,
        /// What it does not fit, and how to correct it.
        reason: String,
    },

    /// A request that cannot be fulfilled, such as an input text for an unconditional model.
    #[error("{reason}")]
    Request {
        /// Why it cannot be fulfilled, and what can be requested instead.
        reason: String,
    },

    /// The caller cancelled the operation.
    #[error("cancelled")]
    Cancelled,

    /// An error with a description of the operation that failed.
    #[error("{context}")]
    Context {
        /// The operation that failed, or its object.
        context: String,
        /// The underlying error.
        source: Box<Error>,
    },

    /// An operating-system error while reading or writing.
    #[error(transparent)]
    Io(#[from] std::io::Error),

    /// JSON that is invalid or of an unexpected form.
    #[error(transparent)]
    Json(#[from] serde_json::Error),

    /// An integer outside the range of its target type.
    #[error(transparent)]
    Number(#[from] std::num::TryFromIntError),

    /// An error of networks, noise or tensor files.
    #[error(transparent)]
    Core(#[from] elf_core::Error),

    /// An error of token data or a tokenizer.
    #[error(transparent)]
    Data(#[from] elf_data::Error),

    /// An error of a text encoder.
    #[error(transparent)]
    Encoder(#[from] elf_encoder::Error),

    /// An error of an evaluation.
    #[error(transparent)]
    Eval(#[from] elf_eval::Error),

    /// An error of the flow.
    #[error(transparent)]
    Flow(#[from] elf_flow::Error),

    /// An error of a GPT-2.
    #[error(transparent)]
    Gpt2(#[from] elf_gpt2::Error),

    /// An error of the Hugging Face hub.
    #[error(transparent)]
    Hub(#[from] elf_hub::Error),

    /// An error of training or a checkpoint.
    #[error(transparent)]
    Train(#[from] elf_train::Error),
}

/// The kind of an [`Error`], whichever crate it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting that is out of range, misspelt, or in conflict with another.
    Setting,
    /// A file, folder or hub id that is missing, damaged, in use, or of the wrong kind.
    Place,
    /// Two parts that do not fit together.
    Mismatch,
    /// A request that cannot be fulfilled.
    Request,
    /// The caller cancelled the operation.
    Cancelled,
    /// Any other.
    Other,
}

impl Error {
    /// The kind of the error, or of the one that it describes.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Context { source, .. } => source.kind(),
            Self::Setting { .. } => ErrorKind::Setting,
            Self::Place { .. } | Self::Io(_) | Self::Hub(_) => ErrorKind::Place,
            Self::Mismatch { .. } => ErrorKind::Mismatch,
            Self::Request { .. } | Self::Eval(_) => ErrorKind::Request,
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Flow(elf_flow::Error::Setting { .. }) | Self::Train(elf_train::Error::Setting { .. }) => {
                ErrorKind::Setting
            }
            Self::Data(elf_data::Error::Io { .. } | elf_data::Error::NothingFound { .. }) => ErrorKind::Place,
            Self::Core(error) | Self::Flow(elf_flow::Error::Core(error)) => match error {
                elf_core::Error::Device(_) | elf_core::Error::Config(_) => ErrorKind::Setting,
                elf_core::Error::Io { .. }
                | elf_core::Error::Corrupt { .. }
                | elf_core::Error::Checkpoint { .. }
                | elf_core::Error::LfsPointer { .. } => ErrorKind::Place,
                elf_core::Error::Shape { .. } | elf_core::Error::Mismatch { .. } => ErrorKind::Mismatch,
                _ => ErrorKind::Other,
            },
            _ => ErrorKind::Other,
        }
    }

    /// An [`Error::Setting`].
    pub fn setting(setting: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Setting { setting: setting.into(), reason: reason.into() }
    }

    /// An [`Error::Place`].
    pub fn place(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Place { path: path.as_ref().to_owned(), reason: reason.into() }
    }

    /// An [`Error::Mismatch`].
    pub fn mismatch(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Mismatch { what: what.into(), reason: reason.into() }
    }

    /// An [`Error::Request`].
    pub fn request(reason: impl Into<String>) -> Self {
        Self::Request { reason: reason.into() }
    }

    /// The error of a text at which the model has panicked.
    pub(crate) fn defect() -> Self {
        Self::request("the model has failed: this is a defect of the program")
    }

    /// The messages of this error and of all its sources in one line, without repetitions.
    pub fn report(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let message = error.to_string();
            if !text.contains(&message) {
                text = format!("{text}: {message}");
            }
            cause = error.source();
        }
        text
    }
}

impl From<tch::TchError> for Error {
    fn from(e: tch::TchError) -> Self {
        Self::Core(e.into())
    }
}

/// Adds a description of the failed operation to an error.
pub(crate) trait Context<T> {
    /// Adds the operation that failed, or its object.
    fn context(self, context: impl Display) -> Result<T>;

    /// [`Context::context`] with a description that is computed only on error.
    fn with_context<C: Display>(self, context: impl FnOnce() -> C) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for Result<T, E> {
    fn context(self, context: impl Display) -> Result<T> {
        self.with_context(|| context)
    }

    fn with_context<C: Display>(self, context: impl FnOnce() -> C) -> Result<T> {
        self.map_err(|e| Error::Context { context: context().to_string(), source: Box::new(e.into()) })
    }
}

impl<T> Context<T> for Option<T> {
    fn context(self, context: impl Display) -> Result<T> {
        self.with_context(|| context)
    }

    fn with_context<C: Display>(self, context: impl FnOnce() -> C) -> Result<T> {
        self.ok_or_else(|| Error::request(context().to_string()))
    }
}

/// Returns early with an error of the given kind: `fail!(setting("max_length"), "{n} is too long")`,
/// `fail!(place(path), ...)`, `fail!(mismatch("tokenizer"), ...)`, `fail!(request, ...)`.
macro_rules! fail {
    (request, $($text:tt)+) => {
        return Err($crate::Error::request(format!($($text)+)))
    };
    ($kind:ident($what:expr), $($text:tt)+) => {
        return Err($crate::Error::$kind($what, format!($($text)+)))
    };
}
pub(crate) use fail;
