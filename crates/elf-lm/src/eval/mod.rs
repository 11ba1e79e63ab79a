//! Judging what models write, and looking into them.

mod evaluation;
pub mod judge;
pub mod probe;

pub use evaluation::{Evaluating, evaluate, evaluate_for};
