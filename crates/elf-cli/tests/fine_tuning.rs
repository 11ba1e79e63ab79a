//! A run that begins as another model: its weights and nothing else of it, wherever they lie.

mod tiny_run;

use std::fs;

use tempfile::TempDir;
use tiny_run::{Materials, checkpoints, elf, json_lines, run, tensors, within};

/// Too small to move a weight: what such a run ends as is what it began as.
const STILL: [&str; 3] = ["max_steps=1", "lr=1e-30", "warmup_steps=0"];

/// The texts that a model writes.
fn texts(folder: &TempDir, model: &str, more: &[&str]) -> Vec<String> {
    let output = within(folder, "texts.jsonl");
    run(elf(&[&["sample", model, "--num", "8", "-o", &output][..], more].concat())).well();
    json_lines(&output).iter().map(|line| line["prediction"].to_string()).collect()
}

#[test]
fn a_run_begins_as_the_averages_of_a_run_a_checkpoint_a_file_or_an_exported_model() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let first = materials.path("run");
    let [file, exported] = ["averages.safetensors", "exported"].map(|name| within(&folder, name));
    run(elf(&["convert", &first, &file])).well();
    run(elf(&["export", &first, &exported, "--dtype", "f32"])).well();
    let checkpoint = checkpoints(&first).pop().unwrap().to_string_lossy().into_owned();
    let begun = |name: &str, options: &[&str]| {
        let output = within(&folder, name);
        let ran = materials.train(&output, &[&STILL[..], options].concat()).well();
        (ran, output)
    };
    let written = |model: &str| texts(&folder, model, &["--steps", "3"]);
    let (_, random) = begun("random", &[]);
    let last = |run: &str| tensors(&checkpoints(run).pop().unwrap());
    let mut before = None;
    for (i, from) in [&first, &checkpoint, &file, &exported].into_iter().enumerate() {
        let (ran, output) = begun(&format!("second-{i}"), &[&format!("init_from={from}")]);
        assert!(ran.err.contains("beginning as ") && ran.err.contains("start:   "), "{}", ran.err);
        assert!(checkpoints(&output)[0].ends_with("step-00000001"), "it counts steps of its own");
        assert_eq!(written(&output), written(&first), "{from}");
        assert_ne!(last(&output)[0], last(&random)[0]);
        let now = last(&output);
        assert_eq!(before.get_or_insert_with(|| now.clone()), &now, "{from}");
    }
}

#[test]
fn a_model_of_texts_becomes_one_of_translations() {
    let folder = TempDir::new().unwrap();
    let output = within(&folder, "translation");
    let from = format!("init_from={}", Materials::unconditional().path("run"));
    Materials::translation().train(&output, &["max_steps=2", &from]).well();
    let translated = within(&folder, "translated.jsonl");
    run(elf(&["sample", &output, "--steps", "3", "--text", "tree", "-o", &translated])).well();
    assert_eq!(json_lines(&translated).len(), 1);
}

/// What is encoded otherwise, and how decode rows see conditions, is a matter of training: a model of the one goes on as one of the other.
#[test]
fn latents_of_what_stands_before_are_learned_by_any_model() {
    let folder = TempDir::new().unwrap();
    let losses = |materials: &Materials, name: &str, options: &[&str]| {
        let from = format!("init_from={}", materials.path("run"));
        let output = within(&folder, name);
        materials.train(&output, &[&["max_steps=1", "decoder_prob=0.5", from.as_str()], options].concat()).well();
        json_lines(&format!("{output}/metrics.jsonl"))[0]["loss"].as_f64().expect("a loss")
    };
    for (kind, materials) in [("text", Materials::unconditional()), ("translation", Materials::translation())] {
        let paper = losses(materials, kind, &[]);
        let causal = losses(materials, &format!("causal-{kind}"), &["causal_latents=true"]);
        assert_ne!(paper, causal, "{kind}: other latents");
        let clean = losses(materials, &format!("clean-{kind}"), &["decoder_clean_condition=true"]);
        assert_eq!(paper == clean, kind == "text", "{kind}: conditions are clean where there are any");
    }
}

#[test]
fn once_begun_it_goes_on_from_itself() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let [at_once, in_two] = ["at-once", "in-two"].map(|name| within(&folder, name));
    let from = format!("init_from={}", materials.path("run"));
    materials.train(&at_once, &["max_steps=4", &from]).well();
    materials.train(&in_two, &["max_steps=2", &from]).well();
    let rest = materials.train(&in_two, &["max_steps=4", &from]).well();
    assert!(rest.err.contains("resuming from") && !rest.err.contains("beginning as"), "{}", rest.err);
    let last = |run: &str| tensors(&checkpoints(run).pop().unwrap());
    assert_eq!(last(&at_once), last(&in_two));
}

#[test]
fn a_baseline_begins_as_one_of_its_kind() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let [gpt2, second] = ["gpt2", "second"].map(|name| within(&folder, name));
    materials.train(&gpt2, &["objective=gpt2"]).well();
    let from = format!("init_from={gpt2}");
    materials.train(&second, &[&STILL[..], &["objective=gpt2", &from]].concat()).well();
    assert_eq!(texts(&folder, &second, &[]), texts(&folder, &gpt2, &[]));
    let third = within(&folder, "third");
    materials.train(&third, &["objective=mdlm", &from]).badly(&["init_from", "objective gpt2, not mdlm"]);
    materials.train(&third, &[&from]).badly(&["init_from", "objective gpt2, not elf"]);
}

#[test]
fn what_it_cannot_begin_as_is_refused_before_anything_is_written() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let ours = format!("init_from={}", materials.path("run"));
    let other = materials.copy("run", &folder);
    let corpus = Materials::translation().path("corpus.jsonl");
    let tokenizer = within(&folder, "german");
    let call =
        ["tokenizer", "train", "--input", &corpus, "--column", "de", "--vocab-size", "70", "--output", &tokenizer];
    run(elf(&call)).well();
    fs::copy(format!("{tokenizer}/tokenizer.json"), format!("{other}/tokenizer.json")).unwrap();
    let other = format!("init_from={other}");
    let file = within(&folder, "a.safetensors");
    run(elf(&["convert", &materials.path("run"), &file])).well();
    let resume = format!("resume={}", materials.path("run"));
    let file = format!("init_from={file}");
    let refused: [(&[&str], &[&str]); 6] = [
        (&["init_from=/none/here"], &["init_from", "/none/here"]),
        (&[&ours, &resume], &["init_from and resume"]),
        (&[&other], &["init_from", "another tokenizer"]),
        (&[&ours, "depth=1"], &["init_from", "of its own sizes"]),
        (&[&file, "hidden_size=16"], &["init_from", "of its own sizes"]),
        (&[&file, "objective=gpt2"], &["init_from", "no run of this program"]),
    ];
    for (options, words) in refused {
        let output = within(&folder, "new");
        let ran = materials.train_command(&output, options);
        run(ran).badly_many(words);
        assert!(!fs::exists(&output).unwrap(), "{options:?} leaves a folder");
    }
}
