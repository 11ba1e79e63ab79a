//! The loop: the order of events, and what observers receive.

mod small;

use std::sync::atomic::{AtomicBool, Ordering};

use elf_core::{Counting, Network, Replay};
use elf_flow::{ElfObjective, Objective};
use elf_train::optim::OptimizerConfig;
use elf_train::{
    Checkpoint, CheckpointFolder, Comm, Error, KeepPolicy, Metric, Outcome, Run, RunControl, StepMetrics, Trainer,
    TrainingObserver, run, validation_loss,
};
use serde_json::json;
use small::{C, Counted, S, SmallNet, batch, control, equal, trainer};
use tch::{Kind, Tensor};

/// Records all events.
#[derive(Default)]
struct Diary {
    steps: Vec<StepMetrics>,
    evaluated: Vec<u64>,
    saved: Vec<u64>,
    removed: Vec<u64>,
}

impl TrainingObserver for Diary {
    fn stepped(&mut self, metrics: &StepMetrics) {
        self.steps.push(metrics.clone());
    }

    fn evaluated(&mut self, steps_done: u64, metrics: &[Metric]) {
        assert_eq!(metrics[0].name, "is_average");
        assert_eq!(metrics[0].value, 1.0);
        self.evaluated.push(steps_done);
    }

    fn saved(&mut self, checkpoint: &Checkpoint, removed: &[u64]) {
        self.saved.push(checkpoint.state().step);
        self.removed.extend(removed);
    }
}

fn go(
    trainer: &mut Trainer<SmallNet, ElfObjective>,
    source: &mut Counted,
    control: RunControl,
    folder: &CheckpointFolder,
) -> (Result<Outcome, Error>, Diary) {
    let mut diary = Diary::default();
    let average = std::cell::RefCell::new(Vec::new());
    let mut evaluator = |net: &SmallNet, _: &dyn Comm, _: u64| {
        let now = net.params().snapshot();
        let fresh = !equal(&now, &average.borrow());
        *average.borrow_mut() = now;
        Ok(vec![Metric { name: "is_average".into(), value: f64::from(u8::from(fresh)) }])
    };
    let outcome = run(
        trainer,
        Run {
            source,
            control,
            checkpoints: folder,
            plan: json!(null),
            evaluator: Some(&mut evaluator),
            observer: &mut diary,
            stop: &AtomicBool::new(false),
        },
    );
    (outcome, diary)
}

