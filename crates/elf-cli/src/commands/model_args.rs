//! Which model a command uses.

use std::path::PathBuf;

use clap::Args;
use elf_core::Precision;
use elf_core::device::DeviceChoice;
use elf_lm::ModelSource;
use tch::Device;

/// Which model, and how it computes.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    /// A run's folder (its latest checkpoint is used) or a checkpoint's; or a parameter file from elsewhere: a PyTorch
    /// checkpoint of the released code, safetensors, an index of shards, or a folder with one; or a Hugging Face id.
    #[arg(value_name = "MODEL")]
    pub path: PathBuf,
    /// For a file from elsewhere: the configuration it was trained with. Default: the config.yml next to it, where the
    /// released code writes it; failing that, the released recipe for unconditional text. The network's sizes always
    /// come from the file.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// For a file from elsewhere: override one setting of --config, as key=value. May be repeated.
    #[arg(long = "option", value_name = "KEY=VALUE")]
    pub options: Vec<String>,
    /// For a file from elsewhere: the tokenizer's file or folder; same as --option tokenizer_name=PATH.
    #[arg(long)]
    pub tokenizer: Option<PathBuf>,
    /// The text encoder, if it is not where it was in training or where config.yml says: its folder, or a Hugging Face
    /// id.
    #[arg(long, value_name = "ENCODER")]
    pub encoder: Option<PathBuf>,
    /// For an exported model or a file from elsewhere: positions per text; same as --option max_length=N. Default: as
    /// in its config.yml or --config; 1024 without one. For a model that was trained on rows of equal length
    /// (group_by_length): tokens per text, its end included, in place of those of the training data.
    #[arg(long)]
    pub length: Option<usize>,
    /// Use the raw trained parameters instead of their running averages (EMA).
    #[arg(long)]
    pub no_ema: bool,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,
    /// Compute in fp32 even where the device supports bf16.
    #[arg(long)]
    pub f32: bool,
    /// Also compute the vocabulary head and the projections between latents and blocks in bf16, where the device
    /// supports it: a few percent faster.
    #[arg(long, conflicts_with = "f32")]
    pub heads_bf16: bool,
    /// Multiply 8-bit integers in the blocks' linear layers, on a CPU that has dot products of these (VNNI): faster, with small
    /// changes of the texts (see docs/performance.md).
    #[arg(long)]
    pub int8: bool,
}

impl ModelArgs {
    /// The model on a device, as the library takes it.
    pub fn source(&self, device: Device) -> ModelSource {
        ModelSource {
            path: self.path.clone(),
            config: self.config.clone(),
            options: self.options.clone(),
            tokenizer: self.tokenizer.clone(),
            encoder: self.encoder.clone(),
            length: self.length,
            averaged: !self.no_ema,
            device,
            precision: self.f32.then_some(Precision::F32),
            heads_too: self.heads_bf16,
            int8: self.int8,
        }
    }
}
