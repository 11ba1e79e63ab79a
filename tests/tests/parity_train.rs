//! Whole training steps against the released code's numbers: losses, clipped gradients, parameters and averages after four
//! micro-batches, for Muon, AdamW, a conditional task with label drop, and gradient accumulation; and learning rates.

use elf_tests::recorded::Recorded;
use elf_tests::{checks, parity_json};
use elf_train::{Decay, Schedule};
use serde::Deserialize;
use tch::Device;

fn train(name: &str) {
    let all: Vec<Recorded> = parity_json("train.json");
    checks::training(all.iter().find(|recorded| recorded.name == name).unwrap(), Device::Cpu).assert();
}

#[test]
fn parity_muon_unconditional() {
    train("muon_uncond");
}

#[test]
fn parity_adamw_unconditional() {
    train("adamw_uncond");
}

#[test]
fn parity_muon_conditional_with_label_drop() {
    train("muon_cond");
}

#[test]
fn parity_muon_with_gradient_accumulation() {
    train("muon_accum");
}

#[test]
fn parity_all_recorded_runs_are_tested() {
    let mut names: Vec<String> = parity_json::<Vec<Recorded>>("train.json").into_iter().map(|r| r.name).collect();
    names.sort();
    assert_eq!(names, ["adamw_uncond", "muon_accum", "muon_cond", "muon_uncond"]);
}

/// `lr.json`.
#[derive(Deserialize)]
struct Rates {
    num_train_steps: u64,
    num_warmup_steps: u64,
    learning_rate: f64,
    cosine_min_lr: f64,
    steps: Vec<u64>,
    constant: Vec<f64>,
    cosine: Vec<f64>,
}

#[test]
fn parity_learning_rates() {
    let rates: Rates = parity_json("lr.json");
    let constant = Schedule::constant(rates.learning_rate, rates.num_warmup_steps);
    let cosine =
        Schedule { decay: Decay::Cosine, min_lr: rates.cosine_min_lr, total_steps: rates.num_train_steps, ..constant };
    for (i, &step) in rates.steps.iter().enumerate() {
        for (schedule, want) in [(constant, rates.constant[i]), (cosine, rates.cosine[i])] {
            let got = schedule.lr_at(step);
            assert!((got - want).abs() <= 1e-12 * rates.learning_rate, "step {step}: {got} instead of {want}");
        }
    }
}
