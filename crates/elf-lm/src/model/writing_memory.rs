//! The memory that a model takes to write texts, estimated before any of it is taken.

use tch::Device;

use super::DescribedModel;
use crate::Result;
use crate::config::{BaselinePlan, RunPlan};
use crate::error::fail;
use crate::train::system_memory::{self, Size};

/// libtorch's code and tables, and logits in hand.
const PROGRAM: u64 = 400 << 20;

impl DescribedModel {
    /// Refuses batches of `rows` texts that do not fit into memory, and names the settings to change.
    ///
    /// # Errors
    /// If the estimate is larger than the memory. On a GPU nothing is refused: libtorch does not say how large its memory is.
    pub fn check_memory(&self, rows: usize) -> Result<()> {
        match system_memory::total_bytes().filter(|_| self.source().device == Device::Cpu) {
            Some(there) => check_against(&self.plan, rows, there),
            None => Ok(()),
        }
    }
}

fn check_against(plan: &RunPlan, rows: usize, there: u64) -> Result<()> {
    let needed = estimate(plan, rows as u64);
    if needed <= there {
        return Ok(());
    }
    let length = plan.span.max_length;
    let remedy = match (rows, estimate(plan, 1) > there) {
        (1, _) | (_, true) => format!("the length of a text, now {length} (--length)"),
        _ => format!("the number of texts at a time, now {rows} (--batch-size), or their length, now {length}"),
    };
    fail!(
        setting("batch_size"),
        "{rows} text(s) of {length} positions at a time need about {} of memory, and this machine has {}: lower {remedy}",
        Size(needed),
        Size(there)
    )
}

/// Bytes: parameters, the activations of one block, latents and noise, and what is kept of finished blocks or positions.
fn estimate(plan: &RunPlan, rows: u64) -> u64 {
    let size = |n: i64| n.max(0) as u64;
    let model = &plan.model;
    let (positions, parameters) = (plan.span.max_length as u64, plan.parameter_count());
    let (hidden, depth) = (size(model.hidden_size), size(model.depth).max(1));
    // With and without a condition in one batch.
    let passed = if plan.span.max_input_length.is_some() { rows.saturating_mul(2) } else { rows };
    let remembered = rows.saturating_mul(positions).saturating_mul(depth * 2 * hidden * 4);
    let block = model.activation_bytes(passed, positions, plan.precision, true) / depth;
    let per_text = match &plan.baseline {
        Some(BaselinePlan::Gpt2(_)) => remembered,
        Some(BaselinePlan::Mdlm { .. }) => {
            block.saturating_add(rows.saturating_mul(positions).saturating_mul(4 * size(model.vocab_size)))
        }
        None => {
            let latents = rows.saturating_mul(positions).saturating_mul(12 * 4 * size(model.text_encoder_dim));
            let finished = if plan.objective.block_size.is_some() { remembered } else { 0 };
            block.saturating_add(latents).saturating_add(finished)
        }
    };
    per_text.saturating_add(6 * parameters + PROGRAM)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Facts, RunConfig};

    fn plan(length: usize) -> RunPlan {
        let config = RunConfig::default().with(|c| c.data.max_length = length);
        let facts = Facts { latent_dim: 512, vocab_size: 32_100, rows: 1 << 40, condition_eos: false, ranks: 1 };
        RunPlan::new(&config, facts, Device::Cpu).unwrap()
    }

    #[test]
    fn texts_that_fit_pass_and_others_are_refused_with_the_setting_to_change() {
        const THERE: u64 = 16 << 30;
        check_against(&plan(1024), 8, THERE).unwrap();
        for (length, rows, words) in [
            (1024, 65_536, &["65536 text(s) of 1024", "(--batch-size)"][..]),
            (100_000, 8, &["100000 positions", "(--batch-size)"]),
            (10_000_000, 8, &["10000000 positions", "lower the length of a text"]),
            (10_000_000, 1, &["lower the length of a text, now 10000000"]),
        ] {
            let message = check_against(&plan(length), rows, THERE).unwrap_err().to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }
}
