//! Training: from a plan and its materials to a run's folder.

pub mod encoder_corpus;
pub mod encoder_training;
pub mod folder_lock;
mod held_out;
mod initial_weights;
mod job;
mod log;
mod materials;
mod memory_plan;
mod subject;
pub mod system_memory;
pub mod teacher;

pub use held_out::{check_evaluations, sampling_settings};
pub use initial_weights::InitialWeights;
pub use job::{Ended, Job, deadline, train, train_subject, trainer_config};
pub use materials::{Materials, agree};
pub use subject::{ElfSubject, Subject, rows_at_once};
