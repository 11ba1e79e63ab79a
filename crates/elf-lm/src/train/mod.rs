//! Training: from a plan and its inputs to a run's folder.

mod baseline_kind;
pub mod conversion;
mod distillation;
mod held_out;
mod initial_weights;
mod job;
mod latent_batches;
mod latent_cache;
mod log;
mod memory_plan;
mod model_kind;
mod rounds;
pub mod system_memory;
pub mod teacher;
mod training_inputs;
mod training_judge;
mod training_run;

pub use distillation::{Distillation, distill};
pub use held_out::check_evaluations;
use initial_weights::{begin_as, initial_model};
pub use job::{Ended, Job, deadline, train_flow, train_kind, trainer_config};
pub use latent_batches::{LatentBatches, LatentData};
pub use model_kind::{ElfKind, ModelKind};
pub use rounds::{Rounds, WantedRounds};
pub use training_inputs::{TrainingInputs, agree};
pub use training_run::{Ranks, TrainingRun, train};
