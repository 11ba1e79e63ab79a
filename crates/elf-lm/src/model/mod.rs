//! Trained models: locating, describing, loading and exporting them.

mod content_hash;
mod correction;
mod described;
pub mod export;
pub mod loaded;
#[expect(clippy::module_inception, reason = "the file of the module's main type")]
mod model;
pub mod model_card;
mod model_ref;
pub mod run_folder;
pub mod same_latents;
mod source;
mod tensors;
mod word_list;
mod writing_memory;

pub use correction::{Change, Correction, CorrectionOptions, WordInContext};
pub use described::{DescribedModel, config_beside};
pub use model::Model;
pub use model_ref::{ModelRef, Resumable};
pub use source::ModelSource;
pub use tensors::{EncodedTexts, NoisyLatents, ReadText};
pub use word_list::WORDS;
pub use writing_memory::check_memory_together;
