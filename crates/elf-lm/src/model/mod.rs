//! Models that are there: where they lie, what they are, and their numbers.

mod content_hash;
mod described;
pub mod export;
pub mod loaded;
#[expect(clippy::module_inception, reason = "the file of the type that the module is about")]
mod model;
pub mod model_card;
mod model_ref;
pub mod run_folder;
pub mod same_latents;
mod source;

pub use described::DescribedModel;
pub use model::{GenerateOptions, Model};
pub use model_ref::{ModelRef, Resumable};
pub use source::ModelSource;
