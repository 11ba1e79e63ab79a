//! A checkpoint of the released PyTorch code: every number in it, training that continues from it, and files of the same form
//! that are written here.

use elf_core::pytorch::{self, PyTorchFile, TensorRef, Value};
use elf_core::weights::{ParamKind, Weights};
use elf_core::{Network, Noise, Precision, PrecisionPolicy};
use elf_encoder::T5Encoder;
use elf_flow::ElfObjective;
use elf_model::{Elf, ElfConfig};
use elf_tests::recorded::Recorded;
use elf_tests::small::network;
use elf_tests::{Reference, assert_close, leaves, max_difference, parity_json, parity_path};
use elf_train::{ReleasedCheckpoint, Solo, Trainer};
use std::rc::Rc;
use tch::{Device, Tensor};

/// Absolute tolerance of parameters after all steps.
const TOLERANCE: f64 = 1e-4;
/// The run whose last state the checkpoint holds.
const RUN: &str = "muon_uncond";

fn recorded() -> Recorded {
    parity_json::<Vec<Recorded>>("train.json").into_iter().find(|r| r.name == RUN).unwrap()
}

fn reference() -> Reference {
    Reference::open(&format!("train_{RUN}.safetensors"))
}

fn folder() -> std::path::PathBuf {
    parity_path("official_checkpoint")
}

#[test]
fn parity_official_checkpoint_holds_the_reference_numbers() {
    let reference = reference();
    for (which, prefix) in [(ParamKind::Trained, "param_final."), (ParamKind::Averaged, "ema_final.")] {
        let weights = Weights::open(&folder(), which).unwrap();
        let expected = reference.under(prefix);
        assert_eq!(weights.names().count(), expected.len());
        for name in weights.names() {
            let got = weights.get(name, Device::Cpu).unwrap();
            assert!(got.equal(expected[name]), "{prefix}{name} differs by {}", max_difference(&got, expected[name]));
        }
    }
    let net = Elf::load(&folder(), PrecisionPolicy::F32, Device::Cpu).unwrap();
    let start = Weights::open(&parity_path("model.safetensors"), ParamKind::Averaged).unwrap();
    assert_eq!(net.config(), &ElfConfig::of_checkpoint(&start).unwrap(), "shapes give the architecture");
}

fn advance(trainer: &mut Trainer<Elf, ElfObjective>, steps: std::ops::Range<usize>) {
    let (recorded, reference) = (recorded(), reference());
    let encoder = T5Encoder::load(&parity_path(&recorded.encoder), Device::Cpu, Precision::F32).unwrap();
    let parts = recorded.grad_accum_steps.get() as usize;
    for first in steps.step_by(parts) {
        let micro = |step: usize| {
            let noise: Box<dyn Noise> = Box::new(recorded.draws(&reference, step));
            Ok((recorded.batch(&reference, step, &encoder), noise))
        };
        trainer.step_with_noise((first..first + parts).map(micro)).unwrap().unwrap();
    }
}

fn trainer(net: Elf) -> Trainer<Elf, ElfObjective> {
    let recorded = recorded();
    Trainer::new(net, recorded.objective(), recorded.config(), Rc::new(Solo)).unwrap()
}

