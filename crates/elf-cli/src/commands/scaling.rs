//! `elf scaling`: what a training step costs on many GPUs, on paper.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use elf_encoder::T5Config;
use elf_model::{ElfConfig, Preset};
use elf_train::optim::OptimizerConfig;

use super::{at_least_one, at_most};
use crate::printing::out;
use crate::step_timeline::{Compute, Link, Timeline, simulate};

/// Defaults are the paper's batch and latents, and an assumed, not measured, speed of one GPU.
#[derive(Debug, Args)]
pub struct ScalingArgs {
    /// Rows per optimiser step, over all GPUs.
    #[arg(long, default_value_t = 512)]
    rows: u64,
    /// Rows per GPU instead, so that the batch grows with the number of GPUs.
    #[arg(long, conflicts_with = "rows")]
    rows_each: Option<u64>,
    /// Positions per row.
    #[arg(long, default_value_t = 1024)]
    seq: u64,
    /// Operations per second that one GPU sustains in matrix products, in units of 10^12.
    #[arg(long, default_value_t = 300.0)]
    teraflops: f64,
    /// Memory bandwidth of one GPU, in units of 10^12 bytes per second.
    #[arg(long, default_value_t = 3.0)]
    memory_terabytes: f64,
    /// Bandwidth of one GPU's link to the others, in units of 10^9 bits per second.
    #[arg(long, default_value_t = 400.0)]
    gigabits: f64,
    /// Latency of a message, in microseconds.
    #[arg(long, default_value_t = 10.0)]
    latency: f64,
    /// Numbers of GPUs.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 8, 16, 64, 128, 256, 512, 1024])]
    gpus: Vec<u64>,
}

/// What the update of a step costs on the rank with the most to do.
struct Update {
    flops: u64,
    bytes: u64,
}

/// Most GPUs, and most rows and positions; a mistyped number must not take hours to count.
const MOST_GPUS: usize = 1 << 17;
const MOST: usize = 1 << 30;

impl ScalingArgs {
    /// What clap cannot check.
    fn check(&self) -> Result<()> {
        let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let mut counts = vec![("--rows", count(self.rows), MOST), ("--seq", count(self.seq), MOST)];
        counts.extend(self.rows_each.map(|rows| ("--rows-each", count(rows), MOST)));
        counts.extend(self.gpus.iter().map(|gpus| ("--gpus", count(*gpus), MOST_GPUS)));
        at_least_one(&counts.iter().map(|(name, count, _)| (*name, *count)).collect::<Vec<_>>())?;
        at_most(&counts)?;
        for (name, value) in [
            ("--teraflops", self.teraflops),
            ("--memory-terabytes", self.memory_terabytes),
            ("--gigabits", self.gigabits),
            ("--latency", self.latency),
        ] {
            if value <= 0.0 {
                bail!("{name} is {value}; it must be above 0");
            }
        }
        Ok(())
    }
}

