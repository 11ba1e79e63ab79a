//! Models that are there: where they lie, what they are, and their numbers.

pub mod encoder_card;
pub mod loaded_model;
pub mod model_card;
pub mod run_folder;
pub mod same_latents;
