//! A run that is stopped, or dies, and is resumed ends where an uninterrupted one does, bit for bit.

mod small;

use std::sync::atomic::{AtomicBool, Ordering};

use elf_flow::ElfObjective;
use elf_train::optim::{AdamWConfig, MuonConfig, OptimizerConfig};
use elf_train::{CheckpointFolder, Comm, Outcome, Run, StepMetrics, Trainer, TrainingObserver, run};
use serde_json::json;
use small::{Counted, SmallNet, control, equal, trainer};

const STEPS: u64 = 17;

/// Sets the stop flag during a given step.
struct StopAfter<'a> {
    step: Option<u64>,
    stop: &'a AtomicBool,
    losses: Vec<(u64, f64)>,
}

impl TrainingObserver for StopAfter<'_> {
    fn stepped(&mut self, metrics: &StepMetrics) {
        self.losses.push((metrics.step, metrics.loss));
        if self.step == Some(metrics.step) {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

/// Trains from the latest checkpoint (or from the start) until the end, or the step in which it is stopped.
fn session(
    optimizer: OptimizerConfig,
    folder: &CheckpointFolder,
    save_every: u64,
    stop_in: Option<u64>,
) -> (Trainer<SmallNet, ElfObjective>, Outcome, Vec<(u64, f64)>) {
    let mut trainer = trainer(optimizer);
    let mut source = Counted::from(0);
    if let Some(checkpoint) = folder.latest().unwrap() {
        trainer.restore(&checkpoint).unwrap();
        source.next = checkpoint.state().cursor["next"].as_u64().unwrap();
    }
    let stop = AtomicBool::new(false);
    let mut observer = StopAfter { step: stop_in, stop: &stop, losses: Vec::new() };
    // Evaluation draws numbers and exchanges parameters: neither may leave a trace.
    let mut evaluator = |_: &SmallNet, _: &dyn Comm, _: u64| Ok(Vec::new());
    let control = elf_train::RunControl { save_every, evaluate_every: 2, ..control(STEPS) };
    let outcome = run(
        &mut trainer,
        Run {
            source: &mut source,
            control,
            checkpoints: folder,
            plan: json!({}),
            evaluator: Some(&mut evaluator),
            observer: &mut observer,
            stop: &stop,
        },
    )
    .unwrap();
    let losses = std::mem::take(&mut observer.losses);
    (trainer, outcome, losses)
}

fn optimizers() -> [OptimizerConfig; 2] {
    let adamw = AdamWConfig { weight_decay: 0.1, ..AdamWConfig::default() };
    [OptimizerConfig::Muon(MuonConfig::default()), OptimizerConfig::Adamw(adamw)]
}

fn averages(trainer: &Trainer<SmallNet, ElfObjective>) -> Vec<(String, tch::Tensor)> {
    trainer.ema().averages().map(|(n, t)| (n.to_owned(), t.copy())).collect()
}

#[test]
fn a_stopped_run_continues_bit_for_bit() {
    use elf_core::Network;
    for optimizer in optimizers() {
        let folder = tempfile::tempdir().unwrap();
        let (straight, outcome, straight_losses) = session(optimizer, &CheckpointFolder::new(folder.path()), 0, None);
        assert_eq!(outcome, Outcome::Finished);

        let folder = tempfile::tempdir().unwrap();
        let checkpoints = CheckpointFolder::new(folder.path());
        let mut losses = Vec::new();
        for (stop_in, expected) in [
            (Some(0), Outcome::Stopped),
            (Some(5), Outcome::Stopped),
            (Some(6), Outcome::Stopped),
            (None, Outcome::Finished),
        ] {
            let (pieces, outcome, seen) = session(optimizer, &checkpoints, 4, stop_in);
            assert_eq!(outcome, expected);
            losses.extend(seen);
            if outcome == Outcome::Finished {
                assert!(equal(&straight.net().params().snapshot(), &pieces.net().params().snapshot()));
                assert!(equal(&averages(&straight), &averages(&pieces)));
                assert_eq!(pieces.steps_done(), STEPS);
            } else {
                assert_eq!(
                    Some(pieces.steps_done()),
                    stop_in.map(|s| s + 1),
                    "the step in hand is finished, no other begun"
                );
            }
        }
        assert_eq!(losses, straight_losses, "no step is lost, none is done twice");
        assert!(straight_losses.iter().all(|(_, l)| l.is_finite()));
    }
}

#[test]
fn a_run_that_dies_continues_from_its_last_checkpoint_bit_for_bit() {
    use elf_core::Network;
    for optimizer in optimizers() {
        let folder = tempfile::tempdir().unwrap();
        let (straight, ..) = session(optimizer, &CheckpointFolder::new(folder.path()), 0, None);

        for dies_at in [3, 7, 10] {
            let folder = tempfile::tempdir().unwrap();
            let checkpoints = CheckpointFolder::new(folder.path());
            // The source fails in the middle of a step, as a lost disk would; nothing is saved on the way out.
            let mut first = trainer(optimizer);
            let mut source = Counted::from(0);
            struct Dies(Counted, u64);
            impl elf_train::BatchSource for Dies {
                fn next_batch(
                    &mut self,
                ) -> Result<Option<elf_flow::LatentBatch>, Box<dyn std::error::Error + Send + Sync>> {
                    if self.0.next == self.1 { Err("the disk is gone".into()) } else { self.0.next_batch() }
                }
                fn cursor(&self) -> serde_json::Value {
                    self.0.cursor()
                }
            }
            source.next = 0;
            let message = run(
                &mut first,
                Run {
                    source: &mut Dies(source, 2 * dies_at + 1),
                    control: elf_train::RunControl { save_every: 3, ..control(STEPS) },
                    checkpoints: &checkpoints,
                    plan: json!(null),
                    evaluator: None,
                    observer: &mut (),
                    stop: &AtomicBool::new(false),
                },
            )
            .unwrap_err()
            .to_string();
            assert!(message.contains("the disk is gone"), "{message}");
            assert_eq!(first.steps_done(), dies_at);
            assert_eq!(checkpoints.latest().unwrap().unwrap().state().step, dies_at / 3 * 3);
            drop(first);
            let (pieces, ..) = session(optimizer, &checkpoints, 0, None);
            assert!(equal(&straight.net().params().snapshot(), &pieces.net().params().snapshot()), "died at {dies_at}");
            assert!(equal(&averages(&straight), &averages(&pieces)));
        }
    }
}

#[test]
fn a_restored_optimizer_must_be_the_one_that_was_saved() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = CheckpointFolder::new(folder.path());
    let [muon, adamw] = optimizers();
    session(muon, &checkpoints, 0, Some(1));
    let message = trainer(adamw).restore(&checkpoints.latest().unwrap().unwrap()).unwrap_err().to_string();
    assert!(message.contains("momentum/inner.weight") && message.contains("optimizer.safetensors"), "{message}");
}
