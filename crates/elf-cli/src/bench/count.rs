//! Kernels that a training step and a sampling step would launch on a GPU, and the bytes that these would move, counted on a CPU that
//! takes the way of GPUs.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use elf_kernels::observe::{self, Operations};

use super::workload::Workload;

/// Whether an operation is a matrix product.
fn is_product(name: &str) -> bool {
    matches!(name, "aten::mm" | "aten::addmm" | "aten::bmm" | "aten::baddbmm")
}

/// What one step takes, by operation, the most first.
#[derive(Debug)]
pub struct Counted {
    /// The step.
    pub what: &'static str,
    /// Launches.
    pub launches: Vec<(String, f64)>,
    /// Bytes read and written for each further position of text: what does not depend on their number is not in it.
    pub bytes: Vec<(String, f64)>,
}

impl Counted {
    /// From the operations of `steps` steps with some positions and with `more` positions more.
    fn new(what: &'static str, [few, many]: &[Operations; 2], steps: u64, more: usize) -> Self {
        let launches = few.launches_by_operation().into_iter();
        let mut bytes: BTreeMap<&str, f64> = BTreeMap::new();
        for (operations, sign) in [(few, -1.0), (many, 1.0)] {
            for (name, n) in operations.bytes_by_operation() {
                *bytes.entry(name).or_default() += sign * n as f64;
            }
        }
        let positions = (more as u64 * steps) as f64;
        let mut bytes: Vec<_> = bytes.into_iter().map(|(name, n)| (name.to_owned(), n / positions)).collect();
        bytes.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        let launches = launches.map(|(name, n)| (name.to_owned(), n as f64 / steps as f64)).collect();
        Self { what, launches, bytes }
    }

    /// Launches of the step.
    pub fn all_launches(&self) -> f64 {
        self.launches.iter().map(|(_, n)| n).sum()
    }

    /// Bytes for a position, and how many of them are those of matrix products.
    pub fn all_bytes(&self) -> (f64, f64) {
        let sum = |keep: fn(&str) -> bool| self.bytes.iter().filter(|(name, _)| keep(name)).map(|(_, n)| n).sum();
        (sum(|_| true), sum(is_product))
    }
}

impl Workload {
    /// The same with twice the rows.
    fn twice(&self) -> Self {
        Self { batch: 2 * self.batch, ..self.clone() }
    }

    /// A training step, the mean of several, which come after one that makes what later ones reuse.
    pub fn count_training(&self) -> Result<Counted> {
        let twice = self.twice();
        let counts = elf_kernels::on_gpu_path(|| {
            let mut trainer = self.trainer(self.net()?)?;
            let mut steps = |rows: &Self| -> Result<Operations> {
                let mut batches = rows.batches()?;
                let mut step = || -> Result<()> {
                    trainer.step(std::iter::once_with(|| batches.next()))?.context("the data has no end").map(drop)
                };
                step()?;
                let (done, operations) = observe::operations(|| (0..rows.steps).try_for_each(|_| step()));
                done.map(|()| operations)
            };
            Ok::<_, anyhow::Error>([steps(self)?, steps(&twice)?])
        })?;
        Ok(Counted::new("a training step", &counts, self.steps as u64, self.batch * self.seq))
    }

    /// A sampling step, the draws and the sampler's work included: those of a run, divided by its passes.
    pub fn count_sampling(&self) -> Result<Counted> {
        let twice = self.twice();
        let counts = elf_kernels::on_gpu_path(|| {
            let net = self.sampling_net()?;
            let run = |rows: &Self| -> Result<Operations> {
                let (done, operations) = observe::operations(|| rows.sample_with(&net));
                done.map(|_| operations)
            };
            Ok::<_, anyhow::Error>([run(self)?, run(&twice)?])
        })?;
        Ok(Counted::new("a sampling step", &counts, self.sampling_steps as u64 + 1, self.batch * self.seq))
    }
}

#[cfg(test)]
mod tests {
    use elf_core::{Precision, PrecisionPolicy};
    use elf_encoder::T5Config;
    use elf_model::{ElfConfig, Preset};
    use tch::Device;

    use super::*;

    /// Launches of a training step of ELF-B's depth on a GPU: whoever lowers them lowers this number too.
    const MOST_LAUNCHES: f64 = 1173.0;

    /// Bytes that a training step of ELF-B moves for a position outside of matrix products, likewise.
    const MOST_BYTES: f64 = 2.1e6;

    /// ELF-B's depth with other widths, in batches of eight.
    fn elf_b(model: ElfConfig, encoder: T5Config, [seq, steps]: [usize; 2]) -> Workload {
        // With a single thread four more tensors are joined.
        tch::set_num_threads(2);
        let workload = Workload {
            model,
            encoder,
            policy: PrecisionPolicy::uniform(Precision::Bf16),
            int8: false,
            muon: Precision::Bf16,
            recompute: false,
            batch: 8,
            seq,
            steps,
            sampling_steps: 1,
            device: Device::Cpu,
        };
        assert_eq!(workload.model.depth, 12);
        workload
    }

    #[test]
    fn a_training_step_launches_no_more_than_it_did() {
        let model = ElfConfig { hidden_size: 96, num_heads: 4, ..Preset::B.config(32, 128) };
        let encoder = T5Config { vocab_size: 128, d_model: 32, d_ff: 64, num_heads: 2, d_kv: 16, ..T5Config::small() };
        let counted = elf_b(model, encoder, [16, 1]).count_training().unwrap();
        println!("{} launches: {:?}", counted.all_launches(), counted.launches);
        assert!(counted.all_launches() <= MOST_LAUNCHES, "{} launches: {:?}", counted.all_launches(), counted.launches);
    }

    /// A quarter of all widths (and four words fewer, so that a kernel takes them): bytes are proportional to widths.
    #[test]
    fn a_training_step_moves_no_more_bytes_than_it_did() {
        let (wide, small) = (Preset::B.config(512 / 4, 32_096 / 4), T5Config::small());
        let model = ElfConfig {
            hidden_size: wide.hidden_size / 4,
            num_heads: wide.num_heads / 4,
            bottleneck_dim: wide.bottleneck_dim / 4,
            ..wide
        };
        let encoder = T5Config {
            vocab_size: 32_096 / 4,
            d_model: small.d_model / 4,
            d_ff: small.d_ff / 4,
            num_heads: small.num_heads / 4,
            ..small
        };
        let counted = elf_b(model, encoder, [128, 2]).count_training().unwrap();
        let (all, products) = counted.all_bytes();
        let bytes = 4.0 * (all - products);
        println!("{bytes} bytes a position and {} in products: {:?}", 4.0 * products, counted.bytes);
        assert!(bytes <= MOST_BYTES, "{bytes} bytes a position: {:?}", counted.bytes);
    }
}
