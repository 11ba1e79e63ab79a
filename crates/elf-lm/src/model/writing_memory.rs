//! The memory that a model takes to write texts, estimated before any of it is taken.

use super::DescribedModel;
use crate::Result;
use crate::config::{BaselinePlan, RunPlan};
use crate::train::system_memory;

/// libtorch's code and tables, and logits in hand.
const PROGRAM: u64 = 400 << 20;

/// Bytes per parameter, in fp32 and rounded.
const PARAMETER: u64 = 6;

impl DescribedModel {
    /// Refuses batches of `rows` texts that do not fit into memory, and names the settings to change.
    ///
    /// # Errors
    /// If the estimate is larger than the memory.
    pub fn check_memory(&self, rows: usize) -> Result<()> {
        check(&self.plan, rows, system_memory::available(self.source().device, 1))
    }
}

/// Refuses several models that do not fit into memory together, each with batches of `rows` texts, one batch at a time.
///
/// # Errors
/// As [`DescribedModel::check_memory`], or if they do not fit together.
pub fn check_memory_together(models: &[&DescribedModel], rows: usize) -> Result<()> {
    models.iter().try_for_each(|model| model.check_memory(rows))?;
    let [first, _, ..] = models else { return Ok(()) };
    let held = |model: &&DescribedModel| PARAMETER * model.plan.parameter_count();
    let working = |model: &&DescribedModel| estimate(&model.plan, rows as u64).saturating_sub(held(model) + PROGRAM);
    let largest = models.iter().map(working).max().unwrap_or(0);
    let needed = models.iter().map(held).fold(largest.saturating_add(PROGRAM), u64::saturating_add);
    let what = format_args!("serving {} models, with {rows} text(s) at a time", models.len());
    system_memory::check(what, needed, system_memory::available(first.source().device, 1), |_| {
        "serve fewer models, or lower the number of texts at a time (--batch-size)".to_owned()
    })
}

fn check(plan: &RunPlan, rows: usize, available: Option<u64>) -> Result<()> {
    let length = plan.span.max_length;
    let what = format_args!("generating {rows} text(s) of {length} positions at a time");
    system_memory::check(what, estimate(plan, rows as u64), available, |there| match rows {
        2.. if estimate(plan, 1) <= there => {
            format!("lower the number of texts at a time, now {rows} (--batch-size), or their length, now {length}")
        }
        _ => format!("lower the length of a text, now {length} (--length)"),
    })
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
    per_text.saturating_add(PARAMETER * parameters + PROGRAM)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Facts, RunConfig};
    use tch::Device;

    fn plan(length: usize) -> RunPlan {
        let config = RunConfig::default().with(|c| c.data.max_length = length);
        let facts = Facts { latent_dim: 512, vocab_size: 32_100, rows: 1 << 40, condition_eos: false, ranks: 1 };
        RunPlan::new(&config, facts, Device::Cpu).unwrap()
    }

    #[test]
    fn texts_that_fit_pass_and_others_are_refused_with_the_setting_to_change() {
        const THERE: Option<u64> = Some(16 << 30);
        check(&plan(1024), 8, THERE).unwrap();
        for (length, rows, words) in [
            (1024, 65_536, &["65536 text(s) of 1024", "(--batch-size)"][..]),
            (100_000, 8, &["100000 positions", "(--batch-size)"]),
            (10_000_000, 8, &["10000000 positions", "lower the length of a text"]),
            (10_000_000, 1, &["lower the length of a text, now 10000000"]),
        ] {
            let message = check(&plan(length), rows, THERE).unwrap_err().to_string();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }
}
