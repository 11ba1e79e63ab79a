//! From text to text with embedded language flows: configurations and plans, models by path or id, text in and out, training,
//! distillation, evaluation and, with the feature `serve`, an HTTP server.
//!
//! It knows no arguments, no terminal and no environment: notes and progress leave through [`Events`].

pub mod config;
pub mod eval;
mod events;
pub mod gpt2;
pub mod hub;
pub mod model;
#[cfg(feature = "serve")]
pub mod serve;
pub mod text;
pub mod train;

pub use events::{Event, Events, Reporter};
