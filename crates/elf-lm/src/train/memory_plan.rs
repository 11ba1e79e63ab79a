//! What a training run will take in memory, told before any of it is allocated.

use std::fmt;

use crate::Result;
use elf_core::Precision;
use tch::Device;

use crate::config::{OptimizerName, RunPlan};
use crate::train::system_memory::{self, Size};

/// Bytes by what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Parameters, gradients, averages, the optimiser's state, low-precision copies, a teacher: whatever the batch.
    state: u64,
    /// What the network keeps between forward and backward pass.
    activations: u64,
    /// Latents and noise of a batch, logits in hand, the optimiser's matrices in hand, the text encoder, the program.
    rest: u64,
}

/// libtorch's code and tables.
const PROGRAM: u64 = 400 << 20;

/// Logits are made in chunks of this many on a CPU.
const LOGITS_IN_HAND: i64 = 1 << 24;

impl MemoryPlan {
    /// The estimate for a plan whose encoder has so many parameters.
    pub fn new(plan: &RunPlan, encoder_parameters: u64, device: Device) -> Self {
        let n = plan.parameter_count();
        let size = |n: i64| n.max(0) as u64;
        let averages = match plan.config.optimization.optimizer {
            OptimizerName::Muon => 1,
            OptimizerName::Adamw => 2,
        };
        let low = if plan.precision.blocks == Precision::Bf16 { 2 * n } else { 0 };
        let teacher = if plan.distillation.is_some() { 4 * n + low } else { 0 };
        let on_cpu = device == Device::Cpu;
        // Where texts are written in blocks, each row stands beside itself, noisy and clean.
        let copies = if plan.objective.block_size.is_some() { 2 } else { 1 };
        // A run of the teacher is a row of each of the student's steps.
        let runs = plan.distillation.as_ref().filter(|lesson| lesson.step.own_runs.is_some());
        let of_each = runs.map_or(1, |lesson| lesson.step.student_steps() as u64);
        let (rows, positions) = (of_each * plan.batch_rows as u64, copies * plan.span.max_length as u64);
        let (c, v) = (size(plan.model.text_encoder_dim), size(plan.model.vocab_size));
        // Clean latents, noise of both kinds, the noisy mixture, the previous estimate, the target and their differences.
        let latents = 12 * rows * positions * c * 4;
        // A chunk in the blocks' kind, and on a GPU in fp32 before and after the logarithm.
        let chunk = size(elf_core::device::at_a_time(device, LOGITS_IN_HAND)).min(rows * positions * v);
        let head = if on_cpu { 2 } else { 3 } * chunk * 4 + 2 * c * v * 4;
        let threads = if on_cpu { tch::get_num_threads().max(1) as u64 } else { 1 };
        let (activations, of_threads) = match plan.config.compute.gradient_checkpointing {
            true => (plan.model.activation_bytes_recomputed(rows, positions, plan.precision, on_cpu), 0),
            false => (
                plan.model.activation_bytes(rows, positions, plan.precision, on_cpu),
                plan.model.thread_gradient_bytes(rows, positions, plan.precision, threads),
            ),
        };
        Self {
            state: 4 * n * (3 + averages) + low + teacher,
            activations,
            rest: of_threads
                + latents
                + head
                + 5 * encoder_parameters
                + (plan.config.compute.latent_cache_mb << 20)
                + PROGRAM,
        }
    }

    fn total(&self) -> u64 {
        self.state + self.activations + self.rest
    }

    /// Refuses a run that needs more than the `available` bytes, and names the setting to change.
    ///
    /// # Errors
    /// If the estimate is larger.
    pub fn check(&self, plan: &RunPlan, available: Option<u64>) -> Result<()> {
        let parts =
            format!("{} for the model and its optimiser, {} for activations", Size(self.state), Size(self.activations));
        system_memory::check(format_args!("this run ({parts})"), self.total(), available, |there| {
            if self.state + self.rest > there {
                return format!(
                    "the model alone is too large with its {} parameters: lower hidden_size or depth",
                    plan.parameter_count()
                );
            }
            let recompute = match plan.config.compute.gradient_checkpointing {
                true => "",
                false => "set gradient_checkpointing to true, or ",
            };
            format!(
                "{recompute}lower batch_size (now {}) and raise grad_accum_steps by as much, or lower max_length (now {})",
                plan.batch_rows, plan.span.max_length
            )
        })
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "{} ({} for the model and its optimiser, {} for activations)",
            Size(self.total()),
            Size(self.state),
            Size(self.activations)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Facts, RunConfig};

    fn plan(change: impl FnOnce(&mut RunConfig)) -> RunPlan {
        let mut config = RunConfig::default().with(|c| {
            c.batches.batch_size = Some(8);
            c.data.max_length = 256;
        });
        change(&mut config);
        let facts = Facts { latent_dim: 512, vocab_size: 32100, rows: 100_000, condition_eos: false, ranks: 1 };
        RunPlan::new(&config, facts, Device::Cpu).unwrap()
    }

    fn estimate(plan: &RunPlan) -> MemoryPlan {
        MemoryPlan::new(plan, 35_000_000, Device::Cpu)
    }

    #[test]
    fn more_rows_take_more_activations_and_nothing_else_of_note() {
        let (one, two) = (estimate(&plan(|_| {})), estimate(&plan(|c| c.batches.batch_size = Some(16))));
        assert_eq!((one.state, 2 * one.activations), (two.state, two.activations));
        let recomputed = estimate(&plan(|c| c.compute.gradient_checkpointing = true));
        assert!(recomputed.activations < one.activations / 4, "{recomputed} instead of {one}");
        assert!(estimate(&plan(|c| c.optimization.optimizer = OptimizerName::Adamw)).state > one.state);
    }

    #[test]
    fn the_setting_to_change_is_named() {
        let plan = plan(|c| c.batches.batch_size = Some(64));
        let memory = estimate(&plan);
        memory.check(&plan, Some(memory.total())).unwrap();
        let message = memory.check(&plan, Some(memory.total() - 1)).unwrap_err().to_string();
        assert!(message.contains("batch_size (now 64)") && message.contains("max_length (now 256)"), "{message}");
        assert!(message.contains("gradient_checkpointing"), "{message}");
        let message = memory.check(&plan, Some(1 << 30)).unwrap_err().to_string();
        assert!(message.contains("hidden_size"), "{message}");
    }
}