#[test]
fn saving_and_evaluating_happen_when_they_are_due_and_at_the_end() {
    let root = tempfile::tempdir().unwrap();
    let folder = CheckpointFolder::new(root.path());
    let mut trainer = trainer(OptimizerConfig::default());
    let keep = KeepPolicy { last: Some(1), every: Some(6), pinned: None };
    let control = RunControl { total_steps: 10, save_every: 3, evaluate_every: 4, keep, patience: 0 };
    let (outcome, diary) = go(&mut trainer, &mut Counted::from(0), control, &folder);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    assert_eq!(diary.steps.iter().map(|m| m.step).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    assert_eq!(diary.saved, [3, 6, 9, 10]);
    assert_eq!(diary.removed, [3, 9]);
    assert_eq!(diary.evaluated, [4, 8, 10]);
    let first = &diary.steps[0];
    assert_eq!((first.lr, first.rows, first.positions), (0.0, 8, 8 * S as u64), "two micro-batches of four rows");
    assert!(first.grad_norm > 0.0);
    for m in &diary.steps {
        let parts: f64 = m.terms.iter().map(|t| t.mean * t.count).sum();
        let positions: f64 = m.terms.iter().map(|t| t.count).sum();
        // All positions count here, so the mean of the micro-batches' means is the mean over all positions.
        assert!((parts / positions - m.loss).abs() < 1e-5 * m.loss.abs(), "{m:?}");
    }
    // A finished run that is started again has nothing to do, and does not write either.
    let (outcome, diary) = go(&mut trainer, &mut Counted::from(20), control, &folder);
    assert_eq!(outcome.unwrap(), Outcome::Finished);
    assert!(diary.steps.is_empty() && diary.saved.is_empty() && diary.evaluated.is_empty());
}

/// A process that is lost in the evaluation of step 4, where it has saved, and one that is not: the same evaluations, the same end.
#[test]
fn an_evaluation_that_was_lost_is_made_up_for() {
    let judged = |step: u64| (step as f64 - 4.0).abs();
    let control = |patience| RunControl { save_every: 4, evaluate_every: 4, patience, ..control(20) };
    let go = |folder: &CheckpointFolder, lost_at: Option<u64>, patience| {
        let mut trainer = trainer(OptimizerConfig::default());
        if let Some(latest) = folder.latest().unwrap() {
            trainer.restore(&latest).unwrap();
        }
        let mut evaluated = Vec::new();
        let mut evaluator = |_: &SmallNet, _: &dyn Comm, step: u64| {
            if lost_at == Some(step) {
                return Err("lost".into());
            }
            evaluated.push(step);
            Ok(vec![Metric { name: elf_train::JUDGED_BY.to_owned(), value: judged(step) }])
        };
        let outcome = run(
            &mut trainer,
            Run {
                source: &mut Counted::from(2 * trainer_steps(folder)),
                control: control(patience),
                checkpoints: folder,
                plan: json!(null),
                evaluator: Some(&mut evaluator),
                observer: &mut (),
                stop: &AtomicBool::new(false),
            },
        );
        (outcome.ok(), evaluated)
    };
    for patience in [0, 2] {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (one, two) = (CheckpointFolder::new(one.path()), CheckpointFolder::new(two.path()));
        let (outcome, all) = go(&one, None, patience);
        assert_eq!(go(&two, Some(4), patience), (None, vec![]));
        assert_eq!(go(&two, Some(12), patience), (None, vec![4, 8]));
        let (after, rest) = go(&two, None, patience);
        assert_eq!((after, [vec![4, 8], rest].concat()), (outcome, all));
        assert_eq!(one.list().unwrap().len(), two.list().unwrap().len());
        assert_eq!(trainer_steps(&one), trainer_steps(&two));
    }
}

/// Steps of the newest checkpoint.
fn trainer_steps(folder: &CheckpointFolder) -> u64 {
    folder.latest().unwrap().map_or(0, |checkpoint| checkpoint.state().step)
}

/// The newest checkpoints are those that stay, so that an earlier one would lose all that it becomes.
#[test]
fn a_folder_with_later_checkpoints_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let folder = CheckpointFolder::new(root.path());
    let mut first = trainer(OptimizerConfig::default());
    go(&mut first, &mut Counted::from(0), control(6), &folder).0.unwrap();
    let mut second = trainer(OptimizerConfig::default());
    let (outcome, diary) = go(&mut second, &mut Counted::from(0), control(10), &folder);
    let message = outcome.unwrap_err().to_string();
    assert!(message.contains("step 6") && message.contains("another folder"), "{message}");
    assert!(diary.steps.is_empty() && trainer_steps(&folder) == 6);
}

