//! Generation: requests, batches, writers, latents of texts, and files of generated texts.

pub mod baseline_writer;
pub mod conditions;
pub mod flow_writer;
pub mod generated;
pub mod template;
mod text_batches;
pub mod text_column;
pub mod text_engine;
pub mod text_file;
pub mod text_latents;
pub mod text_loop;
pub mod text_run;
mod text_so_far;
