//! The flow that carries noise to clean latents.
//!
//! * [`Path`]: the straight line between noise and data, and the velocity along it.
//! * [`TimeLaw`], [`GuidanceLaw`]: how times and guidance scales are drawn in training, and which times a
//!   sampler visits.
//! * [`Objective`]: a training loss as a function of a network, a batch of latents and explicit draws; [`ElfObjective`]
//!   is the one of the paper, [`DistillObjective`] makes models of few steps out of one of many.
//! * [`Trained`]: what a network was trained with, and so must be sampled with: path, self-conditioning, blocks.
//! * [`Field`]: what a sampler integrates; a network ([`NetworkField`]) and guidance around it.
//! * [`sampler`]: ways to integrate it; your own fits beside ours.
//! * [`tokens`]: what the flow is held against, autoregressive models and masked diffusion: their objectives, and the latter's sampler.
//! * [`Generator`]: the whole way from seeds to token ids; [`Decoder`], its last step.
//!
//! `examples/custom_sampler.rs` is a whole sampler on a field without a network. All of this works on any [`elf_core::Network`] and deliberately does not know T5, text, files, the ELF transformer, or how
//! parameters are updated.

pub mod analytic;
mod batch;
mod blocks;
mod condition;
mod decode;
mod distillation;
mod error;
mod field;
mod generate;
mod guidance;
mod objective;
mod path;
mod probe;
pub mod sampler;
mod time;
pub mod tokens;
mod trace;
mod trim;

pub use batch::LatentBatch;
pub use blocks::Reencode;
pub use condition::{Condition, Conditioned};
pub use decode::{Decoder, Reading};
pub use distillation::{DistillObjective, DistillStep, Targets, TeacherStart, teacher_target};
pub use error::{Error, Result};
pub use field::{Field, NetworkField, Prediction, Trained};
pub use generate::{Cost, GenerateConfig, Generated, Generator, Guide, Request};
pub use guidance::{AutoGuidance, ConditionGuidance, SelfConditioningGuidance};
pub use objective::{ElfObjective, Loss, LossTerm, Objective};
pub use path::{Path, PredictionTarget};
pub use probe::{Knowledge, Probe};
pub use time::{GuidanceLaw, LogitNormal, TimeLaw};
pub use trace::{Frame, Observer};
pub use trim::{Trim, pad_from_eos, shift_left};
