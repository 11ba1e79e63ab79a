//! Models that write block after block: trained, sampled, and refused where they cannot be used.

mod tiny_run;

use std::fs;

use serde_json::{Value, json};
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
    let drawn = ["--num", "5", "--temperature", "1"];
    let (others, ran) = sample(&folder, &model, &drawn);
    assert!(ran.err.contains("-t1:"), "{}", ran.err);
    assert_ne!(others, texts, "drawn words are others than the likeliest");
    assert_eq!(others, sample(&folder, &model, &[&drawn[..], &["--batch-size", "2"]].concat()).0);
    // The likeliest alone has the smallest share that can be asked for.
    let settings = within(&folder, "sampling.yml");
    fs::write(&settings, "- sampling_method: sde\n  temperature: 1\n  top_p: 0.000001\n").unwrap();
    let nucleus = sample(&folder, &model, &["--num", "5", "--sampling-config", &settings]).0;
    assert_eq!(nucleus, texts);
    // The text after each of four blocks of a row of 12.
    let (_, ran) = sample(&folder, &model, &["--num", "1", "--trace"]);
    assert!(ran.err.contains("20 passes"), "{}", ran.err);
    assert!(["0.25", "0.50", "0.75", "1.00"].iter().all(|t| ran.out.contains(t)), "{}", ran.out);

    let exported = within(&folder, "exported");
    run(elf(&["export", &model, &exported, "--dtype", "f32", "--encoder", &materials.path("encoder")])).well();
    assert_eq!(texts, sample(&folder, &exported, &["--num", "5"]).0, "an exported model writes as its run does");
    let card = fs::read_to_string(format!("{exported}/README.md")).unwrap();
    assert!(card.contains("3 tokens each"), "{card}");
}

#[test]
fn translations_are_written_in_blocks_behind_their_conditions() {
    let (folder, materials) = (TempDir::new().unwrap(), Materials::translation());
    let (plain, with_table) = (within(&folder, "plain"), within(&folder, "with-table"));
    materials.train(&plain, &BLOCKS).well();
    let table = ["context_table=true", "vocab_head_norm=true", "label_drop_prob=0"];
    materials.train(&with_table, &[&BLOCKS[..], &table].concat()).well();
    let texts = ["--text", "tree", "--text", "dog red the meets king old a"];
    for (model, cfg) in [(&plain, "1"), (&plain, "2"), (&with_table, "1"), (&with_table, "2")] {
        let (together, ran) = sample(&folder, model, &[&texts[..], &["--cfg", cfg]].concat());
        assert_eq!(together.len(), 2);
        let unlearned = model == &with_table && cfg != "1";
        assert_eq!(ran.err.contains("label_drop_prob 0"), unlearned, "{}", ran.err);
        let alone = sample(&folder, model, &[&texts[..], &["--cfg", cfg, "--batch-size", "1"]].concat()).0;
        assert_eq!(together, alone, "cfg {cfg}");
    }
}

#[test]
fn rows_of_like_length_are_learned_together() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let (corpus, shards) = (within(&folder, "corpus.jsonl"), within(&folder, "shards"));
    let words = ["A", "dog", "meets", "the", "old", "king", "the", "tree"];
    let line = |row: usize| format!("{}\n", json!({ "text": words[..1 + row % 8].join(" ") }));
    fs::write(&corpus, (0..96).map(line).collect::<String>()).unwrap();
    let prepare = ["data", "prepare", "--input", &corpus, "--target-column", "text", "--eos-target", "--tokenizer"];
    run(elf(&[&prepare[..], &[&materials.path("tokenizer"), "--output", &shards]].concat())).well();
    let data = format!("data_path={shards}");
    // Positions of one pass, 12 batches.
    let positions = |name: &str, more: &[&str]| -> u64 {
        let model = within(&folder, name);
        let settings = [&data, "block_size=3", "causal_latents=true", "max_steps=12", "log_freq=12"];
        materials.train(&model, &[&settings[..], more].concat()).well();
        let lines = json_lines(&format!("{model}/metrics.jsonl"));
        let line = lines.iter().find(|line| line["step"] == 12).unwrap();
        assert!(line["loss"].as_f64().is_some_and(f64::is_finite), "{line}");
        line["positions"].as_u64().unwrap()
    };
    let filled = positions("filled", &["pad_token=eos"]);
    let cut = positions("cut", &["pad_token=pad"]);
    let grouped = positions("grouped", &["pad_token=pad", "group_by_length=true"]);
    assert_eq!(filled, 96 * 12);
    assert!(filled > cut && 4 * cut > 5 * grouped, "{filled} {cut} {grouped}");
}

#[test]
fn what_blocks_cannot_do_is_said_in_one_line() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let (model, other) = (within(&folder, "run"), within(&folder, "other"));
    materials.train(&other, &["block_size=3"]).badly(&["block_size", "causal_latents"]);
    materials.train(&other, &["block_size=0", "causal_latents=true"]).badly(&["block_size", "0 tokens"]);
    materials.train(&other, &["group_by_length=true"]).badly(&["group_by_length", "pad_token: pad"]);
    materials.train(&other, &["context_table=true"]).badly(&["context_table", "max_input_length", "block_size"]);
    let learned = [&BLOCKS[..], &["group_by_length=true", "pad_token=eos"]].concat();
    materials.train(&other, &learned).badly(&["group_by_length", "pad_token: pad"]);
    materials.train(&model, &BLOCKS).well();
    let shards = materials.path("shards");
    run(elf(&["probe", &model, "--data", &shards, "--device", "cpu"])).badly(&["block_size"]);
    run(elf(&["likelihood", &model, "A dog"])).badly(&["block_size"]);
    let config = materials.path("config.yml");
    let distill = ["distill", &config, "--teacher", &model, "--output", &other];
    run(elf(&distill)).badly(&["block_size", "distilled"]);
    let plain = materials.path("run");
    let guided = ["sample", &model, "--num", "1", "--guide", &plain, "--guide-scale", "2"];
    run(elf(&guided)).badly(&["guide", "block"]);
}
