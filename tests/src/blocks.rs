//! Small networks and batches for tests of texts that are written in blocks.

use std::cell::RefCell;

use elf_core::{Context, Network, NetworkShape, Noise, ParamSet, PrecisionPolicy, Seeded, TrunkInput};
use elf_flow::{ElfObjective, LatentBatch, Objective};
use elf_model::{Elf, ElfConfig, Preset};
use tch::{Device, Kind, Tensor};

/// Channels of the latents.
pub const C: i64 = 6;
/// Tokens of the vocabulary.
pub const V: i64 = 40;
/// Positions of a row.
pub const S: i64 = 10;

/// A network with nonzero heads, in place of the zeros that training starts from.
pub fn network() -> Elf {
    network_of(false)
}

/// The same with a table of clean tokens, and with a normalisation before its vocabulary head.
pub fn network_with_table() -> Elf {
    network_of(true)
}

/// The one network or the other.
pub fn network_of(table: bool) -> Elf {
    made(table, 3, 0.0)
}

/// The network with a table, and deep enough for blocks with dropout in its middle.
pub fn network_with_dropout(proj_dropout: f64) -> Elf {
    made(true, 4, proj_dropout)
}

fn made(table: bool, depth: i64, proj_dropout: f64) -> Elf {
    let config = ElfConfig {
        hidden_size: 32,
        depth,
        proj_dropout,
        num_heads: 2,
        bottleneck_dim: 8,
        num_time_tokens: 2,
        num_self_cond_cfg_tokens: 1,
        num_model_mode_tokens: 1,
        context_table: table,
        vocab_head_norm: table,
        ..Preset::B.config(C, V)
    };
    let net = Elf::new(config, PrecisionPolicy::F32, 5, Device::Cpu).expect("possible sizes");
    for (i, (name, parameter)) in net.params().iter().enumerate() {
        if name.starts_with("final_layer.linear") || name.starts_with("unembed") || name.starts_with("context_table") {
            let values = Seeded::new(vec![i as u64], Device::Cpu)
                .normal("values", &[&[1], &parameter.tensor.size()[..]].concat());
            tch::no_grad(|| parameter.tensor.shallow_clone().copy_(&(values.expect("one key").squeeze_dim(0) * 0.3)));
        }
    }
    net.params().changed();
    net
}

/// Draws of so many rows.
pub fn draws(rows: i64, seed: u64) -> Seeded {
    Seeded::new((0..rows as u64).map(|row| seed * 1000 + row).collect(), Device::Cpu)
}

/// Normal numbers of a shape.
///
/// # Panics
/// Never, for shapes with rows.
pub fn numbers(shape: &[i64], seed: u64) -> Tensor {
    draws(shape[0], seed).normal("numbers", shape).expect("one key for each row")
}

/// Whether two tensors are equal up to rounding.
pub fn near(a: &Tensor, b: &Tensor) -> bool {
    a.allclose(b, 1e-4, 1e-4, false)
}

/// The number of each position's block, for blocks of `size` positions: `[rows, positions]`.
pub fn labels(rows: i64, positions: i64, size: i64) -> Tensor {
    let positions = Tensor::arange(positions, (Kind::Int64, Device::Cpu));
    positions.divide_scalar_mode(size, "floor").unsqueeze(0).repeat([rows, 1])
}

/// Whether a position is among the first of its row, whose number is the row's length: bool, `[B, positions]`.
pub fn leading(lengths: &[i64], positions: i64) -> Tensor {
    Tensor::arange(positions, (Kind::Int64, Device::Cpu))
        .unsqueeze(0)
        .lt_tensor(&Tensor::from_slice(lengths).unsqueeze(-1))
}

/// The mask of conditions of these lengths, `[B, S]`.
pub fn condition_mask(lengths: &[i64]) -> Tensor {
    leading(lengths, S).to_kind(Kind::Float)
}

/// A token for each position, another one in each row: `[rows, positions]`.
pub fn words(rows: i64, positions: i64) -> Tensor {
    (Tensor::arange(rows * positions, (Kind::Int64, Device::Cpu)) * 7).remainder(V).view([rows, positions])
}

/// Four rows of [`S`] positions, with conditions of several lengths or without.
pub fn batch(conditional: bool) -> LatentBatch {
    let condition = condition_mask(&[3, 0, 5, 4]);
    LatentBatch {
        latents: numbers(&[4, S, C], 7),
        ids: Tensor::arange(4 * S, (Kind::Int64, Device::Cpu)).remainder(V).view([4, S]),
        loss_mask: if conditional { 1.0 - &condition } else { condition.ones_like() },
        condition: conditional.then_some(condition),
        dropped: if conditional { vec![false, false, true, false] } else { Vec::new() },
    }
}

/// The loss of a [`batch`] with fixed draws.
///
/// # Panics
/// If the objective fails.
pub fn loss(objective: &ElfObjective, net: &dyn Network, batch: &LatentBatch) -> f64 {
    objective.loss(net, batch, &mut draws(4, 9)).unwrap_or_else(|e| panic!("{e}")).mean().double_value(&[])
}

/// A network that records the contexts of its passes.
pub struct Watched {
    /// The network.
    pub net: Elf,
    /// Latents, ids, blocks and noisy blocks of each pass with a context.
    pub seen: RefCell<Vec<[Tensor; 4]>>,
}

impl Watched {
    /// With no pass yet.
    pub fn new(net: Elf) -> Self {
        Self { net, seen: RefCell::default() }
    }
}

impl Network for Watched {
    fn shape(&self) -> NetworkShape {
        self.net.shape()
    }

    fn params(&self) -> &ParamSet {
        self.net.params()
    }

    fn trunk(&self, input: &TrunkInput) -> elf_core::Result<Tensor> {
        if let Some(Context { latents, ids, blocks, noisy_blocks, .. }) = input.context {
            self.seen.borrow_mut().push([latents, ids, blocks, noisy_blocks].map(Tensor::copy));
        }
        self.net.trunk(input)
    }

    fn clean(&self, hidden: &Tensor) -> elf_core::Result<Tensor> {
        self.net.clean(hidden)
    }

    fn logits(&self, hidden: &Tensor) -> elf_core::Result<Tensor> {
        self.net.logits(hidden)
    }
}
