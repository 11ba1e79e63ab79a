//! An encoder of the BERT family all the way: cut down, measured, trained with, sampled from.

mod tiny_run;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use elf_data::Tokenizer;
use serde_json::Value;
use tempfile::TempDir;
use tiny_run::{elf, json_lines, run, within};

/// Three layers and 40 words, `w0` to `w34` behind the special tokens.
fn source() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../elf-encoder/tests/fixtures/bert");
    folder.to_str().expect("a path in Unicode").to_owned()
}

/// Texts of the words w0 to w19, of which w19 occurs once.
fn texts(folder: &TempDir) -> String {
    let path = within(folder, "texts.jsonl");
    let mut lines = String::new();
    for i in 0..320 {
        let _ = writeln!(lines, "{{\"text\": \"W{} w{} w{}\"}}", i % 7, (i * 5) % 19, (i * i) % 11);
    }
    lines.push_str("{\"text\": \"w19\"}\n");
    fs::write(&path, lines).unwrap();
    path
}

#[test]
fn a_bert_is_cut_measured_trained_with_and_sampled_from() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| within(&folder, name);
    let (source, texts) = (source(), texts(&folder));
    let (encoder, shards) = (at("encoder"), at("shards"));
    let counted = format!("{texts}:text");
    let cut = ["encoder", "cut", &source, "--layers", "2", "--count-over", &counted, "--output", &encoder];
    run(elf(&cut)).well();
    // Five special tokens and w0 to w18; this vocabulary has no single characters.
    let tokenizer = Tokenizer::load(&encoder).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.eos_id().unwrap(), tokenizer.id("w19")), (24, 3, None));
    assert_eq!(tokenizer.id("w18"), Some(23));
    let config: Value = serde_json::from_str(&fs::read_to_string(at("encoder/config.json")).unwrap()).unwrap();
    assert_eq!((&config["num_hidden_layers"], &config["vocab_size"]), (&2.into(), &24.into()));
    assert!(fs::read_to_string(at("encoder/README.md")).unwrap().contains("the first 2 of 3"));
    run(elf(&cut)).badly(&["already exists"]);

    run(elf(&["data", "prepare", "--input", &texts, "--tokenizer", &encoder, "--eos-target", "--output", &shards]))
        .well();
    let measured = run(elf(&["encoder", "stats", &encoder, "--data", &shards])).well();
    assert!(measured.out.contains("effective dimensions") && measured.out.contains("proposal"), "{}", measured.out);
    let inner = run(elf(&["encoder", "stats", &encoder, "--layer", "1", "--data", &shards])).well();
    assert!(inner.out.contains("latent_stats.layer-1.json"), "{}", inner.out);

    fs::write(
        at("config.yml"),
        format!(
            "data_path: {shards}\nencoder_model_name: {encoder}\nmax_length: 8\npad_token: eos\nhidden_size: 32\ndepth: 2\n\
             num_heads: 2\nbottleneck_dim: 16\nbatch_size: 8\nmax_steps: 4\nwarmup_steps: 2\nlr: 0.01\nema_decay1: 0.9\n\
             eval_freq: 100\nuse_bf16: false\nonline_eval: false\n"
        ),
    )
    .unwrap();
    let train = |output: &str, options: &[&str]| {
        let (config, output) = (at("config.yml"), at(output));
        let options = options.iter().flat_map(|option| ["-o", option]);
        run(elf(&["train", &config, "--output", &output].into_iter().chain(options).collect::<Vec<_>>()))
    };
    train("run", &[]).well();
    train("inner", &["encoder_layer=1"]).well();
    let encoder_of = |run: &str| {
        let plan: Value = serde_json::from_str(&fs::read_to_string(at(&format!("{run}/plan.json"))).unwrap()).unwrap();
        (plan["config"]["encoder_layer"].clone(), plan["inputs"]["encoder"]["blake3"].clone())
    };
    assert_eq!((encoder_of("run").0, encoder_of("inner").0), (Value::Null, 1.into()));
    assert_ne!(encoder_of("run").1, encoder_of("inner").1);
    train("run", &["encoder_layer=1", "max_steps=8"]).badly(&["text encoder"]);
    train("none", &["encoder_layer=3"]).badly(&["encoder_layer 3", "0 (embeddings) to 2"]);
    train("long", &["max_length=12"]).badly(&["max_length", "11"]);
    train("unmeasured", &["encoder_layer=2"]).badly(&["latent_stats.layer-2.json", "elf encoder stats", "latent_mean"]);

    for (run_folder, name) in [("run", "out.jsonl"), ("inner", "inner.jsonl")] {
        let (run_folder, output) = (at(run_folder), at(name));
        run(elf(&["sample", &run_folder, "-n", "3", "--output", &output])).well();
        let rows = json_lines(&output);
        assert_eq!(rows.len(), 3);
        assert!(!rows.iter().any(|row| row.to_string().contains('[') && row.to_string().contains("SEP")));
    }
}
