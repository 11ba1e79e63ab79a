//! Which model to load, and how it computes.

use std::path::{Path, PathBuf};

use elf_core::device::DeviceChoice;
use elf_core::{Precision, PrecisionPolicy};
use tch::Device;

/// A model's path or Hugging Face id, with all options for reading it and computing with it.
///
/// ```no_run
/// use elf_lm::ModelSource;
/// let model = ModelSource::new("runs/mine").averaged(false).device(tch::Device::Cpu).open()?;
/// # Ok::<(), elf_lm::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct ModelSource {
    /// A run's folder (its latest checkpoint is used); a checkpoint's folder; an external parameter file, which is an
    /// exported model, a PyTorch checkpoint of the released code, a safetensors file or an index of shards; a folder
    /// with such a file; or a Hugging Face id.
    pub path: PathBuf,
    /// For an external file: the configuration it was trained with; by default the `config.yml` beside it.
    pub config: Option<PathBuf>,
    /// For an external file: changes to the configuration, as `key=value`.
    pub options: Vec<String>,
    /// For an external file: the tokenizer's file or folder.
    pub tokenizer: Option<PathBuf>,
    /// The text encoder's folder or Hugging Face id, if it has moved since training.
    pub encoder: Option<PathBuf>,
    /// For an external file: positions per text.
    pub length: Option<usize>,
    /// Whether to use the running averages of the parameters instead of the parameters as trained.
    pub averaged: bool,
    /// The device to compute on.
    pub device: Device,
    /// The precision of blocks and encoder; `None` for the device's native one.
    pub precision: Option<Precision>,
    /// Whether the vocabulary head and the projections between latents and blocks use that precision instead of fp32.
    pub heads_too: bool,
    /// Whether the blocks' linear layers multiply 8-bit integers, on a CPU that has dot products of these (VNNI).
    pub int8: bool,
}

impl ModelSource {
    /// A model with its averaged parameters, on a GPU if there is one, in the device's native precision.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self {
            path: path.as_ref().to_owned(),
            config: None,
            options: Vec::new(),
            tokenizer: None,
            encoder: None,
            length: None,
            averaged: true,
            device: DeviceChoice::Auto.resolve().unwrap_or(Device::Cpu),
            precision: None,
            heads_too: false,
            int8: false,
        }
    }

    /// Sets another folder or Hugging Face id of the text encoder than in training.
    pub fn encoder(self, encoder: impl AsRef<Path>) -> Self {
        Self { encoder: Some(encoder.as_ref().to_owned()), ..self }
    }

    /// Sets the device.
    pub fn device(self, device: Device) -> Self {
        Self { device, ..self }
    }

    /// Sets the precision of blocks and encoder.
    pub fn precision(self, precision: Precision) -> Self {
        Self { precision: Some(precision), ..self }
    }

    /// Chooses 8-bit products in the blocks.
    pub fn int8(self, int8: bool) -> Self {
        Self { int8, ..self }
    }

    /// Chooses the running averages of the parameters (`true`) or the parameters as trained.
    pub fn averaged(self, averaged: bool) -> Self {
        Self { averaged, ..self }
    }

    /// The precision of blocks and encoder.
    pub fn block_precision(&self) -> Precision {
        self.precision.unwrap_or_else(|| Precision::native(self.device))
    }

    /// The precision of each part of the network.
    pub fn policy(&self) -> PrecisionPolicy {
        let policy = match self.heads_too {
            true => PrecisionPolicy::uniform(self.block_precision()),
            false => PrecisionPolicy::with_blocks(self.block_precision()),
        };
        PrecisionPolicy { int8: self.int8, ..policy }
    }
}