/// Held-out rows that get worse after step 4: the run ends two evaluations later, and its newest checkpoint is that of step 4.
#[test]
fn a_run_stops_when_it_no_longer_gets_better_and_leaves_the_best() {
    let root = tempfile::tempdir().unwrap();
    let folder = CheckpointFolder::new(root.path());
    let mut trainer = trainer(OptimizerConfig::default());
    let keep = KeepPolicy { last: Some(1), ..KeepPolicy::default() };
    let control = RunControl { total_steps: 40, save_every: 3, evaluate_every: 2, keep, patience: 2 };
    let mut evaluated = Vec::new();
    let mut evaluator = |_: &SmallNet, _: &dyn Comm, step: u64| {
        evaluated.push(step);
        Ok(vec![Metric { name: elf_train::JUDGED_BY.to_owned(), value: (step as f64 - 4.0).abs() }])
    };
    let mut run = |trainer: &mut _, from| {
        let run = Run {
            source: &mut Counted::from(from),
            control,
            checkpoints: &folder,
            plan: json!(null),
            evaluator: Some(&mut evaluator),
            observer: &mut (),
            stop: &AtomicBool::new(false),
        };
        elf_train::run(trainer, run).unwrap()
    };
    assert_eq!(run(&mut trainer, 0), Outcome::NoLongerBetter);
    assert_eq!(trainer.steps_done(), 8);
    assert_eq!(folder.list().unwrap().iter().map(|(step, _)| *step).collect::<Vec<_>>(), [4]);

    // Started again, it takes up the best and does not go on.
    trainer.restore(&folder.latest().unwrap().unwrap()).unwrap();
    assert_eq!(run(&mut trainer, 8), Outcome::NoLongerBetter);
    assert_eq!(trainer.steps_done(), 4);
    assert_eq!(evaluated[..4], [2, 4, 6, 8]);
}

#[test]
fn the_end_of_the_data_in_the_middle_of_a_step_is_no_step() {
    let root = tempfile::tempdir().unwrap();
    let folder = CheckpointFolder::new(root.path());
    let mut trainer = trainer(OptimizerConfig::default());
    let mut source = Counted { end: 7, ..Counted::from(0) };
    let (outcome, diary) = go(&mut trainer, &mut source, control(10), &folder);
    assert_eq!(outcome.unwrap(), Outcome::OutOfData);
    assert_eq!((diary.steps.len(), trainer.steps_done()), (3, 3));
    assert_eq!(folder.latest().unwrap().unwrap().state().step, 3);
}

#[test]
fn a_loss_that_is_no_number_names_its_step_and_saves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let folder = CheckpointFolder::new(root.path());
    let mut trainer = trainer(OptimizerConfig::default());
    // Batches 10 and 11 make step 5.
    let mut source = Counted { poisoned: Some(11), ..Counted::from(0) };
    let (outcome, diary) = go(&mut trainer, &mut source, RunControl { save_every: 2, ..control(10) }, &folder);
    let error = outcome.unwrap_err();
    assert!(matches!(error, Error::NonFinite { step: 5, .. }), "{error}");
    assert!(error.to_string().starts_with("step 5: the loss is NaN"), "{error}");
    assert_eq!((diary.steps.len(), diary.saved), (5, vec![2, 4]));
    let latest = folder.latest().unwrap().unwrap();
    latest.verify().unwrap();
    let net = SmallNet::new(0);
    latest.load_params(net.params()).unwrap();
    assert!(net.params().snapshot().iter().all(|(_, t)| t.isfinite().all().int64_value(&[]) == 1));
}

#[test]
fn training_learns() {
    let root = tempfile::tempdir().unwrap();
    let mut trainer = trainer(OptimizerConfig::default());
    let validate = |trainer: &mut Trainer<SmallNet, ElfObjective>| {
        trainer.validate((1000..1010).map(|i| Ok(((i - 1000) * 8, batch(i, 8)))), 3).unwrap()
    };
    let before = validate(&mut trainer);
    let folder = CheckpointFolder::new(root.path());
    go(&mut trainer, &mut Counted::from(0), control(30), &folder).0.unwrap();
    let after = validate(&mut trainer);
    assert!(after.loss < 0.9 * before.loss, "{before:?} {after:?}");
    assert_eq!((after.rows, after.terms.len()), (80, 2));
}

