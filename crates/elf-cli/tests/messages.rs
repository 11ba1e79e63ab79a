//! Messages in a user's words, options that matter, and memory that is asked for before it is taken.

mod tiny_run;

use std::fs;
use std::path::Path;

use tempfile::TempDir;
use tiny_run::{Materials, Ran, elf, run, within};

/// Runs a command that lacks an option; the lines of the message name it.
#[track_caller]
fn needs(args: &[&str], option: &str) {
    let ran = run(elf(args));
    assert_eq!(ran.code, Some(2), "{}", ran.err);
    assert!(ran.err.contains(option), "{}", ran.err);
}

fn sample(model: &str, more: &[&str]) -> Ran {
    run(elf(&[&["sample", model, "--steps", "2"], more].concat()))
}

#[test]
fn values_that_do_not_fit_name_key_value_and_what_fits() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let (model, output) = (materials.path("run"), within(&folder, "new"));
    for (option, words) in [
        ("lr=abc", &["lr is \"abc\"", "a number"][..]),
        ("max_length=-3", &["max_length is -3", "a whole number"]),
        ("optimizer=sgd", &["optimizer is \"sgd\"", "`muon` or `adamw`"]),
        ("epochs=0", &["epochs is 0", "above 0"]),
        ("ema_decay1=1", &["ema_decay1 is 1", "from 0 to below 1"]),
        ("label_drop_prob=2", &["label_drop_prob is 2", "from 0 to 1"]),
        ("lr=.nan", &["lr=.nan"]),
    ] {
        materials.train(&output, &[option]).badly(words);
    }
    // Negative numbers are values of the option before them, and are judged as such.
    for (options, words) in [
        (&["--decode-at", "-1"][..], &["decode_at", "-1"][..]),
        (&["--sde-gamma", "-1"], &["gamma", "-1"]),
        (&["--temperature", "-1"], &["temperature", "-1"]),
        (&["--num", "-1"], &["--num", "-1", "a whole number from 0"]),
        (&["--cfg", "NaN"], &["--cfg", "NaN", "a number"]),
        (&["--top-p", "1,5"], &["--top-p", "1,5", "a number"]),
    ] {
        let ran = sample(&model, options).badly(words);
        assert!(!ran.err.contains("'-- -1'"), "{}", ran.err);
    }
    run(elf(&["scaling", "--latency", "-1"])).badly(&["--latency is -1", "above 0"]);
    let config = within(&folder, "twice.yml");
    for text in ["lr: 1\nlr: 2\n", "a: {b: 1, b: 2}\n"] {
        fs::write(&config, text).unwrap();
        let ran = run(elf(&["train", &config])).badly(&["twice.yml", "duplicate"]);
        assert!(!ran.err.contains("Policy"), "{}", ran.err);
    }
}

#[test]
fn options_that_cannot_matter_together_are_refused() {
    let (materials, translation, folder) =
        (Materials::unconditional(), Materials::translation(), TempDir::new().unwrap());
    let (model, pairs) = (translation.path("run"), translation.path("corpus.jsonl"));
    let samples = within(&folder, "samples.jsonl");
    fs::write(&samples, "{\"text\": \"a\"}\n").unwrap();
    sample(&model, &["--text", "dog", "-n", "3"]).badly(&["--text", "--num"]);
    sample(&model, &["--input", &pairs, "--input-column", "de", "-n", "3"]).badly(&["--input", "--num"]);
    sample(&model, &["--data", &translation.path("shards"), "-n", "3"]).badly(&["--data", "--num"]);
    sample(&model, &["--text", "dog", "--input-column", "de"]).badly(&["--text", "--input"]);
    run(elf(&["train", "--template", "--plan"])).badly(&["--template", "--plan"]);
    for option in ["--training-words", "--long-run", "--training-column"] {
        needs(&["eval", "--samples", &samples, option, "7"], "--training");
    }
    needs(&["eval", "--samples", &samples, "--judge-max-length", "7"], "--judge");
    let column = format!("{}:text", materials.path("corpus.jsonl"));
    let output = within(&folder, "tokenizer");
    needs(&["tokenizer", "train", "--text", &column, "--column", "text", "--output", &output], "--input");
}

#[test]
fn a_model_file_finds_its_neighbours() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let exported = within(&folder, "exported");
    run(elf(&["export", &materials.path("run"), &exported])).well();
    fs::write(Path::new(&exported).join("sampling.yml"), "- num_sampling_steps: 3\n").unwrap();
    for model in [exported.clone(), format!("{exported}/model.safetensors")] {
        let ran = run(elf(&["sample", &model, "-n", "2"])).well();
        assert!(ran.err.contains("sampling.yml") && ran.err.contains("sde-3-"), "{}", ran.err);
    }
    let mut command = elf(&["sample", "model.safetensors", "-n", "2"]);
    command.current_dir(&exported);
    assert!(run(command).well().err.contains("sde-3-"));
}

#[test]
fn ids_outside_a_vocabulary_are_shown() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let large = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/mini-de-en");
    let (corpus, shards) = (materials.path("corpus.jsonl"), within(&folder, "shards"));
    run(elf(&["data", "prepare", "--input", &corpus, "--tokenizer", large, "--output", &shards])).well();
    let shown = run(elf(&["data", "inspect", &shards, "--tokenizer", &materials.path("tokenizer")])).well();
    assert!(shown.out.contains("<id "), "{}", shown.out);
}

#[test]
fn memory_is_asked_for_before_it_is_taken() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let (model, shards) = (materials.path("run"), materials.path("shards"));
    let exported = within(&folder, "exported");
    run(elf(&["export", &model, &exported])).well();
    let rows = ["--length", "100000", "--batch-size", "65536"];
    sample(&exported, &rows).badly(&["of memory", "(--batch-size)"]);
    run(elf(&[&["serve", &exported, "--listen", "127.0.0.1:0"][..], &rows].concat()))
        .badly(&["of memory", "(--batch-size)"]);
    run(elf(&[&["probe", &exported, "--data", &shards, "--limit", "65536"][..], &rows].concat()))
        .badly(&["of memory", "(--batch-size)"]);
    run(elf(&[&["likelihood", &exported, "--data", &shards, "--limit", "65536"][..], &rows].concat()))
        .badly(&["of memory", "(--batch-size)"]);
    sample(&exported, &["--length", "16000000", "--batch-size", "65536"]).badly(&["of memory"]);
    sample(&exported, &["--length", "18446744073709551615"]).badly(&["max_length", "must be from 1 to"]);
    run(elf(&["bench", "--batch", "65536", "--seq", "100000"])).badly(&["of memory", "--batch"]);
}
