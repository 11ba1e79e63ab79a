//! Training: from a plan and its materials to a run's folder.

mod baseline_subject;
pub mod conversion;
mod distillation;
pub mod encoder_card;
pub mod encoder_corpus;
pub mod encoder_training;
mod held_out;
mod initial_weights;
mod job;
mod latent_batches;
mod latent_cache;
mod log;
mod materials;
mod memory_plan;
mod rounds;
mod subject;
pub mod system_memory;
pub mod teacher;
mod training_judge;
mod training_run;

pub use distillation::{Distillation, distill};
pub use held_out::check_evaluations;
use initial_weights::{begin_as, initial_model};
pub use job::{Ended, Job, deadline, train_flow, train_subject, trainer_config};
pub use latent_batches::{LatentBatches, LatentData};
pub use materials::{Materials, agree};
pub use rounds::{Rounds, WantedRounds};
pub use subject::{ElfSubject, Subject};
pub use training_run::{Ranks, TrainingRun, train};
