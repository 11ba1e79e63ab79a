//! The result of a selection.

use std::path::PathBuf;

use crate::error::Result;
use crate::listing::RemoteFile;

/// Files to fetch, and the file or folder among them that is the result.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Selection {
    pub files: Vec<RemoteFile>,
    /// Relative to the repository; empty for the whole repository.
    pub result: String,
}

/// Downloads one file. Indices and settings decide which other files are needed.
pub(super) type Fetch<'f> = dyn FnMut(&RemoteFile) -> Result<PathBuf> + 'f;
