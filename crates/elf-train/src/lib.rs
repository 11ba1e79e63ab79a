//! Training of a network by an objective on batches of latents, with checkpoints that survive a power failure.
//!
//! * [`optim`]: [`Muon`](optim::Muon) and [`AdamW`](optim::AdamW) as tensor code, with state by parameter name.
//! * [`Schedule`]: learning rates by step. [`clip_grad_norm`]: one global norm. [`Ema`]: averaged parameters.
//! * [`Trainer`]: one optimiser step from micro-batches; its draws are a function of seed, step, micro-batch and row.
//! * [`CheckpointFolder`]: checkpoints that are complete or absent; [`KeepPolicy`]: which ones are kept.
//! * [`ReleasedCheckpoint`]: training checkpoints of the released PyTorch code, to continue from; [`ReleasedForm`]:
//!   checkpoints of this crate converted to that format.
//! * [`run()`]: the loop, with evaluation under averaged parameters, checkpoints, and a flag to stop it.
//! * [`validation_loss`]: the objective on held-out batches, with fixed draws.
//! * [`Curriculum`]: the rounds of progressive distillation, and the round at which an interrupted one continues;
//!   [`fingerprint`]: a hash of parameters, which detects a changed teacher.
//! * [`Comm`]: communication for data parallelism; [`Solo`] is a single process, [`C10d`] several, on PyTorch's c10d.
//!
//! On a CPU, a resumed run gives the same bits as an uninterrupted one.
//!
//! This crate works with any [`elf_core::Network`] and any [`elf_flow::Objective`], and through [`TrainingObjective`]
//! with losses over other inputs than latents, such as token ids. It deliberately does not know the ELF transformer,
//! text or environment variables, and it never prints.

mod checkpoint;
mod comm;
mod curriculum;
mod ema;
mod error;
mod evaluations;
mod fingerprint;
mod gradients;
mod keep_policy;
mod loss_terms;
pub mod optim;
mod released;
mod released_form;
mod run;
mod schedule;
mod sharding;
mod step_report;
mod trainer;
mod training_objective;
mod validation;

pub use checkpoint::{Checkpoint, CheckpointFolder, CheckpointState, FileStamp};
pub use comm::{C10d, Comm, GradientSum, Meeting, MeetingPoint, PACK_BYTES, Solo};
pub use curriculum::{Curriculum, Round};
pub use ema::Ema;
pub use error::{Error, Result};
pub use evaluations::JUDGED_BY;
pub use fingerprint::fingerprint;
pub use gradients::{clip_grad_norm, grad_norm};
pub use keep_policy::KeepPolicy;
pub use loss_terms::{TermMean, TermSums};
pub use released::ReleasedCheckpoint;
pub use released_form::{ReleasedForm, released_form_of_parameters};
pub use run::{BatchSource, Evaluator, Metric, Outcome, Run, RunControl, TrainingObserver, run};
pub use schedule::{Decay, Schedule};
pub use sharding::share_out;
pub use step_report::{MicroReport, StepMetrics, StepReport, StepTimes};
pub use trainer::{Trainer, TrainerConfig};
pub use training_objective::{EndToEnd, OverTokens, TrainingBatch, TrainingObjective};
pub use validation::{Validation, validation_loss, validation_loss_over_ranks};
