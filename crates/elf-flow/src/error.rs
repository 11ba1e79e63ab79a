//! What can go wrong in a flow.

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a flow: a setting that makes no sense, tensors that do not fit, or a failure below.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting out of its range, or settings that exclude each other.
    #[error("{setting}: {reason}")]
    Setting {
        /// The setting's name, as in a configuration file.
        setting: String,
        /// What is wrong and what would be right.
        reason: String,
    },

    /// What the caller gave to encode words with failed.
    #[error("the words that were read could not be encoded again: {0}")]
    Reencode(#[source] Box<dyn std::error::Error + Send + Sync>),

    /// The observer of a run cancelled it.
    #[error("cancelled")]
    Cancelled,

    /// The network, noise or a tensor operation failed.
    #[error(transparent)]
    Core(#[from] elf_core::Error),
}

impl Error {
    /// An [`Error::Setting`].
    pub fn setting(setting: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Setting { setting: setting.into(), reason: reason.into() }
    }

    /// An [`Error::Reencode`].
    pub fn reencode(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Error::Reencode(error.into())
    }
}

impl From<tch::TchError> for Error {
    fn from(e: tch::TchError) -> Self {
        Error::Core(e.into())
    }
}
