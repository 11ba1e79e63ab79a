//! Which model, and how it computes.

use std::path::{Path, PathBuf};

use elf_core::device::DeviceChoice;
use elf_core::{Precision, PrecisionPolicy};
use tch::Device;

/// A model by path or Hugging Face id, with all that decides on how it is read and how it computes.
///
/// ```no_run
/// use elf_lm::ModelSource;
/// let model = ModelSource::new("runs/mine").averaged(false).device(tch::Device::Cpu).open()?;
/// # Ok::<(), elf_lm::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct ModelSource {
    /// A run's folder (its latest checkpoint is used) or a checkpoint's; or a parameter file from elsewhere: an exported model, a
    /// PyTorch checkpoint of the released code, safetensors, an index of shards, or a folder with one; or a Hugging Face id.
    pub path: PathBuf,
    /// For a file from elsewhere: the configuration it was trained with, if not the `config.yml` beside it.
    pub config: Option<PathBuf>,
    /// For a file from elsewhere: settings over the configuration's, as `key=value`.
    pub options: Vec<String>,
    /// For a file from elsewhere: the tokenizer's file or folder.
    pub tokenizer: Option<PathBuf>,
    /// The text encoder's folder or Hugging Face id, if it is not where it was in training.
    pub encoder: Option<PathBuf>,
    /// For a file from elsewhere: positions per text.
    pub length: Option<usize>,
    /// Whether the running averages of the parameters are used, and not the parameters as trained.
    pub averaged: bool,
    /// Where networks compute.
    pub device: Device,
    /// The precision of blocks and encoder; `None` for the device's own.
    pub precision: Option<Precision>,
    /// Whether the vocabulary head and the projections between latents and blocks compute in that precision, too, and not in fp32.
    pub heads_too: bool,
}

impl ModelSource {
    /// A model with its averaged parameters, on a GPU if there is one, in the device's own precision.
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
        }
    }

    /// Takes the text encoder from another place than in training.
    pub fn encoder(self, encoder: impl AsRef<Path>) -> Self {
        Self { encoder: Some(encoder.as_ref().to_owned()), ..self }
    }

    /// Computes on this device.
    pub fn device(self, device: Device) -> Self {
        Self { device, ..self }
    }

    /// Computes in this precision.
    pub fn precision(self, precision: Precision) -> Self {
        Self { precision: Some(precision), ..self }
    }

    /// Uses the running averages of the parameters, or the parameters as trained.
    pub fn averaged(self, averaged: bool) -> Self {
        Self { averaged, ..self }
    }

    /// The precision of blocks and encoder.
    pub fn block_precision(&self) -> Precision {
        self.precision.unwrap_or_else(|| Precision::native(self.device))
    }

    /// The precision of each part of the network.
    pub fn policy(&self) -> PrecisionPolicy {
        match self.heads_too {
            true => PrecisionPolicy::uniform(self.block_precision()),
            false => PrecisionPolicy::with_blocks(self.block_precision()),
        }
    }
}
