//! Opening an encoder of whichever family its `config.json` names.

use std::path::{Path, PathBuf};

use elf_core::Precision;
use serde_json::Value;
use tch::Device;

use crate::{BertEncoder, Error, Result, T5Encoder, TextEncoder};

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

/// A family of encoders: the `model_type`s of its `config.json` and how it is opened.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// Values of `model_type`.
    pub model_types: &'static [&'static str],
    /// Reads an encoder of this family.
    pub open: fn(&EncoderSource, Device, Precision) -> Result<Box<dyn TextEncoder>>,
}

/// The families of this crate.
pub const BUILTIN: &[Family] = &[
    Family { model_types: &["t5", "mt5"], open: open_t5 },
    Family {
        model_types: &["bert", "distilbert"],
        open: |source, device, precision| Ok(Box::new(BertEncoder::load(source, device, precision)?)),
    },
];

fn open_t5(source: &EncoderSource, device: Device, precision: Precision) -> Result<Box<dyn TextEncoder>> {
    if let Some(layer) = source.layer {
        return Err(Error::Layer(format!(
            "{layer} cannot be taken of a T5, whose inner layers are not normalised: only its last output is supported"
        )));
    }
    Ok(Box::new(T5Encoder::load_with(&source.folder, source.weights(), device, precision)?))
}

/// Opens a frozen encoder of the family that `model_type` in its `config.json` names; a file without one is T5's.
///
/// # Errors
/// [`Error::ConfigFile`] with the list of families if the model is of none of them; errors of the family's own files.
pub fn open_encoder(source: &EncoderSource, device: Device, precision: Precision) -> Result<Box<dyn TextEncoder>> {
    open_encoder_of(BUILTIN, source, device, precision)
}

/// [`open_encoder`] with families of one's own, such as `[BUILTIN, &[mine]].concat()`.
///
/// # Errors
/// As [`open_encoder`].
pub fn open_encoder_of(
    families: &[Family],
    source: &EncoderSource,
    device: Device,
    precision: Precision,
) -> Result<Box<dyn TextEncoder>> {
    let path = source.folder.join("config.json");
    let text = std::fs::read(&path).map_err(elf_core::Error::io("read", &path))?;
    let bad = |reason: String| Error::ConfigFile { path: path.clone(), reason };
    let config: Value = serde_json::from_slice(&text).map_err(|e| bad(format!("not JSON: {e}")))?;
    let model_type = match config.get("model_type") {
        None => "t5",
        Some(stated) => stated.as_str().ok_or_else(|| bad(format!("its model_type is {stated}, which is no text")))?,
    };
    match families.iter().find(|family| family.model_types.contains(&model_type)) {
        Some(family) => (family.open)(source, device, precision),
        None => {
            let known: Vec<_> = families.iter().flat_map(|family| family.model_types).copied().collect();
            Err(bad(format!("its model_type is `{model_type}`; encoders can be of {}", known.join(", "))))
        }
    }
}
