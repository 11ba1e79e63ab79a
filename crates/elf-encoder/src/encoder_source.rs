//! Where an encoder lies.

use std::path::{Path, PathBuf};

/// Where an encoder lies, and which of its layers gives the latents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncoderSource {
    /// The folder of `config.json` and, usually, of everything else.
    pub folder: PathBuf,
    /// A file or folder of weights, if they lie elsewhere.
    pub weights: Option<PathBuf>,
    /// The layer whose output is taken, counted from 1; 0 is the embeddings, `None` the last.
    pub layer: Option<usize>,
}

impl EncoderSource {
    /// The last layer of an encoder whose files are all in one folder.
    pub fn folder(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), weights: None, layer: None }
    }

    /// Where the weights are.
    pub fn weights(&self) -> &Path {
        self.weights.as_ref().unwrap_or(&self.folder)
    }
}
