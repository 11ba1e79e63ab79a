use std::path::PathBuf;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why processes could not meet or could not talk.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A store could not be opened or did not answer.
    #[error("{doing} failed: {reason}")]
    Store {
        /// What was tried, with the store's place or the key.
        doing: String,
        /// What c10d said.
        reason: String,
    },

    /// A process group could not be formed, or an operation of it failed: a process is gone, or did not answer in time.
    #[error("{operation} failed: {reason}")]
    Group {
        /// Which operation.
        operation: &'static str,
        /// What c10d said.
        reason: String,
    },

    /// An argument that no process group can use.
    #[error("{argument}: {reason}")]
    Argument {
        /// Which one.
        argument: &'static str,
        /// What is wrong and what would be right.
        reason: String,
    },

    /// The library that makes NCCL groups cannot be used.
    #[error("the NCCL library {} cannot be used ({reason}); build it with `cargo xtask nccl`, or train on CPUs", path.display())]
    Nccl {
        /// Where it was looked for.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}
