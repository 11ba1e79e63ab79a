//! One file a command.

pub mod bench;
pub mod convert;
pub mod data;
pub mod distill;
pub mod encoder;
pub mod eval;
pub mod pull;
pub mod sample;
pub mod tokenizer;
pub mod train;
