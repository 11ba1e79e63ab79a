//! Errors of tensors, parameters, files of tensors and devices.

use std::path::PathBuf;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of tensors, parameters, files of tensors, or devices.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor operation failed inside libtorch (out of memory, a device error, an impossible shape).
    #[error("libtorch could not do this: {0}")]
    Torch(#[from] tch::TchError),

    /// A tensor has the wrong shape.
    #[error("{what} has shape {found:?}, but {expected} is needed")]
    Shape {
        /// The tensor's name.
        what: String,
        /// Its shape.
        found: Vec<i64>,
        /// The shape in words, such as `[B, S, 512]`.
        expected: String,
    },

    /// Settings that contradict one another or describe no model.
    #[error("{0}")]
    Config(String),

    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// `read`, `write`, `rename`, ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },

    /// A file of tensors is damaged, or is not a safetensors file at all.
    #[error("{} is not a usable safetensors file: {reason}; fetch or write it again", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A PyTorch checkpoint is damaged, or holds more than tensors and plain containers.
    #[error("{} is not a usable PyTorch checkpoint: {reason}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A file of weights was not downloaded; a stand-in is in its place.
    #[error("{} {}", path.display(), elf_files::LFS_POINTER_REMEDY)]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },

    /// Tensors and parameters do not fit together; the message is a table of names with both sides.
    #[error("{origin} does not fit this model:\n{table}")]
    Mismatch {
        /// Where the tensors came from.
        origin: String,
        /// One line a difference.
        table: String,
    },

    /// Recorded draws ran out, or a draw of another shape was requested.
    #[error("recorded noise `{name}`: {reason}")]
    Noise {
        /// The draw's name.
        name: String,
        /// The fault.
        reason: String,
    },

    /// The requested device does not exist.
    #[error("{0}")]
    Device(String),
}

impl Error {
    /// An [`Error::Io`], for `map_err`.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }
}
