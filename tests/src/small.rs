//! Small networks and batches: the reference networks, and batches with a condition.

use elf_core::{Network, Noise, PrecisionPolicy, Seeded, key_of};
use elf_flow::LatentBatch;
use elf_model::Elf;
use tch::{Device, Kind, Tensor};

use crate::parity_path;

/// The network of the reference numbers, in fp32 on the CPU.
///
/// # Panics
/// If it is missing or damaged.
pub fn network() -> Elf {
    network_of("model")
}

/// The network of another file of the reference numbers, in fp32 on the CPU.
///
/// # Panics
/// If it is missing or damaged.
pub fn network_of(weights: &str) -> Elf {
    network_on(weights, Device::Cpu)
}

/// [`network_of`] on another device.
///
/// # Panics
/// If it is missing or damaged.
pub fn network_on(weights: &str, device: Device) -> Elf {
    let path = parity_path(&format!("{weights}.safetensors"));
    Elf::load(&path, PrecisionPolicy::F32, device).unwrap_or_else(|e| panic!("{e}"))
}

/// Batch number `index` for a network: `rows` rows of `length` positions, the first two of them the condition. Every third row's
/// condition is dropped.
///
/// # Panics
/// Never, for sizes above 0.
pub fn batch(net: &dyn Network, index: u64, rows: i64, length: i64) -> LatentBatch {
    let shape = net.shape();
    let mut noise = Seeded::new((0..rows as u64).map(|row| key_of(&[index, row])).collect(), Device::Cpu);
    let condition = Tensor::arange(length, (Kind::Int64, Device::Cpu)).lt(2).to_kind(Kind::Float);
    let condition = condition.expand([rows, length], false).contiguous();
    let latents = noise.normal("latents", &[rows, length, shape.latent_dim]).expect("one key for each row");
    let ids = noise.uniform("ids", &[rows, length]).expect("one key for each row") * shape.vocab_size as f64;
    LatentBatch {
        latents,
        ids: ids.to_kind(Kind::Int64),
        loss_mask: 1.0 - &condition,
        condition: Some(condition),
        dropped: (0..rows).map(|row| row % 3 == 0).collect(),
    }
}
