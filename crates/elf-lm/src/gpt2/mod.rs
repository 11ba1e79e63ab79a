//! Baselines: trained, sampled and judged as ELF is, on the same rows.

mod generation;
mod subject;

pub use generation::{BaselineGenerator, Decoding, Writer};
pub use subject::{BaselineSubject, gpt2, masked};
