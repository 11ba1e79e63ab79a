//! Hugging Face ids to local files: the selection of a repository's files, their download, and their cache.
//!
//! Ids, the cache's layout, the endpoint and the URLs are those of the `hf-hub` crate, so that this crate and other programs find
//! one another's downloads. Transfers are this crate's own, because those of `hf-hub` lack time limits, the server's own waiting
//! times, a check of length and content, and temporary names of incomplete files.
//!
//! The crate deliberately does not know tensors, tokenizers or models. It prints nothing, and reads the environment only in
//! [`Settings::from_env`].

mod cache;
mod error;
mod fetch;
mod listing;
mod reference;
mod selection;
mod settings;
mod transfer;

pub use error::{Error, Result};
pub use fetch::{Event, Fetcher};
pub use reference::Reference;
pub use selection::What;
pub use settings::Settings;
