//! Configurations as users write them, and the checked plans derived from them.
//!
//! A [`RunConfig`] has the key names of the released code, so that its files load unchanged. A [`RunPlan`] is derived
//! from it, checked, and stored with the run.

mod baseline;
mod candidates;
mod checks;
mod distill;
mod edit;
mod fitting;
mod groups;
mod keys;
mod length_law;
mod names;
mod plan;
mod run;
mod sampling;
mod sampling_files;
mod template;

pub use baseline::BaselinePlan;
pub use candidates::Candidates;
pub use distill::{DistillConfig, DistillationPlan, StudentStart, TeacherRecord};
pub use edit::with_numbers;
pub(crate) use fitting::fitted;
pub use groups::{
    AverageConfig, BatchConfig, ComputeConfig, DataConfig, DecoderConfig, EncoderConfig, EvaluationConfig, FlowConfig,
    GivenConfig, GuidanceConfig, LengthConfig, NetworkConfig, OptimizationConfig, OutputConfig,
};
pub use keys::{Overrides, read_record, read_yaml};
pub use length_law::{LENGTHS, LengthLaw};
pub use names::{ObjectiveName, OptimizerName, PadTokenName, ScheduleName, TimeScheduleName};
pub use plan::{EncoderFiles, EncoderRecord, Facts, OTHER_ENCODER, OTHER_STATS, RunInputs, RunPlan};
pub use run::RunConfig;
pub use sampling::{SAMPLING, Sampling, SamplingPatch};
pub use sampling_files::{SamplingOf, read_own_sampling, read_sampling};
pub use template::template;

#[cfg(test)]
mod released_files;
