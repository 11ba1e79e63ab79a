//! Evaluation of generated texts, and analysis of trained flows.

mod evaluation;
pub mod judge;
pub mod likelihood;
pub mod probe;

pub use evaluation::{EvaluateOptions, evaluate, evaluate_for};
