//! One file a command.

pub mod bench;
pub mod convert;
pub mod data;
pub mod distill;
pub mod encoder;
pub mod encoder_train;
pub mod eval;
pub mod export;
pub mod launch;
pub mod probe;
pub mod pull;
pub mod sample;
pub mod scaling;
pub mod tokenizer;
pub mod train;
