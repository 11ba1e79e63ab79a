//! The precision of each part of a network.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

use crate::{Error, Result};

/// The precision of a network's blocks. Master weights, optimiser state, statistics, conditioning and losses are fp32 always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// fp32 throughout.
    F32,
    /// Blocks in bf16, the rest in fp32.
    Bf16,
}

impl Precision {
    /// bf16 where the device multiplies bf16 matrices natively (GPUs; CPUs with AMX or AVX-512 bf16), else fp32.
    pub fn native(device: Device) -> Self {
        match device {
            _ if elf_kernels::takes_gpu_path(device) => Precision::Bf16,
            _ if crate::device::cpu_features().bf16_matmul() => Precision::Bf16,
            _ => Precision::F32,
        }
    }

    /// The tensor kind of activations in the blocks.
    pub fn kind(self) -> Kind {
        match self {
            Precision::F32 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        })
    }
}

/// The precision of each part that can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrecisionPolicy {
    /// Transformer blocks.
    pub blocks: Precision,
    /// The vocabulary head's two matrix products; its losses are fp32 either way. The reference runs it in fp32.
    pub vocab_head: Precision,
    /// The matrix products between latents and the blocks, on the way in and on the way out. The reference runs them in fp32.
    #[serde(default = "full")]
    pub latent_maps: Precision,
    /// Whether the blocks' linear layers multiply 8-bit integers in passes without gradient; activations between them are in `blocks`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub int8: bool,
}

fn full() -> Precision {
    Precision::F32
}

impl PrecisionPolicy {
    /// fp32 everywhere, the setting of comparisons with reference numbers.
    pub const F32: Self = Self::uniform(Precision::F32);

    /// One precision for all parts.
    pub const fn uniform(all: Precision) -> Self {
        Self { blocks: all, vocab_head: all, latent_maps: all, int8: false }
    }

    /// The reference's mixed precision: blocks in `blocks`, all other parts in fp32.
    pub const fn with_blocks(blocks: Precision) -> Self {
        Self { blocks, ..Self::F32 }
    }

    /// Whether the numbers of a row on the CPU depend neither on the other rows of its batch nor on how many there are, to the last bit: all
    /// parts are in fp32, and MKL computes in its strict mode ([`elf_kernels::mkl`]).
    pub fn rows_stand_alone(self) -> bool {
        let wide = [self.blocks, self.vocab_head, self.latent_maps].iter().all(|&part| part == Precision::F32);
        wide && !self.int8 && !elf_kernels::takes_gpu_path(Device::Cpu) && elf_kernels::mkl::rows_stand_alone()
    }

    /// Lets a GPU round the inputs of fp32 products to TF32 where blocks are in bf16, which has fewer digits. Networks call it as they
    /// are made; it holds for the process.
    ///
    /// # Errors
    /// If 8-bit products are asked for where the device has none that are exact.
    pub fn settle(self, device: Device) -> Result<()> {
        if matches!(device, Device::Cuda(_)) {
            elf_kernels::allow_tf32(self.blocks == Precision::Bf16);
        }
        match self.int8 && !(device == Device::Cpu && crate::device::cpu_features().vnni) {
            true => Err(Error::Config(format!(
                "8-bit products are for CPUs with dot products of 8-bit integers (VNNI), and {} has none: leave int8 out",
                crate::device::describe(device)
            ))),
            false => Ok(()),
        }
    }
}
