//! Text in and out: latents of texts, generated texts and the files they go to.

pub mod text_batches;
pub mod text_column;
pub mod text_file;
pub mod text_generation;
pub mod text_latents;
