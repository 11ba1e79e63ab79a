//! Batches of random rows.

use elf_core::{Noise, Seeded};
use elf_flow::LatentBatch;
use tch::{Device, Kind, Tensor};

use crate::toy::{C, V};

/// Positions of a row.
pub const S: i64 = 5;
/// Condition positions of a conditional batch.
const GIVEN: i64 = 2;

/// Rows of random latents and words, the first two positions of which may be a condition.
pub fn batch(rows: i64, conditional: bool) -> LatentBatch {
    let mut draws = Seeded::new((0..rows as u64).collect(), Device::Cpu);
    let given = Tensor::arange(S, (Kind::Int64, Device::Cpu)).lt(GIVEN).to_kind(Kind::Float);
    let given = given.expand([rows, S], false).contiguous();
    LatentBatch {
        latents: draws.normal("latents", &[rows, S, C]).unwrap(),
        ids: (draws.uniform("ids", &[rows, S]).unwrap() * V as f64).to_kind(Kind::Int64),
        loss_mask: if conditional { 1.0 - &given } else { given.ones_like() },
        condition: conditional.then_some(given),
        dropped: Vec::new(),
    }
}
