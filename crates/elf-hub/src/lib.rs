//! Hugging Face ids to local files: which files of a repository are needed, their download, and where they are kept.
//!
//! Ids, the cache's layout, the endpoint and the URLs are those of the `hf-hub` crate, so that files which other programs
//! have downloaded are found, and theirs find ours. Transfers are this crate's own, because a training machine needs what
//! that crate's do not give: time limits, the server's own waiting times, a check of length and content, and no file under
//! its final name before it is whole.
//!
//! It deliberately knows nothing of tensors, tokenizers or models, prints nothing, and reads the environment only in
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
