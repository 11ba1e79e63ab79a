use std::path::PathBuf;

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a store or of a process group.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A store could not be opened or did not answer.
    #[error("{doing} failed: {reason}")]
    Store {
        /// The attempted action, with the store's address or the key.
        doing: String,
        /// c10d's reason.
        reason: String,
    },

    /// A process group could not be formed, or an operation of it failed: a process is gone, or did not answer in time.
    #[error("{operation} failed: {reason}")]
    Group {
        /// The operation.
        operation: &'static str,
        /// c10d's reason.
        reason: String,
    },

    /// An invalid argument.
    #[error("{argument}: {reason}")]
    Argument {
        /// The argument.
        argument: &'static str,
        /// The fault and the remedy.
        reason: String,
    },

    /// The library that makes NCCL groups cannot be used.
    #[error("the NCCL library {} cannot be used ({reason}); build it with `cargo xtask nccl`, or train on CPUs", path.display())]
    Nccl {
        /// The path where it was searched for.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
}
