//! Checkpoints of our own runs in the released code's form: the tree of the official checkpoint, and training that
//! resumes from it bit for bit as without the conversion.

use std::path::Path;
use std::rc::Rc;

use elf_core::pytorch::{self, PyTorchFile};
use elf_core::{Network, Noise, Precision, PrecisionPolicy};
use elf_encoder::T5Encoder;
use elf_flow::ElfObjective;
use elf_model::Elf;
use elf_tests::recorded::Recorded;
use elf_tests::small::network;
use elf_tests::{Reference, leaves, parity_json, parity_path};
use elf_train::{CheckpointFolder, ReleasedCheckpoint, ReleasedForm, Solo, Trainer, released_form_of_parameters};
use serde_json::json;
use tch::{Device, Tensor};

/// The run whose last state the official checkpoint holds.
const OFFICIAL: &str = "muon_uncond";
/// Finished epochs of our checkpoints in these tests; the official checkpoint has its own number.
const EPOCH: u64 = 3;

fn recorded(name: &str) -> Recorded {
    parity_json::<Vec<Recorded>>("train.json").into_iter().find(|r| r.name == name).unwrap()
}

fn trainer(recorded: &Recorded) -> Trainer<Elf, ElfObjective> {
    let net = network();
    Trainer::new(net, recorded.objective(), recorded.config(), Rc::new(Solo)).unwrap()
}

/// Optimiser steps of the recording's first batches.
fn advance(trainer: &mut Trainer<Elf, ElfObjective>, recorded: &Recorded, steps: usize) {
    let reference = Reference::open(&format!("train_{}.safetensors", recorded.name));
    let encoder = T5Encoder::load(&parity_path(&recorded.encoder), Device::Cpu, Precision::F32).unwrap();
    let parts = recorded.grad_accum_steps.get() as usize;
    for step in 0..steps {
        let micro = |part: usize| {
            let at = (step * parts + part) % recorded.num_steps;
            let noise: Box<dyn Noise> = Box::new(recorded.draws(&reference, at));
            Ok((recorded.batch(&reference, at, &encoder), noise))
        };
        trainer.step_with_noise((0..parts).map(micro)).unwrap().unwrap();
    }
}

/// Saves a trainer as a checkpoint of ours, and that checkpoint in the released form.
fn write_released(trainer: &Trainer<Elf, ElfObjective>, folder: &Path, epoch: u64) -> std::path::PathBuf {
    let checkpoint = trainer.save(&CheckpointFolder::new(folder.join("ours")), json!({}), json!({})).unwrap().unwrap();
    let order = trainer.net().config().released_order().unwrap();
    let form = ReleasedForm { order: &order, config: trainer.config(), epoch };
    let path = folder.join(format!("checkpoint_{}", trainer.steps_done()));
    pytorch::write(&path, &form.of_checkpoint(&checkpoint).unwrap()).unwrap();
    path
}

#[test]
fn parity_our_own_run_becomes_the_official_tree() {
    let recorded = recorded(OFFICIAL);
    let folder = tempfile::tempdir().unwrap();
    let official = ReleasedCheckpoint::open(&parity_path("official_checkpoint")).unwrap();
    let mut trainer = trainer(&recorded);
    advance(&mut trainer, &recorded, recorded.num_steps / recorded.grad_accum_steps.get() as usize);
    let path = write_released(&trainer, folder.path(), official.epoch().unwrap());
    let ours = PyTorchFile::open(&path).unwrap();
    let theirs = PyTorchFile::open(official.path()).unwrap();
    // Keys in their order, kinds, shapes, and every number outside of tensors: steps, learning rates, settings.
    assert_eq!(leaves(ours.value()), leaves(theirs.value()));
}

fn equal(what: &str, a: &[(String, Tensor)], b: &[(String, Tensor)]) {
    assert_eq!(a.len(), b.len(), "{what}");
    for ((name, a), (other, b)) in a.iter().zip(b) {
        assert!(name == other && a.equal(b), "{what}: {name}");
    }
}

fn named<'a>(tensors: impl Iterator<Item = (&'a str, &'a Tensor)>) -> Vec<(String, Tensor)> {
    tensors.map(|(name, t)| (name.to_owned(), t.copy())).collect()
}

/// Trains, converts and restores, and continues both the original and the restored run.
fn goes_on_bit_for_bit(name: &str) {
    let recorded = recorded(name);
    let folder = tempfile::tempdir().unwrap();
    let mut in_place = trainer(&recorded);
    advance(&mut in_place, &recorded, 2);
    let path = write_released(&in_place, folder.path(), EPOCH);

    let checkpoint = ReleasedCheckpoint::open(&path).unwrap();
    assert_eq!(checkpoint.epoch().unwrap(), EPOCH);
    assert_eq!(checkpoint.optimizer_steps().unwrap(), 2);
    // The released code counts batches.
    assert_eq!(checkpoint.step().unwrap(), 2 * u64::from(recorded.grad_accum_steps.get()));
    let mut resumed = trainer(&recorded);
    resumed.restore_released(&checkpoint).unwrap();
    assert_eq!(resumed.steps_done(), in_place.steps_done());
    for more in [0, 2] {
        advance(&mut in_place, &recorded, more);
        advance(&mut resumed, &recorded, more);
        let params = [&in_place, &resumed].map(|t| t.net().params().snapshot());
        equal(&format!("parameters after {more} more steps"), &params[0], &params[1]);
        let averages = [&in_place, &resumed].map(|t| named(t.ema().averages()));
        equal(&format!("averages after {more} more steps"), &averages[0], &averages[1]);
    }
}

#[test]
fn parity_training_goes_on_from_our_muon_checkpoint() {
    goes_on_bit_for_bit(OFFICIAL);
}

#[test]
fn parity_training_goes_on_from_our_adamw_checkpoint() {
    goes_on_bit_for_bit("adamw_uncond");
}

#[test]
fn parity_training_goes_on_where_steps_have_several_batches() {
    let name = "muon_accum";
    assert!(recorded(name).grad_accum_steps.get() > 1);
    goes_on_bit_for_bit(name);
}

#[test]
fn parity_parameters_alone_become_a_checkpoint_before_its_first_step() {
    let folder = tempfile::tempdir().unwrap();
    let net = network();
    let order = net.config().released_order().unwrap();
    let path = folder.path().join("checkpoint_0");
    let tree = released_form_of_parameters(&order, net.params().snapshot()).unwrap();
    pytorch::write(&path, &tree).unwrap();
    let back = Elf::load(&path, PrecisionPolicy::F32, Device::Cpu).unwrap();
    equal("parameters", &net.params().snapshot(), &back.params().snapshot());
    // It has the released code's keys, and says that there is nothing to continue.
    let official =
        PyTorchFile::open(ReleasedCheckpoint::open(&parity_path("official_checkpoint")).unwrap().path()).unwrap();
    let keys = |file: &PyTorchFile| -> Vec<String> {
        file.value().items().unwrap().iter().map(|(key, _)| key.as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(keys(&PyTorchFile::open(&path).unwrap()), keys(&official));
    let message = ReleasedCheckpoint::open(&path).unwrap().optimizer_state().unwrap_err().to_string();
    assert!(message.contains("nothing to continue"), "{message}");

    let mut fewer = net.params().snapshot();
    let lost = fewer.pop().unwrap().0;
    assert!(released_form_of_parameters(&order, fewer).unwrap_err().to_string().contains(&lost));
}
