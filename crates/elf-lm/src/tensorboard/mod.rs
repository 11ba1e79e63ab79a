//! Event files, which TensorBoard shows: scalars, texts and the settings of a run.

mod event_file;
mod messages;

pub use event_file::EventFile;
