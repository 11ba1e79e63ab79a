//! Whole training steps against the released code's numbers: losses, clipped gradients, parameters and averages after four
//! micro-batches, for Muon, AdamW, a conditional task with label drop, and gradient accumulation; and learning rates.

use elf_core::{Network, Noise, Precision};
use elf_encoder::T5Encoder;
use elf_tests::recorded::{Metrics, Recorded};
use elf_tests::small::network;
use elf_tests::{Reference, assert_close, assert_close_relative, parity_json, parity_path};
use elf_train::{Decay, Schedule, Solo, StepMetrics, Trainer};
use serde::Deserialize;
use std::rc::Rc;
use tch::Device;

/// Relative tolerance of losses and gradients; absolute tolerance of parameters after all steps.
const TOLERANCE: f64 = 1e-4;

fn train(name: &str) {
    let all: Vec<Recorded> = parity_json("train.json");
    let recorded = all.into_iter().find(|r| r.name == name).unwrap();
    let reference = Reference::open(&format!("train_{name}.safetensors"));
    let encoder = T5Encoder::load(&parity_path(&recorded.encoder), Device::Cpu, Precision::F32).unwrap();
    let net = network();
    let mut trainer = Trainer::new(net, recorded.objective(), recorded.config(), Rc::new(Solo)).unwrap();

    let micro = |step: usize| {
        let noise: Box<dyn Noise> = Box::new(recorded.draws(&reference, step));
        Ok((recorded.batch(&reference, step, &encoder), noise))
    };
    let parts = recorded.grad_accum_steps.get() as usize;
    assert_eq!((recorded.num_steps % parts, recorded.metrics.len()), (0, recorded.num_steps));
    let clipped = reference.under("grad_clipped_first.");
    for first in (0..recorded.num_steps).step_by(parts) {
        let report = trainer.step_with_noise((first..first + parts).map(micro)).unwrap().unwrap();
        for (part, expected) in report.micro.iter().zip(&recorded.metrics[first..]) {
            compare("loss", first, part.loss.double_value(&[]), expected.loss);
            for (term, sum, count) in &part.terms {
                compare(
                    term,
                    first,
                    sum.double_value(&[]) / count.max(1.0),
                    match *term {
                        "l2" => expected.l2_loss,
                        "ce" => expected.ce_loss,
                        other => panic!("unknown part {other}"),
                    },
                );
            }
        }
        let read = report.read().unwrap();
        check_sum(&read, &recorded.metrics[first..first + parts]);
        check_bins(&read, first);
        if first == 0 {
            // They are kept until the next step begins.
            let params = trainer.net().params();
            assert_eq!(clipped.len(), params.len());
            for (name, p) in params.iter() {
                assert_close_relative(&format!("gradient of {name}"), &p.tensor.grad(), clipped[name], TOLERANCE);
            }
        }
    }

    let (finals, averages) = (reference.under("param_final."), reference.under("ema_final."));
    assert_eq!((finals.len(), averages.len()), (trainer.net().params().len(), trainer.net().params().len()));
    let mut worst = 0f64;
    for (name, p) in trainer.net().params().iter() {
        assert_close(name, &p.tensor, finals[name], TOLERANCE);
        worst = worst.max(elf_tests::max_difference(&p.tensor, finals[name]));
    }
    for (name, average) in trainer.ema().averages() {
        assert_close(&format!("average of {name}"), average, averages[name], TOLERANCE);
    }
    println!("{name}: parameters differ by at most {worst:.1e}");
}

/// The bins of time share out each part's positions and loss.
fn check_bins(read: &StepMetrics, step: usize) {
    for term in &read.terms {
        let of_part = format!("{}@", term.name);
        let bins = read.by_time.iter().filter(|bin| bin.name.starts_with(&of_part));
        let (sum, count) = bins.fold((0.0, 0.0), |(s, c), bin| (s + bin.mean * bin.count, c + bin.count));
        assert_eq!(count, term.count, "{of_part}");
        compare(&of_part, step, sum, term.mean * term.count);
    }
}

fn compare(what: &str, step: usize, got: f64, want: f64) {
    assert!((got - want).abs() <= TOLERANCE * want.abs(), "step {step}: {what} is {got}, should be {want}");
}

/// The logged figures of a step follow from its micro-batches.
fn check_sum(metrics: &StepMetrics, recorded: &[Metrics]) {
    let mean = recorded.iter().map(|m| m.loss).sum::<f64>() / recorded.len() as f64;
    assert!((metrics.loss - mean).abs() <= TOLERANCE * mean);
    metrics.check().unwrap();
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
