//! Configuration as users write it, and the checked plan that is made of it.
//!
//! A [`RunConfig`] has the key names of the released code, so that its files load unchanged; a [`RunPlan`] is what follows
//! from one: everything derived, everything checked, stored with the run.

mod baseline;
mod distill;
mod edit;
mod groups;
mod keys;
mod length_law;
mod plan;
mod run;
mod sampling;
mod template;

pub use baseline::{BaselinePlan, ObjectiveName};
pub use distill::{DistillConfig, DistillationPlan, StudentStart, TeacherRecord};
pub use edit::with_numbers;
pub use groups::{
    AverageConfig, BatchConfig, ComputeConfig, DataConfig, DecoderConfig, EncoderConfig, EvaluationConfig, FlowConfig,
    GuidanceConfig, LengthConfig, NetworkConfig, OptimizationConfig, OutputConfig,
};
pub use keys::{Overrides, read_record, read_yaml};
pub use length_law::LengthLaw;
pub use plan::{EncoderRecord, Facts, OTHER_ENCODER, OTHER_STATS, RunInputs, RunPlan};
pub use run::{OptimizerName, PadTokenName, RunConfig, ScheduleName, TimeScheduleName, VocabHeadStart};
pub use sampling::{SAMPLING, Sampling, SamplingOf, SamplingPatch, read_own_sampling, read_sampling};
pub use template::template;

#[cfg(test)]
mod released_files;
