//! Errors of training.

use std::path::PathBuf;

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of training: an invalid setting, an unusable checkpoint, a loss that is not finite, lost processes, or a
/// failure of the objective, the network or libtorch.
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

    /// A checkpoint is damaged, incomplete, or does not belong to this run.
    #[error("the checkpoint {} cannot be used: {reason}", path.display())]
    Checkpoint {
        /// The checkpoint's folder.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },

    /// The loss, the gradients or the parameters are not finite.
    #[error(
        "step {step}: the {what} is {value}{}; training stopped and nothing was saved since the last checkpoint. \
         Resume from it with a lower learning rate, a longer warm-up, or blocks in f32",
        of_ranks(ranks)
    )]
    NonFinite {
        /// The optimiser step, counted from 0.
        step: u64,
        /// The number's name.
        what: &'static str,
        /// The number's value.
        value: f64,
        /// The ranks whose own part of the loss is not finite; empty if that is unknown, or not the cause.
        ranks: Vec<u64>,
    },

    /// The source of batches failed.
    #[error("the next training batch could not be made: {0}")]
    Source(#[source] Box<dyn std::error::Error + Send + Sync>),

    /// An evaluation during training failed.
    #[error("the evaluation after step {step} failed: {source}")]
    Evaluation {
        /// Optimiser steps done.
        step: u64,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The processes of a run could not communicate.
    #[error("the processes of this run lost contact: {0}; start the run again, it resumes from its last checkpoint")]
    Comm(String),

    /// The processes of a run were started with different settings, programs or data.
    #[error(
        "the ranks of this run do not agree on {what}: rank 0 has {first}, rank {rank} has {other}; start all of them \
         with the same program, configuration and data"
    )]
    Disagreement {
        /// The name of the value on which they disagree.
        what: String,
        /// The first rank that differs from rank 0.
        rank: usize,
        /// The value on rank 0.
        first: String,
        /// The value on that rank.
        other: String,
    },

    /// The objective failed.
    #[error(transparent)]
    Flow(#[from] elf_flow::Error),

    /// The network, a file of tensors, or a tensor operation failed.
    #[error(transparent)]
    Core(#[from] elf_core::Error),
}

/// The ranks that caused a number that is not finite, for the message.
fn of_ranks(ranks: &[u64]) -> String {
    match ranks {
        [] => String::new(),
        ranks => format!(" because of rank {}", ranks.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")),
    }
}

impl Error {
    /// An [`Error::Setting`].
    pub fn setting(setting: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Setting { setting: setting.into(), reason: reason.into() }
    }

    /// An [`Error::Source`].
    pub fn source(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Error::Source(error.into())
    }
}

impl From<tch::TchError> for Error {
    fn from(e: tch::TchError) -> Self {
        Error::Core(e.into())
    }
}
