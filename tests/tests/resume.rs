//! Training of the real network: it resumes bit for bit, and makes only the passes that it needs.

use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use elf_core::{Counting, Network, Noise, Replay, Seeded};
use elf_flow::{ElfObjective, LatentBatch, Objective};
use elf_model::Elf;
use elf_tests::small::{batch, network};
use elf_train::optim::{AdamWConfig, MuonConfig, OptimizerConfig};
use elf_train::{
    BatchSource, CheckpointFolder, KeepPolicy, Outcome, Run, RunControl, Schedule, Solo, StepMetrics, Trainer,
    TrainerConfig, TrainingObserver, run,
};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

const ROWS: i64 = 5;
const LENGTH: i64 = 6;
const STEPS: u64 = 6;

struct Batches {
    net: Elf,
    next: u64,
}

impl BatchSource for Batches {
    fn next_batch(&mut self) -> Result<Option<LatentBatch>, Box<dyn std::error::Error + Send + Sync>> {
        self.next += 1;
        Ok(Some(batch(&self.net, self.next - 1, ROWS, LENGTH)))
    }

    fn cursor(&self) -> Value {
        json!(self.next)
    }
}

struct StopIn<'a>(Option<u64>, &'a AtomicBool);

impl TrainingObserver for StopIn<'_> {
    fn stepped(&mut self, metrics: &StepMetrics) {
        self.1.fetch_or(self.0 == Some(metrics.step), Ordering::Relaxed);
    }
}

/// Continues a run, or begins it, and returns all parameters and averages at its end.
fn session(
    optimizer: OptimizerConfig,
    folder: &CheckpointFolder,
    stop_in: Option<u64>,
) -> (Outcome, Vec<(String, Tensor)>) {
    let config = TrainerConfig {
        optimizer,
        schedule: Schedule::constant(0.01, 2),
        clip_norm: Some(1.0),
        ema_decay: 0.9,
        accumulation: NonZeroU32::new(2).unwrap(),
        seed: 7,
    };
    let objective = ElfObjective { decoder_prob: 0.4, ..ElfObjective::default() };
    let mut trainer = Trainer::new(network(), objective, config, Rc::new(Solo)).unwrap();
    let mut source = Batches { net: network(), next: 0 };
    if let Some(checkpoint) = folder.latest().unwrap() {
        trainer.restore(&checkpoint).unwrap();
        source.next = checkpoint.state().cursor.as_u64().unwrap();
    }
    let stop = AtomicBool::new(false);
    let control =
        RunControl { total_steps: STEPS, save_every: 0, evaluate_every: 0, keep: KeepPolicy::default(), patience: 0 };
    let (plan, observer) = (json!({}), &mut StopIn(stop_in, &stop));
    let run_now =
        Run { source: &mut source, control, checkpoints: folder, plan, evaluator: None, observer, stop: &stop };
    let outcome = run(&mut trainer, run_now).unwrap();
    let mut state = trainer.net().params().snapshot();
    state.extend(trainer.ema().averages().map(|(name, t)| (format!("average of {name}"), t.copy())));
    (outcome, state)
}

#[test]
fn a_stopped_run_of_the_real_network_continues_bit_for_bit() {
    for optimizer in [OptimizerConfig::Muon(MuonConfig::default()), OptimizerConfig::Adamw(AdamWConfig::default())] {
        let straight = tempfile::tempdir().unwrap();
        let (outcome, wanted) = session(optimizer, &CheckpointFolder::new(straight.path()), None);
        assert_eq!(outcome, Outcome::Finished);

        let pieces = tempfile::tempdir().unwrap();
        let pieces = CheckpointFolder::new(pieces.path());
        assert_eq!(session(optimizer, &pieces, Some(0)).0, Outcome::Stopped);
        assert_eq!(session(optimizer, &pieces, Some(3)).0, Outcome::Stopped);
        let (outcome, got) = session(optimizer, &pieces, None);
        assert_eq!(outcome, Outcome::Finished);
        for ((name, a), (_, b)) in wanted.iter().zip(&got) {
            assert!(a.equal(b), "{name} differs");
        }
        let start = network();
        let moved = |(name, t): &(String, Tensor)| start.params().get(name).is_some_and(|p| !p.tensor.equal(t));
        assert!(got.iter().filter(|n| moved(n)).count() > start.params().len() / 2, "training must move something");
    }
}

#[test]
fn the_real_network_makes_only_the_passes_that_are_needed() {
    let net = Counting::new(network());
    net.params().set_requires_grad(true);
    let batch = batch(&net, 0, ROWS, LENGTH);
    let c = net.shape().latent_dim;
    // Rows 0 and 2 denoise with self-conditioning, row 4 without, rows 1 and 3 decode.
    let mut noise = Replay::new();
    noise.push("decoder_coin", &Tensor::from_slice(&[0.9f32, 0.1, 0.9, 0.1, 0.9]));
    noise.push("self_cond_u", &Tensor::from_slice(&[0.1f32, 0.1, 0.1, 0.9, 0.9]));
    let mut others = Seeded::new((0..ROWS as u64).collect(), Device::Cpu);
    noise.push("cfg_scale_u", &others.uniform("w", &[ROWS]).unwrap());
    for (name, shape) in [
        ("t_normal", vec![ROWS]),
        ("noise", vec![ROWS, LENGTH, c]),
        ("decoder_lambda_normal", vec![ROWS, LENGTH]),
        ("decoder_noise_normal", vec![ROWS, LENGTH, c]),
    ] {
        noise.push(name, &others.normal(name, &shape).unwrap());
    }
    let objective = ElfObjective { decoder_prob: 0.5, self_cond_prob: 0.5, ..ElfObjective::default() };
    objective.loss(&net, &batch, &mut noise).unwrap().mean().backward();
    let count = net.count();
    let per_row = Vec::<f32>::try_from(batch.loss_mask.sum_dim_intlist(1i64, false, Kind::Float)).unwrap();
    assert_eq!((count.passes, count.rows, count.rows_with_grad), (2, ROWS as u64 + 2, ROWS as u64));
    assert_eq!(count.logit_positions, (per_row[1] + per_row[3]) as u64);
    assert!(count.logit_positions < (ROWS * LENGTH) as u64);
}
