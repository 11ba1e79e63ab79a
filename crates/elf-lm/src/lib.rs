//! Embedded language flows from text to text: configurations and plans, models by path or id, generation, training,
//! distillation, evaluation and, with the feature `serve`, an HTTP server.
//!
//! The library reads no arguments or environment variables and prints nothing: notes and progress are sent as
//! [`Events`].

pub mod config;
pub mod encoder;
mod error;
pub mod eval;
mod fingerprint;
pub mod folder_lock;
mod host;
pub mod hub;
pub mod json_files;
pub mod model;
#[cfg(feature = "serve")]
pub mod serve;
mod tensorboard;
pub mod text;
pub mod train;
pub mod trajectory_view;

pub use elf_core::Precision;
pub use elf_core::device::DeviceChoice;
pub use elf_eval::{bleu, rouge};
pub use elf_kernels::flush_denormals;
pub use elf_kernels::mkl::use_vector_code;

pub use config::{RunConfig, Sampling, SamplingPatch};
pub use error::{Error, ErrorKind, Result};
pub use eval::evaluate;
pub use fingerprint::{Difference, Fingerprint};
pub use host::{Event, Events, Host, Silent};
pub use model::{EncodedTexts, Model, ModelSource, NoisyLatents, ReadText};
pub use text::generated::{GeneratedText, Generation, TextRequest};
pub use text::text_engine::{EngineStep, TextEngine, TextId};
pub use text::text_loop::{TextEvent, TextWatch};
pub use text::text_run::{GenerateOptions, Written};
pub use train::{LatentData, distill, train};