#[test]
fn parity_training_continues_from_the_official_checkpoint() {
    let mut in_place = trainer(network());
    advance(&mut in_place, 0..recorded().num_steps);
    let before = in_place.net().params().snapshot();

    let checkpoint = ReleasedCheckpoint::open(&folder()).unwrap();
    let mut resumed = trainer(network());
    resumed.restore_released(&checkpoint).unwrap();
    assert_eq!(resumed.steps_done(), in_place.steps_done());
    assert_eq!(checkpoint.step().unwrap(), in_place.steps_done());
    assert!(!checkpoint.is_amid_a_step());

    let two = 0..2 * recorded().grad_accum_steps.get() as usize;
    advance(&mut in_place, two.clone());
    advance(&mut resumed, two);
    let (mut worst, mut moved) = (0f64, 0f64);
    for (((name, a), (_, b)), (_, old)) in
        in_place.net().params().iter().zip(resumed.net().params().iter()).zip(&before)
    {
        assert_close(name, &b.tensor, &a.tensor, TOLERANCE);
        worst = worst.max(max_difference(&b.tensor, &a.tensor));
        moved = moved.max(max_difference(&b.tensor, old));
    }
    for ((name, a), (_, b)) in in_place.ema().averages().zip(resumed.ema().averages()) {
        assert_close(&format!("average of {name}"), b, a, TOLERANCE);
    }
    println!("continued: parameters differ by at most {worst:.1e} after moving by {moved:.1e}");
    assert!(moved > 10.0 * TOLERANCE, "the steps must move more than the tolerance to show anything: {moved}");
}

#[test]
fn parity_optimiser_state_is_needed_to_continue() {
    // The same steps from the same parameters with a fresh optimiser give other parameters: the test above can fail.
    let checkpoint = ReleasedCheckpoint::open(&folder()).unwrap();
    let net = || {
        Elf::of_weights(&checkpoint.weights(ParamKind::Trained).unwrap(), PrecisionPolicy::F32, Device::Cpu).unwrap()
    };
    let (mut fresh, mut resumed) = (trainer(net()), trainer(net()));
    resumed.restore_released(&checkpoint).unwrap();
    let one = 0..recorded().grad_accum_steps.get() as usize;
    advance(&mut fresh, one.clone());
    advance(&mut resumed, one);
    let params = fresh.net().params().iter().zip(resumed.net().params().iter());
    let worst = params.map(|((_, a), (_, b))| max_difference(&a.tensor, &b.tensor)).fold(0.0, f64::max);
    assert!(worst > TOLERANCE, "{worst}");
}

#[test]
fn parity_another_models_checkpoint_is_a_table() {
    let checkpoint = ReleasedCheckpoint::open(&folder()).unwrap();
    let config = ElfConfig::of_checkpoint(&checkpoint.weights(ParamKind::Trained).unwrap()).unwrap();
    let other = ElfConfig { bottleneck_dim: config.bottleneck_dim + 1, ..config.clone() };
    let net = Elf::new(other, PrecisionPolicy::F32, 0, Device::Cpu).unwrap();
    let message = trainer(net).restore_released(&checkpoint).unwrap_err().to_string();
    let (c, k) = (config.text_encoder_dim, config.bottleneck_dim);
    let line = format!("text_proj.proj1.weight: the model has [{}, {c}], the file has [{k}, {c}]", k + 1);
    assert!(message.contains(&line), "{message}");
}

fn tensors(file: &PyTorchFile) -> Value<Tensor> {
    file.value().map_tensors(&mut |_: &str, t: &TensorRef| file.tensor(t, Device::Cpu)).unwrap()
}

#[test]
fn parity_a_written_checkpoint_has_the_official_tree_bit_for_bit() {
    let official = ReleasedCheckpoint::open(&folder()).unwrap();
    let official = PyTorchFile::open(official.path()).unwrap();
    let aside = tempfile::tempdir().unwrap();
    let path = aside.path().join("checkpoint_4");
    let tree = tensors(&official);
    pytorch::write(&path, &tree).unwrap();
    let back = PyTorchFile::open(&path).unwrap();
    assert_eq!(leaves(back.value()), leaves(official.value()));
    let again = tensors(&back);
    let mut originals = Vec::new();
    tree.map_tensors(&mut |_: &str, t: &Tensor| {
        let _: () = originals.push(t.shallow_clone());
        Ok::<_, ()>(())
    })
    .unwrap();
    let mut originals = originals.into_iter();
    again
        .map_tensors(&mut |name: &str, t: &Tensor| {
            assert!(t.equal(&originals.next().unwrap()), "{name}");
            Ok::<_, ()>(())
        })
        .unwrap();
}
