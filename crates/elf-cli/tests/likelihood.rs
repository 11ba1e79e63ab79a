//! How likely given texts are under a model.

mod tiny_run;

use std::fs;

use serde_json::Value;
use tempfile::TempDir;
use tiny_run::{Materials, elf, run, within};

fn in_repository(path: &str) -> String {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../").to_owned() + path
}

/// The bits of each text, as the command writes them.
fn bits(folder: &TempDir, words: &[&str]) -> Vec<f64> {
    let output = within(folder, "likelihoods.json");
    run(elf(&[&["likelihood"], words, &["-o", &output]].concat())).well();
    let found: Value = serde_json::from_str(&fs::read_to_string(&output).unwrap()).unwrap();
    let each = found["each"].as_array().unwrap();
    let bits: Vec<f64> = each.iter().map(|text| text["bits"].as_f64().unwrap()).collect();
    let tokens: f64 = each.iter().map(|text| text["tokens"].as_f64().unwrap()).sum();
    assert!((found["bits_per_token"].as_f64().unwrap() - bits.iter().sum::<f64>() / tokens).abs() < 1e-9);
    bits
}

/// Sentences of the language that a model has learned are likelier than the same words in another order.
#[test]
fn order_counts() {
    let folder = TempDir::new().unwrap();
    let model = in_repository("models/definitions");
    let pairs = [
        ("a large building with many rooms", "building large a rooms many with"),
        ("the state of being very happy", "happy the being of very state"),
        ("a person who works in a bank", "works who a bank in a person"),
        ("of or relating to the sun", "to or the relating sun of"),
    ];
    let texts: Vec<&str> = pairs.iter().flat_map(|&(sound, shuffled)| [sound, shuffled]).collect();
    let found = bits(&folder, &[&[model.as_str()], &texts[..], &["--draws", "3", "--steps", "8"]].concat());
    for (pair, bits) in pairs.iter().zip(found.chunks(2)) {
        assert!(0.0 < bits[0] && bits[0] < bits[1], "{pair:?}: {bits:?}");
    }
}

/// A text's number depends neither on the texts beside it nor on its batch, and with more steps it hardly moves.
#[test]
fn texts_stand_alone() {
    let folder = TempDir::new().unwrap();
    for materials in [Materials::unconditional(), Materials::translation()] {
        let (model, data) = (materials.path("run"), materials.path("shards"));
        let asked = |limit: &str, steps: &str, rows: &str| {
            let limits = ["--limit", limit, "--steps", steps, "--batch-size", rows];
            bits(&folder, &[&[model.as_str(), "--data", &data][..], &limits].concat())
        };
        let (all, some) = (asked("6", "8", "4"), asked("3", "8", "1"));
        assert_eq!((all.len(), some.len()), (6, 3));
        for (one, other) in some.iter().zip(&all).chain(asked("6", "64", "4").iter().zip(&all)) {
            assert!((one - other).abs() < 0.02 * other.abs(), "{some:?} {all:?}");
        }
    }
}

#[test]
fn what_has_no_likelihood_is_told() {
    let materials = Materials::unconditional();
    let (model, data) = (materials.path("run"), materials.path("shards"));
    run(elf(&["likelihood", &model])).badly(&["no text", "--data"]);
    run(elf(&["likelihood", &model, "A dog", "--data", &data])).badly(&["cannot be used with"]);
    for time in ["0", "1", "NaN"] {
        run(elf(&["likelihood", &model, "A dog", "--read-at", time])).badly(&["--read-at"]);
    }
    let translation = Materials::translation();
    run(elf(&["likelihood", &translation.path("run"), "A dog"])).badly(&["conditions", "--data"]);
    run(elf(&["likelihood", &translation.path("run"), "--data", &data])).badly(&["no conditions"]);
    // Rows that are filled up with tokens that nobody has learned.
    let folder = TempDir::new().unwrap();
    let filled = within(&folder, "filled");
    materials.train(&filled, &["pad_token=pad", "max_steps=1"]).well();
    run(elf(&["likelihood", &filled, "A dog"])).badly(&["text 1", "pad_token"]);
    // A text that is longer than any that the model writes is cut.
    let long = ["dog"; 30].join(" ");
    assert!(run(elf(&["likelihood", &model, &long, "--steps", "1"])).well().err.contains("cut to 12 tokens"));
}
