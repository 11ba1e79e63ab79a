//! Conditional models that write all tokens at once: with a table of the condition's words, in rows of their own length.

mod tiny_run;

use std::fs;

use serde_json::Value;
use tempfile::TempDir;
use tiny_run::{Materials, checkpoints, elf, json_lines, run, tensors, within};

const TABLE: [&str; 3] = ["context_table=true", "vocab_head_norm=true", "decoder_clean_condition=true"];
const LENGTHS: [&str; 2] = ["pad_token=pad", "group_by_length=true"];
const TEXTS: [&str; 4] = ["--text", "tree", "--text", "dog red the meets king old a"];

/// The tokens of each text that a model writes.
fn sample(folder: &TempDir, model: &str, more: &[&str]) -> Vec<Value> {
    let output = within(folder, "texts.jsonl");
    run(elf(&[&["sample", model, "-o", &output, "--steps", "3"], more].concat())).well();
    json_lines(&output).into_iter().map(|mut line| line["tokens"].take()).collect()
}

#[test]
fn the_words_of_a_condition_come_in_through_a_table() {
    let (materials, folder) = (Materials::translation(), TempDir::new().unwrap());
    let (whole, parts) = (within(&folder, "whole"), within(&folder, "parts"));
    materials.train(&whole, &TABLE).well();
    materials.train(&parts, &[&TABLE[..], &["max_steps=3"]].concat()).well();
    materials.train(&parts, &TABLE).well();
    let last = |run: &str| tensors(checkpoints(run).last().unwrap());
    assert!(last(&whole) == last(&parts), "a run in two parts is another one");

    let guided = [&TEXTS[..], &["--cfg", "2"]].concat();
    let together = sample(&folder, &whole, &guided);
    assert_eq!(together, sample(&folder, &whole, &[&guided[..], &["--batch-size", "1"]].concat()));
    let exported = within(&folder, "exported");
    run(elf(&["export", &whole, &exported, "--dtype", "f32"])).well();
    assert_eq!(together, sample(&folder, &exported, &guided));
    let students = within(&folder, "students");
    run(elf(&["distill", "--teacher", &whole, "--output", &students, "-o", "max_steps=2"])).well();
}

#[test]
fn answers_have_rows_of_their_own_length() {
    let (materials, folder) = (Materials::translation(), TempDir::new().unwrap());
    let (model, filled) = (within(&folder, "run"), within(&folder, "filled"));
    let options = [&TABLE[..], &LENGTHS, &["label_drop_prob=0", "log_freq=6"]].concat();
    materials.train(&model, &options).well();
    materials.train(&filled, &["log_freq=6"]).well();
    let positions = |run: &str| json_lines(&format!("{run}/metrics.jsonl"))[0]["positions"].as_u64().unwrap();
    // Six steps of eight rows of 8 + 8 tokens, in place of 22 positions.
    assert_eq!([&model, &filled].map(|run| positions(run)), [6 * 8 * 16, 6 * 8 * 22]);

    let together = sample(&folder, &model, &TEXTS);
    assert_eq!(together, sample(&folder, &model, &[&TEXTS[..], &["--batch-size", "1"]].concat()));
    assert_eq!(sample(&folder, &model, &[&TEXTS[..], &["--mbr", "6"]].concat()).len(), 2);
    let exported = within(&folder, "exported");
    run(elf(&["export", &model, &exported, "--dtype", "f32"])).well();
    assert!(fs::metadata(format!("{exported}/lengths.json")).is_ok());
    assert_eq!(together, sample(&folder, &exported, &TEXTS));
    for model in [&model, &exported] {
        let short = sample(&folder, model, &[&TEXTS[..], &["--length", "2"]].concat());
        assert!(short.iter().all(|tokens| tokens.as_array().unwrap().len() <= 2), "{short:?}");
        let long = ["sample", model, "--text", "tree", "--length", "13"];
        run(elf(&long)).badly(&["--length 13", "from 1 to 12"]);
    }
    let data = materials.path("shards");
    run(elf(&["probe", &model, "--data", &data, "--limit", "8"])).well();
}
