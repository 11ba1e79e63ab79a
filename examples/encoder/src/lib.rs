//! A family of encoders that is not in this repository's crates, used with a model of this repository.
//!
//! [`neighbours`] is the family; [`with_neighbours`] has the one line that adds it. From there on it is opened like any other:
//! wherever a configuration or a model names a folder of this family, in training, sampling and serving.

pub mod neighbours;

use std::path::Path;

use elf_encoder::{BUILTIN, EncoderMask, LatentMoments, TextEncoder};
use elf_lm::Host;
use elf_lm::text::text_latents::write_stats;
use neighbours::Neighbours;
use tch::{Device, Kind, Tensor};

/// A program that opens [`Neighbours`] too.
pub fn with_neighbours(host: Host<'_>) -> Host<'_> {
    host.with_encoders([BUILTIN, &[neighbours::FAMILY]].concat())
}

/// Writes a folder of [`Neighbours`] with the latents of `encoder` for single tokens as its table, and what its own latents are
/// normalised by.
///
/// # Errors
/// If a file cannot be written, or libtorch fails.
pub fn make(folder: &Path, encoder: &dyn TextEncoder, share: f64) -> elf_lm::Result<()> {
    let ids = Tensor::f_arange(encoder.vocab_size(), (Kind::Int64, Device::Cpu))?;
    let table = encoder.encode(&ids.f_unsqueeze(1)?, EncoderMask::None)?;
    let mut moments = LatentMoments::new(encoder.dim() as usize);
    moments.add(&table, &Tensor::f_ones([encoder.vocab_size(), 1], (Kind::Float, Device::Cpu))?)?;
    Neighbours::new(&table.f_squeeze_dim(1)?, share)?.save(folder)?;
    write_stats(folder, None, &moments.per_channel()?)
}
