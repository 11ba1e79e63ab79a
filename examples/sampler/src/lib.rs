//! A sampler that is not in this repository's crates, used with a model of this repository.
//!
//! [`two_stage`] is the sampler; [`model`] is the one line that adds it. From there on it is a sampler like any other: in
//! configurations, in names of results, and in messages about misspelt names.

pub mod two_stage;

use std::path::Path;

use elf_flow::sampler::{Entry, Registry};
use elf_lm::Model;

use two_stage::TwoStage;

/// A model that can be sampled with [`TwoStage`] too.
///
/// # Errors
/// If there is no model of that name or path, or it is damaged.
pub fn model(name: impl AsRef<Path>) -> elf_lm::Result<Model> {
    Ok(Model::load(name)?.with_samplers(Registry::builtin().with(Entry::of::<TwoStage>())))
}
