//! The family of encoders, by itself and through a language model.

use std::fs;
use std::path::{Path, PathBuf};

use elf_core::Precision;
use elf_encoder::{EncoderMask, EncoderSource, T5Encoder, TextEncoder};
use elf_lm::{Host, Model, ModelSource, Silent};
use encoder_example::neighbours::Neighbours;
use encoder_example::{make, with_neighbours};
use tch::{Device, Kind, Tensor};

const INPUTS: [&str; 2] = ["Ein Programm zum Zeichnen", "Bibliothek zum Lesen von Bildern"];

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models")
}

/// The token table of `models/mini-encoder`, in its own family.
fn table() -> T5Encoder {
    T5Encoder::load(&models().join("mini-encoder"), Device::Cpu, Precision::F32).unwrap().token_table().unwrap()
}

/// A copy of `models/mini-de-en` whose encoder lies beside it, where its configuration says.
fn beside_encoder(write: impl FnOnce(&Path)) -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let (model, encoder) = (root.path().join("mini-de-en"), root.path().join("mini-encoder"));
    fs::create_dir(&model).unwrap();
    for file in fs::read_dir(models().join("mini-de-en")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), model.join(file.file_name())).unwrap();
    }
    fs::create_dir(&encoder).unwrap();
    write(&encoder);
    (root, model)
}

fn open(model: &Path) -> elf_lm::Result<Model> {
    let mut silent = Silent;
    ModelSource::new(model).open_for(&with_neighbours(Host::new(&mut silent)))
}

fn translate(model: &Model) -> Vec<String> {
    model.generate(&INPUTS, &model.sampling().unwrap().steps(2)).unwrap()
}

#[test]
fn a_model_generates_from_latents_of_a_family_from_elsewhere() {
    let table = table();
    let (_root, alone) = beside_encoder(|folder| make(folder, &table, 0.0).unwrap());
    let (_other_root, in_its_own_family) = beside_encoder(|folder| {
        make(folder, &table, 0.0).unwrap();
        table.save(folder).unwrap();
    });
    let texts = translate(&open(&alone).unwrap());
    assert!(texts.iter().all(|text| !text.is_empty()), "{texts:?}");
    assert_eq!(texts, translate(&open(&in_its_own_family).unwrap()));
    // With some context the latents are others.
    let (_third_root, mixed) = beside_encoder(|folder| make(folder, &table, 0.5).unwrap());
    assert_ne!(texts, translate(&open(&mixed).unwrap()));
    // Without the family in the list the folder means nothing.
    let refused = Model::load(&alone).unwrap_err().report();
    assert!(
        refused.contains("its model_type is `neighbours`; encoders can be of t5, mt5, bert, distilbert"),
        "{refused}"
    );
}

#[test]
fn a_condition_does_not_see_its_target() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path(), &table(), 0.5).unwrap();
    let encoder = Neighbours::load(&EncoderSource::folder(folder.path()), Device::Cpu).unwrap();
    let ids = Tensor::arange(8, (Kind::Int64, Device::Cpu)).view([2, 4]);
    let alone = encoder.encode(&ids.view([8, 1]), EncoderMask::None).unwrap().view([2, 4, -1]);
    let all = encoder.encode(&ids, EncoderMask::None).unwrap();
    let expected = alone.narrow(1, 1, 3) + alone.narrow(1, 0, 3) * 0.5;
    assert!(all.narrow(1, 1, 3).allclose(&expected, 1e-6, 1e-6, false));
    // Of the first row position 2 does not see position 1.
    let pairs = Tensor::ones([2, 4, 4], (Kind::Bool, Device::Cpu));
    let _ = pairs.get(0).get(2).get(1).fill_(0);
    let masked = encoder.encode(&ids, EncoderMask::Pairs(&pairs)).unwrap();
    assert!(masked.get(0).get(2).equal(&alone.get(0).get(2)));
    assert!(masked.get(0).get(3).equal(&all.get(0).get(3)) && masked.get(1).equal(&all.get(1)));
    let columns = Tensor::ones([2, 4], (Kind::Bool, Device::Cpu));
    assert!(encoder.encode(&ids, EncoderMask::Columns(&columns)).unwrap().equal(&all));
}

#[test]
fn what_it_cannot_give_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    make(folder.path(), &table(), 0.5).unwrap();
    let source = EncoderSource { layer: Some(1), ..EncoderSource::folder(folder.path()) };
    assert!(Neighbours::load(&source, Device::Cpu).unwrap_err().to_string().contains("no layers"));
    let encoder = Neighbours::load(&EncoderSource::folder(folder.path()), Device::Cpu).unwrap();
    let foreign = Tensor::from_slice(&[7i64, 8192]).view([1, 2]);
    assert!(encoder.encode(&foreign, EncoderMask::None).unwrap_err().to_string().contains("token id 8192"));
}
