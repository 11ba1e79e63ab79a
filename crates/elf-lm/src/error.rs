//! What can go wrong between a text and a text.

use std::fmt::Display;
use std::path::{Path, PathBuf};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this library. Every message names the thing that is wrong and the remedy; causes are its sources, and
/// [`Error::report`] has all of them in one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting out of its range, misspelt, or at odds with another.
    #[error("{reason}")]
    Setting {
        /// The setting's name, as in a configuration file or a call.
        setting: String,
        /// What is wrong and what would be right.
        reason: String,
    },

    /// A file or folder that is missing, damaged, in use, or of another kind than is needed.
    #[error("{reason}")]
    Place {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },

    /// Things that do not belong together, such as a model and the tokenizer of another.
    #[error("{reason}")]
    Mismatch {
        /// The thing that does not fit.
        what: String,
        /// What it does not fit, and what to do.
        reason: String,
    },

    /// Something that was asked for and cannot be done, such as texts that this model cannot write.
    #[error("{reason}")]
    Request {
        /// Why not, and what it can do.
        reason: String,
    },

    /// The work was cancelled by whoever asked for it.
    #[error("cancelled")]
    Cancelled,

    /// What was being done when something below failed.
    #[error("{context}")]
    Context {
        /// What was being done, or to what.
        context: String,
        /// What failed.
        source: Box<Error>,
    },

    /// The operating system refused to read or write.
    #[error(transparent)]
    Io(#[from] std::io::Error),

    /// Data is no JSON of the expected form.
    #[error(transparent)]
    Json(#[from] serde_json::Error),

    /// A number does not fit where it is needed.
    #[error(transparent)]
    Number(#[from] std::num::TryFromIntError),

    /// Networks, noise or tensor files failed.
    #[error(transparent)]
    Core(#[from] elf_core::Error),

    /// Token data or a tokenizer failed.
    #[error(transparent)]
    Data(#[from] elf_data::Error),

    /// A text encoder failed.
    #[error(transparent)]
    Encoder(#[from] elf_encoder::Error),

    /// An evaluation failed.
    #[error(transparent)]
    Eval(#[from] elf_eval::Error),

    /// The flow failed.
    #[error(transparent)]
    Flow(#[from] elf_flow::Error),

    /// A GPT-2 failed.
    #[error(transparent)]
    Gpt2(#[from] elf_gpt2::Error),

    /// Something could not be fetched from the Hugging Face hub.
    #[error(transparent)]
    Hub(#[from] elf_hub::Error),

    /// Training or a checkpoint failed.
    #[error(transparent)]
    Train(#[from] elf_train::Error),
}

impl Error {
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

    /// The message and those of all causes in one line, each told once.
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

/// Adds to an error what was being done.
pub(crate) trait Context<T> {
    /// Says what was being done, or to what.
    fn context(self, context: impl Display) -> Result<T>;

    /// As [`Context::context`], with words that are made only where they are needed.
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

/// Returns an error of a kind: `fail!(setting("max_length"), "{n} is too long")`, `fail!(place(path), ...)`,
/// `fail!(mismatch("tokenizer"), ...)`, `fail!(request, ...)`.
macro_rules! fail {
    (request, $($text:tt)+) => {
        return Err($crate::Error::request(format!($($text)+)))
    };
    ($kind:ident($what:expr), $($text:tt)+) => {
        return Err($crate::Error::$kind($what, format!($($text)+)))
    };
}
pub(crate) use fail;
