//! Models that write block after block: trained, sampled, and refused where they cannot be used.

mod tiny_run;

use serde_json::Value;
use tempfile::TempDir;
use tiny_run::{Materials, Ran, elf, json_lines, run, within};

const BLOCKS: [&str; 3] = ["block_size=3", "causal_latents=true", "max_steps=2"];

/// The tokens of each text that a model writes, and what the program prints.
fn sample(folder: &TempDir, model: &str, more: &[&str]) -> (Vec<Value>, Ran) {
    let output = within(folder, "texts.jsonl");
    let ran = run(elf(&[&["sample", model, "-o", &output, "--steps", "4"], more].concat())).well();
    (json_lines(&output).into_iter().map(|mut line| line["tokens"].take()).collect(), ran)
}

#[test]
fn texts_are_written_in_blocks_and_do_not_depend_on_what_stands_beside_them() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let model = within(&folder, "run");
    materials.train(&model, &BLOCKS).well();
    let (texts, _) = sample(&folder, &model, &["--num", "5"]);
    assert_eq!(texts.len(), 5);
    assert_eq!(texts, sample(&folder, &model, &["--num", "5", "--batch-size", "2"]).0);
    let guided = ["--num", "3", "--guide", &model, "--guide-scale", "2", "--decode-at", "0.4", "--sampler", "ode"];
    assert_eq!(sample(&folder, &model, &guided).0.len(), 3);
    // The text after each of four blocks of a row of 12.
    let (_, ran) = sample(&folder, &model, &["--num", "1", "--trace"]);
    assert!(ran.err.contains("20 passes"), "{}", ran.err);
    assert!(["0.25", "0.50", "0.75", "1.00"].iter().all(|t| ran.out.contains(t)), "{}", ran.out);

    let exported = within(&folder, "exported");
    run(elf(&["export", &model, &exported, "--dtype", "f32", "--encoder", &materials.path("encoder")])).well();
    assert_eq!(texts, sample(&folder, &exported, &["--num", "5"]).0, "an exported model writes as its run does");
    let card = std::fs::read_to_string(format!("{exported}/README.md")).unwrap();
    assert!(card.contains("blocks of 3 tokens"), "{card}");
}

#[test]
fn translations_are_written_in_blocks_behind_their_conditions() {
    let folder = TempDir::new().unwrap();
    let model = within(&folder, "run");
    Materials::translation().train(&model, &BLOCKS).well();
    let texts = ["--text", "tree", "--text", "dog red the meets king old a"];
    for cfg in ["1", "2"] {
        let together = sample(&folder, &model, &[&texts[..], &["--cfg", cfg]].concat()).0;
        assert_eq!(together.len(), 2);
        let alone = sample(&folder, &model, &[&texts[..], &["--cfg", cfg, "--batch-size", "1"]].concat()).0;
        assert_eq!(together, alone, "cfg {cfg}");
    }
}

#[test]
fn what_blocks_cannot_do_is_said_in_one_line() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let (model, other) = (within(&folder, "run"), within(&folder, "other"));
    materials.train(&other, &["block_size=3"]).badly(&["block_size", "causal_latents"]);
    materials.train(&other, &["block_size=0", "causal_latents=true"]).badly(&["block_size", "0 tokens"]);
    for key in ["causal_latents=true", "decoder_clean_condition=true"] {
        materials.train(&other, &["objective=mdlm", key]).badly(&[key.split('=').next().unwrap(), "objective elf"]);
    }
    materials.train(&model, &BLOCKS).well();
    let shards = materials.path("shards");
    run(elf(&["probe", &model, "--data", &shards, "--device", "cpu"])).badly(&["block_size"]);
    let config = materials.path("config.yml");
    let distill = ["distill", &config, "--teacher", &model, "--output", &other];
    run(elf(&distill)).badly(&["block_size", "distilled"]);
    let plain = materials.path("run");
    let guided = ["sample", &model, "--num", "1", "--guide", &plain, "--guide-scale", "2"];
    run(elf(&guided)).badly(&["guide", "block"]);
}
