//! Opening an encoder of whichever family its `config.json` names.

use elf_core::Precision;
use serde_json::Value;
use tch::Device;

use crate::encoder_source::EncoderSource;
use crate::{BertEncoder, Error, Result, T5Encoder, TextEncoder};

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
    if let Some(layer) = source.layer.filter(|layer| *layer > 0) {
        return Err(Error::Layer(format!(
            "{layer} cannot be taken of a T5, whose inner layers are not normalised: only 0, its token table, and its last output \
             are supported"
        )));
    }
    let encoder = T5Encoder::load_with(&source.folder, source.weights(), device, precision)?;
    Ok(Box::new(if source.layer.is_some() { encoder.token_table()? } else { encoder }))
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
