//! Errors of a flow.

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a flow: a setting that makes no sense, tensors that do not fit, or a failure of a network, noise or libtorch.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting out of its range, or settings that exclude each other.
    #[error("{setting}: {reason}")]
    Setting {
        /// The setting's name, as in a configuration file.
        setting: String,
        /// What is wrong with it, and what to use in its place.
        reason: String,
    },

    /// [`Reencode`](crate::Reencode), which the caller implements, failed.
    #[error("the words of the finished blocks could not be encoded: {0}")]
    Reencode(#[source] Box<dyn std::error::Error + Send + Sync>),

    /// An [`SamplingObserver`](crate::SamplingObserver) cancelled the run.
    #[error("sampling was cancelled after {done} of {steps} steps")]
    Cancelled {
        /// Steps that were made.
        done: usize,
        /// Steps of the whole run.
        steps: usize,
    },

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
