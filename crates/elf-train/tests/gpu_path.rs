//! Training on the way for GPUs against training on a CPU's: the same steps, given the same draws.

mod small;

use elf_core::{Noise, Result, Seeded};
use elf_flow::LatentBatch;
use elf_train::optim::{AdamWConfig, MuonConfig, OptimizerConfig};
use small::{batch, equal, trainer};
use tch::{Device, Tensor};

/// Draws of a CPU wherever they are asked for: made in a thread of their own, which takes a CPU's way.
struct OfCpu(Seeded);

impl OfCpu {
    fn draw<T: Send>(&mut self, f: impl FnOnce(&mut Seeded) -> T + Send) -> T {
        std::thread::scope(|threads| threads.spawn(|| f(&mut self.0)).join().unwrap())
    }
}

impl Noise for OfCpu {
    fn normal(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        self.draw(|noise| noise.normal(name, shape))
    }

    fn uniform(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        self.draw(|noise| noise.uniform(name, shape))
    }

    fn coins(&mut self, name: &str, rows: usize) -> Result<Vec<f64>> {
        self.0.coins(name, rows)
    }
}

/// Parameters and averages after five steps of two micro-batches each, all drawn on a CPU's way.
fn trained(optimizer: OptimizerConfig, as_on_gpu: bool) -> Vec<(String, Tensor)> {
    let mut trainer = trainer(optimizer);
    for step in 0..5 {
        let micro = [0u64, 1].map(|i| -> elf_train::Result<(LatentBatch, Box<dyn Noise>)> {
            let noise = Seeded::at(&[step, i], 0..6, Device::Cpu);
            Ok((batch(2 * step + i, 6), Box::new(OfCpu(noise))))
        });
        let report = match as_on_gpu {
            true => elf_kernels::on_gpu_path(|| trainer.step_with_noise(micro)),
            false => trainer.step_with_noise(micro),
        };
        assert!(report.unwrap().is_some());
    }
    let averages = trainer.ema().averages().map(|(name, t)| (format!("average/{name}"), t.copy()));
    trainer.params().snapshot().into_iter().chain(averages).collect()
}

#[test]
fn steps_are_the_same_on_both_ways() {
    for optimizer in [OptimizerConfig::Muon(MuonConfig::default()), OptimizerConfig::Adamw(AdamWConfig::default())] {
        let (on_cpu, as_on_gpu) = (trained(optimizer, false), trained(optimizer, true));
        for ((name, a), (other, b)) in on_cpu.iter().zip(&as_on_gpu) {
            assert_eq!(name, other);
            let far = (a - b).abs().max().double_value(&[]);
            assert!(far < 1e-5, "{optimizer:?}: {name} differs by {far:e}");
        }
        assert!(equal(&as_on_gpu, &trained(optimizer, true)), "the same run twice");
    }
}
