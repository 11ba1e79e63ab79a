//! The flow that carries noise to clean latents.
//!
//! * [`FlowPath`]: the straight line between noise and data, and the velocity along it.
//! * [`TimeLaw`], [`GuidanceLaw`]: how times and guidance scales are drawn in training, and which times a
//!   sampler visits.
//! * [`Objective`]: a training loss as a function of a network, a batch of latents and explicit draws; [`ElfObjective`]
//!   is the one of the paper, [`DistillObjective`] makes models of few steps out of one of many.
//! * [`TrainedFlow`]: how a network was trained, as far as sampling depends on it: path, self-conditioning, blocks.
//! * [`Field`]: a velocity field that samplers integrate; a network ([`NetworkField`]) and guidance around it.
//! * [`sampler`]: methods of integration; a program can add its own.
//! * [`tokens`]: baselines that the flow is compared with, autoregressive models and masked diffusion: their objectives, and the
//!   sampler of masked diffusion.
//! * [`Generator`]: from seeds to token ids; [`Decoder`], its last step.
//! * [`LikelihoodBound`]: how likely a given text is, from below.
//! * [`RunPool`]: runs of generators that share the passes of their networks, and begin and end at any time.
//!
//! `examples/custom_sampler.rs` is a complete sampler on a field without a network. All of this works on any
//! [`elf_core::Network`] and deliberately does not know text encoders, text, files, the ELF transformer, or how parameters are
//! updated.

pub mod analytic;
mod batch;
mod blocks;
mod condition;
mod decode;
mod error;
mod field;
mod flow_path;
mod generate;
mod guidance;
mod lexicon;
mod likelihood;
mod network_field;
mod objective;
mod pool;
mod prediction;
mod probe;
pub mod sampler;
mod sampling_observer;
mod time;
pub mod tokens;
mod trained_flow;
mod trim;

pub use batch::LatentBatch;
pub use blocks::{FinishedPrefix, PrefixContext, Reencode};
pub use condition::{Condition, Conditioned};
pub use decode::{Decoder, Reading};
pub use error::{Error, Result};
pub use field::Field;
pub use flow_path::{FlowPath, PredictionTarget};
pub use generate::{Cost, GenerateConfig, Generated, Generator, Guide, Request};
pub use guidance::{AutoGuidance, ConditionGuidance, SelfConditioningGuidance};
pub use lexicon::Lexicon;
pub use likelihood::{BoundConfig, LikelihoodBound, TextBound, log_density};
pub use network_field::NetworkField;
pub use objective::{
    DistillObjective, DistillStep, ElfObjective, Loss, LossTerm, Objective, OwnEstimates, OwnRuns, Targets,
    TeacherStart, TimeBins, teacher_target,
};
pub use pool::{PoolStep, RunId, RunPool, Shared, SharedNetwork};
pub use prediction::Prediction;
pub use probe::{EstimateErrors, Foretold, Probe};
pub use sampling_observer::{Frame, Next, SamplingObserver, Step};
pub use time::{GuidanceLaw, LogitNormal, TimeLaw};
pub use trained_flow::TrainedFlow;
pub use trim::{Trim, pad_from_eos, shift_left};
