//! Texts over HTTP: what many clients ask for, gathered into batches for one model.
//!
//! The connections live in a thread of their own ([`http`]); the model stays in the one it was loaded in and takes what waits for it
//! ([`queue`]).

pub mod http;
pub mod queue;
