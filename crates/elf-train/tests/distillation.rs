//! Distillation with the trainer of everything else: the student comes nearer, the teacher stays where it is.

mod small;

use elf_core::Network;
use elf_flow::{DistillObjective, DistillStep, ElfObjective, LogitNormal, TimeLaw};
use elf_train::optim::OptimizerConfig;
use elf_train::{CheckpointFolder, Schedule, Solo, Trainer, TrainerConfig, Validation, fingerprint, validation_loss};
use serde_json::json;
use small::{SmallNet, batch, config};
use std::rc::Rc;

const STEPS: u64 = 120;

fn objective(teacher: &SmallNet) -> DistillObjective<'_> {
    let law = TimeLaw::LogitNormal(LogitNormal::DENOISER);
    let step = DistillStep { step_size: 0.5, substeps: 4, student_times: law, teacher_times: law, own_runs: None };
    DistillObjective::new(ElfObjective::default(), step, teacher).unwrap()
}

fn settings() -> TrainerConfig {
    TrainerConfig { schedule: Schedule::constant(0.01, 3), ..config(OptimizerConfig::default()) }
}

/// Held-out batches under draws of their own.
fn judge(objective: &DistillObjective, net: &SmallNet) -> Validation {
    validation_loss(objective, net, (1000..1016).map(|i| Ok(batch(i, 8))), 7).unwrap()
}

fn l2(validation: &Validation) -> f64 {
    validation.terms.iter().find(|t| t.name == "l2").unwrap().mean
}

fn train(trainer: &mut Trainer<SmallNet, DistillObjective>, until: u64) {
    while trainer.steps_done() < until {
        let first = trainer.steps_done() * 2;
        trainer.step((first..first + 2).map(|i| Ok(batch(i, 8)))).unwrap().unwrap();
    }
}

#[test]
fn a_student_comes_nearer_to_its_teachers_steps() {
    let teacher = SmallNet::new(1);
    let objective = objective(&teacher);
    let before = fingerprint(teacher.params()).unwrap();
    // It begins as the teacher, whose own prediction is not where many of its steps lead.
    let student = SmallNet::new(1);
    let start = judge(&objective, &student);
    let mut trainer = Trainer::new(student, objective, settings(), Rc::new(Solo)).unwrap();
    train(&mut trainer, STEPS);
    let end = trainer.with_averages(|net, _| judge(&objective, net)).unwrap();
    println!("l2 {} became {}", l2(&start), l2(&end));
    assert!(l2(&end) < 0.5 * l2(&start), "{start:?} became {end:?}");
    assert_eq!(fingerprint(teacher.params()).unwrap(), before);
}

#[test]
fn a_resumed_student_is_the_one_that_was_never_stopped() {
    let (teacher, folder) = (SmallNet::new(1), tempfile::tempdir().unwrap());
    let folder = CheckpointFolder::new(folder.path());
    let student = |seed| Trainer::new(SmallNet::new(seed), objective(&teacher), settings(), Rc::new(Solo)).unwrap();
    let mut whole = student(2);
    train(&mut whole, 10);
    let mut first = student(2);
    train(&mut first, 4);
    let checkpoint = first.save(&folder, json!(null), json!(null)).unwrap().unwrap();
    let mut second = student(3);
    second.restore(&checkpoint).unwrap();
    train(&mut second, 10);
    assert_eq!(fingerprint(whole.net().params()).unwrap(), fingerprint(second.net().params()).unwrap());
}
