//! `elf bench`: every stage at its smallest, and what it writes of them. Speeds are not looked at.

mod tiny_run;

use serde_json::Value;
use tempfile::TempDir;
use tiny_run::{elf, run, within};

const SMALL: [&str; 11] =
    ["bench", "--preset", "mini", "--batch", "2", "--seq", "8", "--steps", "1", "--sampling-steps", "2"];

#[test]
fn all_stages_and_those_asked_for() {
    let folder = TempDir::new().unwrap();
    let file = within(&folder, "all.json");
    let ran = run(elf(&[&SMALL[..], &["--profile", "--json", &file]].concat())).well();
    for stage in ["training", "sampling", "decoding", "encoding", "data loading", "a training step of"] {
        assert!(ran.out.contains(stage), "{}", ran.out);
    }
    let all: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    for rate in ["train_positions_per_s", "sample_positions_per_s", "train_utilisation", "sample_utilisation"] {
        assert!(all[rate].as_f64().is_some_and(|rate| rate > 0.0), "{rate}: {all}");
    }
    assert_eq!(all["serving"], serde_json::json!([]), "it takes long and is made when asked for");

    let file = within(&folder, "serve.json");
    let ran = run(elf(&[&SMALL[..], &["--only", "serve", "--json", &file]].concat())).well();
    for words in ["one text at a time", "2 texts at a time", "ELF, 1 step", "ELF, 2 steps", "GPT-2"] {
        assert!(ran.out.contains(words), "{}", ran.out);
    }
    assert!(!ran.out.contains("training"), "{}", ran.out);
    let served: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(served["serving"].as_array().unwrap().len(), 6);
    assert_eq!(served["train_positions_per_s"], Value::Null);
}

#[test]
fn sizes_of_nothing_are_refused() {
    run(elf(&["bench", "--batch", "0"])).badly(&["--batch", "at least 1"]);
    run(elf(&["bench", "--sampling-steps", "0"])).badly(&["--sampling-steps", "at least 1"]);
}