#[test]
fn validation_does_not_depend_on_batching_and_leaves_no_trace() {
    let trainer = trainer(OptimizerConfig::default());
    let rows = batch(1, 12);
    let part = |from: i64, n: i64| elf_flow::LatentBatch {
        latents: rows.latents.narrow(0, from, n),
        ids: rows.ids.narrow(0, from, n),
        loss_mask: rows.loss_mask.narrow(0, from, n),
        condition: None,
        dropped: Vec::new(),
    };
    let whole = validation_loss(trainer.objective(), trainer.net(), [Ok(part(0, 12))], 9).unwrap();
    let pieces =
        validation_loss(trainer.objective(), trainer.net(), [Ok(part(0, 5)), Ok(part(5, 1)), Ok(part(6, 6))], 9)
            .unwrap();
    let other = validation_loss(trainer.objective(), trainer.net(), [Ok(part(0, 12))], 10).unwrap();
    assert!((whole.loss - pieces.loss).abs() < 1e-5 * whole.loss);
    for term in &whole.terms {
        let same = pieces.terms.iter().find(|t| t.name == term.name).unwrap();
        assert!(term.count == same.count && (term.mean - same.mean).abs() < 1e-5 * term.mean);
    }
    assert_ne!(whole.loss, other.loss, "another seed, other draws");
    for (_, p) in trainer.net().params().iter() {
        assert_eq!(p.tensor.grad().abs().max().double_value(&[]), 0.0);
    }
}

/// The draws of rows whose coins are known.
fn draws(decode: &[f32], self_cond: &[f32]) -> Replay {
    let b = decode.len() as i64;
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, tch::Device::Cpu));
    let mut replay = Replay::new();
    replay.push("decoder_coin", &Tensor::from_slice(decode)).push("self_cond_u", &Tensor::from_slice(self_cond));
    for (name, shape) in [
        ("t_normal", vec![b]),
        ("cfg_scale_u", vec![b]),
        ("noise", vec![b, S, C]),
        ("decoder_lambda_normal", vec![b, S]),
        ("decoder_noise_normal", vec![b, S, C]),
    ] {
        replay.push(name, &zeros(&shape));
    }
    replay
}

#[test]
fn only_the_passes_that_are_needed_are_made() {
    let objective = ElfObjective { decoder_prob: 0.5, ..ElfObjective::default() };
    let net = Counting::new(SmallNet::new(1));
    net.params().set_requires_grad(true);
    let mut five = batch(0, 5);
    // Of the two decode rows, 1 and 4, the loss counts two and three positions.
    five.loss_mask =
        Tensor::from_slice(&[1f32, 1., 1., 1., 0., 1., 1., 0., 1., 1., 1., 1., 1., 0., 0., 0., 1., 1., 1., 0.])
            .view([5, S]);
    // Below one half: decode, self-condition. A decode row's other coin does not matter.
    let mut noise = draws(&[0.9, 0.1, 0.9, 0.9, 0.1], &[0.1, 0.1, 0.9, 0.1, 0.9]);
    objective.loss(&net, &five, &mut noise).unwrap().mean().backward();
    let count = net.count();
    // The released code: five passes over all five rows, and the logits of all their 20 positions.
    assert_eq!(count.passes, 2);
    assert_eq!(
        count.rows,
        5 + 2,
        "a pass without gradients for the self-conditioned denoise rows 0 and 3, one for all"
    );
    assert_eq!(count.rows_with_grad, 5);
    assert_eq!(count.logit_positions, 2 + 3, "loss positions of decode rows");

    net.reset();
    objective.loss(&net, &five, &mut draws(&[0.9; 5], &[0.9; 5])).unwrap();
    assert_eq!((net.count().passes, net.count().rows, net.count().logit_positions), (1, 5, 0));
}

#[test]
fn a_stop_before_the_first_step_changes_nothing() {
    let root = tempfile::tempdir().unwrap();
    let folder = CheckpointFolder::new(root.path());
    let mut trainer = trainer(OptimizerConfig::default());
    let stop = AtomicBool::new(false);
    stop.store(true, Ordering::Relaxed);
    let mut source = Counted::from(0);
    let run_now = Run {
        source: &mut source,
        control: control(3),
        checkpoints: &folder,
        plan: json!(null),
        evaluator: None,
        observer: &mut (),
        stop: &stop,
    };
    assert_eq!(run(&mut trainer, run_now).unwrap(), Outcome::Stopped);
    assert_eq!((source.next, trainer.steps_done()), (0, 0));
    assert!(folder.latest().unwrap().is_none());
}