pub fn run(args: ScalingArgs) -> Result<ExitCode> {
    args.check()?;
    for (name, preset) in Preset::ALL {
        let config = preset.config(512, 32100);
        let parameters = config.parameter_count();
        out!(
            "\n{name}: {:.1} million parameters, {:.2} GB of gradients, {:.2} TFLOP a row of {} positions\n",
            parameters as f64 / 1e6,
            4.0 * parameters as f64 / 1e9,
            row_flops(&config, args.seq) as f64 / 1e12,
            args.seq
        )?;
        out!(
            "| GPUs | rows each | GB sent each | compute ms | update ms | exposed ms | step ms | efficiency | GB each, sharded | GB each, not |"
        )?;
        out!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")?;
        for &gpus in &args.gpus {
            let rows = args.rows_each.map_or(args.rows, |each| each * gpus);
            let (step, compute) = step(&config, &args, rows, gpus);
            let share = (gpus - 1) as f64 / gpus as f64;
            out!(
                "| {gpus} | {} | {:.2} | {:.1} | {:.1} | {:.1} | {:.1} | {:.0}% | {:.2} | {:.2} |",
                rows as f64 / gpus as f64,
                3.0 * share * 4.0 * parameters as f64 / 1e9,
                (compute.before + compute.backward) * 1e3,
                compute.update * 1e3,
                step.exposed() * 1e3,
                step.ends * 1e3,
                100.0 * step.efficiency(),
                memory(&config, gpus) / 1e9,
                memory(&config, 1) / 1e9,
            )?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn step(config: &ElfConfig, args: &ScalingArgs, rows: u64, gpus: u64) -> (Timeline, Compute) {
    let rate = args.teraflops * 1e12;
    let total = rows as f64 * row_flops(config, args.seq) as f64 / gpus as f64 / rate;
    let backward = rows as f64 * backward_flops(config, args.seq) as f64 / gpus as f64 / rate;
    let update = update(config, gpus);
    let compute = Compute {
        before: total - backward,
        backward,
        update: update.flops as f64 / rate + update.bytes as f64 / (args.memory_terabytes * 1e12),
    };
    let link = Link { bytes_per_second: args.gigabits * 1e9 / 8.0, latency: args.latency * 1e-6 };
    let owners = gpus.min(matrices(config).len() as u64);
    (simulate(compute, 4.0 * config.parameter_count() as f64, gpus, owners, link), compute)
}

/// The pass with gradients, once through: four of five rows denoise, one decodes.
fn pass_flops(config: &ElfConfig, seq: u64) -> u64 {
    config.trunk_flops(seq) + (4 * config.clean_flops(seq) + config.logits_flops(seq)) / 5
}

fn backward_flops(config: &ElfConfig, seq: u64) -> u64 {
    2 * pass_flops(config, seq)
}

/// Everything for one row: T5-small, the pass without gradients for the 40% of rows that are self-conditioned, and the one
/// with gradients, forward and backward.
fn row_flops(config: &ElfConfig, seq: u64) -> u64 {
    T5Config::small().encode_flops(seq)
        + 2 * (config.trunk_flops(seq) + config.clean_flops(seq)) / 5
        + 3 * pass_flops(config, seq)
}

/// Rows and columns of the matrices, as they are stored.
fn matrices(config: &ElfConfig) -> Vec<[i64; 2]> {
    let (c, b, h) = (config.text_encoder_dim, config.bottleneck_dim, config.hidden_size);
    let (inner, v) = (config.mlp_hidden(), config.vocab_size);
    let block = [[3 * h, h], [h, h], [2 * inner, h], [h, inner]];
    let mut all = vec![[c, 2 * c], [b, c], [h, b], [c, h], [h, c], [c, v]];
    all.extend([[h, 256], [h, h], [h, 256], [h, h]]);
    for _ in 0..config.depth {
        all.extend(block);
    }
    all
}

/// Muon's iterations, and reading gradient, momentum, parameter and average, writing the last three.
fn update(config: &ElfConfig, gpus: u64) -> Update {
    let (matrices, muon) = (matrices(config), OptimizerConfig::default());
    let costs: Vec<u64> = matrices.iter().map(|shape| muon.update_cost(shape)).collect();
    let owners = elf_train::share_out(&costs, gpus);
    (0..gpus)
        .map(|rank| {
            let own = || matrices.iter().zip(&owners).filter(|(_, owner)| **owner == rank).map(|(m, _)| m);
            Update {
                flops: own().map(|shape| muon.update_flops(shape)).sum(),
                bytes: own().map(|[rows, columns]| 7 * 4 * (rows * columns).max(0) as u64).sum(),
            }
        })
        .max_by_key(|u| u.flops + 100 * u.bytes)
        .unwrap_or(Update { flops: 0, bytes: 0 })
}

/// Bytes without activations: parameters in fp32 and bf16, gradients and their flat copies; momentum and average of what the
/// rank with the most to do owns.
fn memory(config: &ElfConfig, gpus: u64) -> f64 {
    let own = update(config, gpus).bytes / 28;
    (14 * config.parameter_count() + 8 * own) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearly_all_parameters_are_in_the_matrices_that_are_counted() {
        for (name, preset) in Preset::ALL {
            let config = preset.config(512, 32100);
            let counted: i64 = matrices(&config).iter().map(|[rows, columns]| rows * columns).sum();
            let share = counted as f64 / config.parameter_count() as f64;
            assert!((0.995..=1.0).contains(&share), "{name}: {share}");
        }
    }

    #[test]
    fn sharing_lowers_memory_and_the_update_and_leaves_the_sum() {
        let config = Preset::B.config(512, 32100);
        assert!(memory(&config, 8) < memory(&config, 1) && update(&config, 8).flops < update(&config, 1).flops / 4);
        // No rank can have less than the largest matrix to do.
        assert_eq!(update(&config, 1024).flops, update(&config, 4096).flops);
    }
}
