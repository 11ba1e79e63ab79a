//! From text to a model to text to metrics, with the program as a user has it.

mod tiny_run;

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;
use tiny_run::{Materials, checkpoints, copy, elf, json_lines, run, tensors, within};

/// The texts of a file that `elf sample` wrote.
fn texts(path: &str) -> Vec<String> {
    json_lines(path).iter().map(|l| l["prediction"].as_str().expect("a text").to_owned()).collect()
}

/// Samples from the unconditional run; returns all lines but not what they were written with.
fn sample(folder: &TempDir, name: &str, more: &[&str]) -> Vec<Value> {
    let model = Materials::unconditional().path("run");
    let output = within(folder, name);
    run(elf(&[&["sample", &model, "--steps", "3", "-o", &output], more].concat())).well();
    json_lines(&output)
}

#[test]
fn training_leaves_everything_that_sampling_needs() {
    let materials = Materials::unconditional();
    let folder = materials.path("run");
    for name in ["plan.json", "tokenizer.json", "metrics.jsonl"] {
        assert!(Path::new(&folder).join(name).is_file(), "{name}");
    }
    let names: Vec<_> = checkpoints(&folder).iter().map(|p| p.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["step-00000002", "step-00000004", "step-00000006"]);
    let metrics = json_lines(&format!("{folder}/metrics.jsonl"));
    assert_eq!(metrics.iter().map(|m| m["step"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    for line in &metrics {
        for key in ["loss", "grad_norm", "lr"] {
            assert!(line[key].as_f64().is_some_and(f64::is_finite), "{key} of {line}");
        }
    }
    // Shards can be looked into, as ids and as words.
    let shown = run(elf(&[
        "data",
        "inspect",
        &materials.path("shards"),
        "--tokenizer",
        &materials.path("tokenizer"),
        "--rows",
        "1",
    ]))
    .well();
    assert!(shown.out.contains("320 rows") && shown.out.contains("row 0: A old dog finds the"), "{}", shown.out);
}

#[test]
fn a_plan_trains_nothing() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let output = within(&folder, "run");
    let mut command = materials.train_command(&output, &[]);
    command.arg("--plan");
    let planned = run(command).well();
    assert!(
        planned.err.contains("320 rows to train on") && planned.err.contains("6 optimiser steps"),
        "{}",
        planned.err
    );
    assert!(!Path::new(&output).exists());
}

#[test]
fn held_out_rows_and_texts_are_judged_while_training() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let output = within(&folder, "run");
    let held_out = format!("eval_data_path={}", materials.path("shards"));
    let options =
        [held_out.as_str(), "online_eval=true", "num_samples=3", "eval_rows=16", "max_steps=2", "early_stopping=3"];
    materials.train(&output, &options).well();
    let metrics = json_lines(&format!("{output}/metrics.jsonl"));
    let last = metrics.last().unwrap();
    assert!(last["validation_loss"].as_f64().is_some_and(f64::is_finite), "{last}");
    let files: Vec<_> = fs::read_dir(format!("{output}/samples")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(files.len(), 1);
    assert_eq!(texts(files[0].to_str().unwrap()).len(), 3);
    // What was judged by held-out rows is used without them.
    let exported = within(&folder, "exported");
    run(elf(&["export", &output, &exported])).well();
    run(elf(&["sample", &exported, "-n", "1", "--steps", "2"])).well();
}

#[test]
fn a_named_judge_measures_perplexity_while_training() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let judge = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/parity/gpt2");
    let (output, named) = (within(&folder, "run"), format!("eval_ppl_model={judge}"));
    // Without the filling to learn, words come soonest.
    let options = [
        named.as_str(),
        "pad_token=pad",
        "online_eval=true",
        "num_samples=8",
        "max_steps=40",
        "eval_freq=0.5",
        "eval_ppl_max_length=32",
    ];
    let ran = materials.train(&output, &options).well();
    assert!(ran.err.contains("judged by") && ran.err.contains("parity/gpt2"), "{}", ran.err);
    let lines = json_lines(&format!("{output}/metrics.jsonl"));
    let judged: Vec<f64> = lines
        .iter()
        .filter_map(|line| line.as_object()?.iter().find(|(key, _)| key.contains("Gen. PPL"))?.1.as_f64())
        .collect();
    assert!(!judged.is_empty() && judged.iter().all(|ppl| ppl.is_finite() && *ppl > 1.0), "{lines:?}");
    // It is looked for before a step is done, and so are the settings to generate with.
    let other = within(&folder, "other");
    materials
        .train(&other, &["online_eval=true", "sampling_configs_path=/none/there.yml"])
        .badly(&["sampling_configs_path", "/none/there.yml"]);
    materials
        .train(&other, &["online_eval=true", "eval_ppl_model=/none/here"])
        .badly(&["eval_ppl_model", "/none/here"]);
    assert!(!Path::new(&other).exists());
}

#[test]
fn an_encoder_is_not_written_over_unless_that_is_asked_for() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let (encoder, tokenizer) = (materials.copy("encoder", &folder), materials.path("tokenizer"));
    let bytes = |name: &str| fs::read(format!("{encoder}/{name}")).unwrap();
    let before = ["model.safetensors", "latent_stats.json"].map(bytes);
    let sizes = ["--d-model", "16", "--d-kv", "8", "--d-ff", "32", "--num-layers", "1", "--num-heads", "2"];
    let init = |more: &[&str]| {
        let named = ["encoder", "init", "--tokenizer", &tokenizer, "--output", &encoder];
        run(elf(&[&named[..], &sizes, more].concat()))
    };
    // The same once more changes nothing, and what is missing is made good.
    init(&[]).well();
    fs::remove_file(format!("{encoder}/tokenizer.json")).unwrap();
    assert!(["model.safetensors", "latent_stats.json"].map(bytes) == before);
    init(&[]).well();
    assert!(Path::new(&encoder).join("tokenizer.json").exists());
    run(elf(&["encoder", "stats", &encoder, "--data", &materials.path("shards")])).well();
    run(elf(&["encoder", "stats", &encoder, "--layer", "0", "--data", &materials.path("shards")])).well();
    init(&["--seed", "1"]).badly(&[&encoder, "already exists", "--overwrite"]);
    assert!(["model.safetensors", "latent_stats.json"].map(bytes) == before);
    init(&["--seed", "1", "--overwrite"]).well();
    assert!(bytes("model.safetensors") != before[0]);
    assert_eq!(fs::read_dir(&encoder).unwrap().count(), 3, "statistics are those of the encoder before");
    // One process does it, and says so if it is one of several.
    let mut second = elf(&["encoder", "stats", &encoder, "--data", &materials.path("shards")]);
    second.env("RANK", "1").env("WORLD_SIZE", "2").env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", "1");
    run(second).badly(&["elf encoder does not share its work", "rank 1 of 2"]);
}

#[test]
fn measured_latents_are_written_into_a_configuration() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let config = materials.copy("config.yml", &folder);
    let before = format!("# Mine.\n{}latent_std: 0.5  # to be measured\n", fs::read_to_string(&config).unwrap());
    fs::write(&config, &before).unwrap();
    let (encoder, shards) = (materials.copy("encoder", &folder), materials.path("shards"));
    run(elf(&["encoder", "stats", &encoder, "--data", &shards, "--overall", "--write-into", &config])).well();
    let after = fs::read_to_string(&config).unwrap();
    let stats: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(format!("{encoder}/latent_stats.json")).unwrap()).unwrap();
    let number = |key: &str| {
        let line = after.lines().find(|l| l.starts_with(key)).unwrap_or_else(|| panic!("{key} is not in {after}"));
        line[key.len() + 2..].split(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert_eq!(
        (number("latent_mean"), number("latent_std")),
        (stats["mean"].as_f64().unwrap(), stats["std"].as_f64().unwrap())
    );
    assert!(after.contains("# Mine.") && after.contains("  # to be measured"));
    let rest = |text: &str| text.lines().filter(|l| !l.starts_with("latent_")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(rest(&after), rest(&before));
    // What no run would take is refused before anything is measured, and is as it was.
    fs::write(&config, "latent_maen: 3\n").unwrap();
    run(elf(&["encoder", "stats", &encoder, "--data", &shards, "--write-into", &config])).badly(&["latent_mean"]);
    assert_eq!(fs::read_to_string(&config).unwrap(), "latent_maen: 3\n");
}

#[test]
fn texts_are_shown_written_and_judged() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let (model, output, report) = (materials.path("run"), within(&folder, "s.jsonl"), within(&folder, "report.json"));
    let sampled = run(elf(&["sample", &model, "--steps", "4", "-n", "4", "--trace", "-o", &output])).well();
    assert!(sampled.out.contains("t = 0.00  ") && sampled.out.contains("t = 1.00  "), "{}", sampled.out);
    let lines = json_lines(&output);
    assert_eq!(lines.iter().map(|l| l["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert!(lines.iter().all(|l| l["tokens"].as_array().is_some_and(|t| t.len() <= 12)));
    // A model of six steps may write nothing at all, so the words to count are known ones.
    run(elf(&["eval", "--samples", &output])).well();
    let known = within(&folder, "known.jsonl");
    fs::write(&known, "{\"text\": \"a small tool\"}\n{\"text\": \"a large tool\"}\n").unwrap();
    let judged =
        run(elf(&["eval", "--samples", &known, "--training", &materials.path("corpus.jsonl"), "-o", &report])).well();
    // Six steps may have learned no word yet, so that there is no diversity to tell of.
    for metric in ["Words per text", "Empty texts", "Exact copies of training texts"] {
        assert!(judged.out.contains(metric), "{}", judged.out);
    }
    assert!(!judged.out.contains("BLEU"), "there are no references: {}", judged.out);
    assert!(fs::read_to_string(&report).unwrap().contains("Words per text"));
    // Without a file, the texts are printed; a checkpoint may be named instead of a run.
    let checkpoint = checkpoints(&model)[0].to_str().unwrap().to_owned();
    let printed = run(elf(&["sample", &checkpoint, "--steps", "2", "-n", "2"])).well();
    assert!(printed.out.contains("[0] ") && printed.out.contains("[1] "), "{}", printed.out);
}

/// One metric of a file that `elf eval` wrote.
fn metric(evaluation: &str, name: &str) -> serde_json::Value {
    let all: serde_json::Value = serde_json::from_str(&fs::read_to_string(evaluation).unwrap()).unwrap();
    assert_eq!(all["schema"], 1);
    all["metrics"].as_array().unwrap().iter().find(|m| m["name"] == name).cloned().unwrap_or_default()
}

#[test]
fn texts_are_judged_against_data_and_over_seeds() {
    let folder = TempDir::new().unwrap();
    let file = |name: &str, content: &str| {
        let path = within(&folder, name);
        fs::write(&path, content).unwrap();
        path
    };
    let a = file("a.jsonl", "{\"text\": \"a small tool\"}\n{\"text\": \"a large tool for text\"}\n");
    let b = file("b.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
    let data = file("data.jsonl", "{\"en\": \"a small tool\"}\n{\"en\": \"one\"}\n");
    let (column, out) = (format!("{data}:en"), within(&folder, "evaluation.json"));
    let seeds = ["eval", "--samples", &a, &b, "--training", &column, "--long-run", "2", "-o", &out];
    let shown = run(elf(&seeds)).well().out;
    assert!(shown.contains("s.e.") && shown.contains("95%"), "{shown}");
    assert_eq!(metric(&out, "Words per text")["per_file"], serde_json::json!([4.0, 1.0]));
    assert_eq!(metric(&out, "Exact copies of training texts")["value"], 0.25);
    assert_eq!(metric(&out, "Texts with a long copied run")["value"], 0.25);
    // As a whole, references are not what each text should have been; line by line they are.
    run(elf(&["eval", "--samples", &a, "--references", &column, "--bootstrap", "0", "-o", &out])).well();
    assert!(metric(&out, "BLEU").is_null() && metric(&out, "Words per text")["interval"].is_null());
    run(elf(&["eval", "--samples", &a, "--references", &column, "--paired", "-o", &out])).well();
    assert_eq!(metric(&out, "ROUGE-1")["value"], 50.0);
    // What is named wins over what the samples bring along.
    let own =
        "{\"text\": \"a small tool\", \"reference\": \"x\"}\n{\"text\": \"a large tool\", \"reference\": \"y\"}\n";
    let own = file("own.jsonl", own);
    run(elf(&["eval", "--samples", &own, "--references", &column, "-o", &out])).well();
    assert_eq!(metric(&out, "ROUGE-1")["value"], 0.0);
    let told = run(elf(&["eval", "--samples", &own, "--references", &column, "--paired", "-o", &out])).well();
    assert!(told.err.contains("--paired"), "{}", told.err);
    assert_eq!(metric(&out, "ROUGE-1")["value"], 50.0);
    // Of more training texts than there is room for, the first are searched.
    let few = ["eval", "--samples", &a, "--training", &column, "--training-words", "5", "-o", &out];
    let shown = run(elf(&few)).well().out;
    assert!(shown.contains("first 1 training texts"), "{shown}");
    assert_eq!(metric(&out, "Exact copies of training texts")["value"], 0.5);
    let from_input = file("c.jsonl", "{\"input\": \"x\", \"prediction\": \"a small tool\"}\n");
    run(elf(&["eval", "--samples", &from_input, "--references", &column])).badly(&["1 hypotheses but 2 references"]);
    run(elf(&["eval", "--samples", &a, "--references", &format!("{data}:de")])).badly(&["data.jsonl", "de"]);
    run(elf(&["eval"])).badly(&["--samples"]);
}

#[test]
fn a_run_is_sampled_once_and_judged() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let (model, kept, out) = (materials.path("run"), within(&folder, "kept"), within(&folder, "evaluation.json"));
    let line = |steps: &'static str| {
        let args = ["eval", "--run", &model, "-n", "3", "--seed", "0", "--seed", "1", "--samples-folder", &kept];
        run(elf(&[&args[..], &["-o", &out, "--device", "cpu", "--", "--steps", steps]].concat()))
    };
    let first = line("2").well();
    assert!(!first.err.contains("taken as it is") && first.out.contains("Words per text"), "{}", first.err);
    let all: serde_json::Value = serde_json::from_str(&fs::read_to_string(&out).unwrap()).unwrap();
    assert_eq!(all["samples"].as_array().unwrap().len(), 2);
    assert!(all["samples"].as_array().unwrap().iter().all(|s| s["texts"] == 3));
    let again = line("2").well();
    assert_eq!(again.err.matches("taken as it is").count(), 2, "{}", again.err);
    assert_eq!(again.out, first.out);
    line("3").well();
    assert_eq!(fs::read_dir(&kept).unwrap().count(), 4);
    run(elf(&["eval", "--run", &model, "--device", "cpu", "--", "--stepz", "3"])).badly(&["--stepz", "elf sample"]);
    run(elf(&["eval", "--run", &model, "--samples", &out])).badly(&["--samples"]);
}

#[test]
fn samples_are_taken_again_only_if_nothing_behind_them_has_changed() {
    let folder = TempDir::new().unwrap();
    let line = |model: &str, more: &[&str]| {
        let kept = within(&folder, "kept");
        let ran =
            run(elf(&[&["eval", "--run", model, "--samples-folder", &kept, "--device", "cpu", "--"], more].concat()));
        ran.well().err.contains("taken as it is")
    };
    let (materials, settings) = (Materials::unconditional(), within(&folder, "how.yml"));
    let how =
        |steps: u64| fs::write(&settings, format!("sampling_method: ode\nnum_sampling_steps: [{steps}]\n")).unwrap();
    let model = materials.copy("run", &folder);
    let from_file = ["--num", "1", "--sampling-config", &settings];
    how(2);
    assert!(!line(&model, &from_file));
    assert!(line(&model, &from_file));
    how(3);
    assert!(!line(&model, &from_file), "the file of settings has changed");
    assert!(line(&materials.path("run"), &from_file), "the same model at another place");

    let short = ["--num", "1", "--steps", "2"];
    assert!(!line(&model, &short));
    fs::write(Path::new(&model).join("sampling.yml"), "sampling_method: ode\n").unwrap();
    assert!(!line(&model, &short), "the model has settings of its own now");
    assert!(line(&model, &short));

    let guide = within(&folder, "guide");
    let guided = ["--num", "1", "--steps", "2", "--guide", &guide];
    let [first, second, ..] = &checkpoints(&materials.path("run"))[..] else { panic!("several checkpoints") };
    let lies_there = |checkpoint: &Path| {
        let _ = fs::remove_dir_all(&guide);
        fs::create_dir_all(Path::new(&guide).join("checkpoints")).unwrap();
        copy(checkpoint, &Path::new(&guide).join("checkpoints/step-00000002"));
        copy(Path::new(&materials.path("run/tokenizer.json")), &Path::new(&guide).join("tokenizer.json"));
    };
    lies_there(first);
    assert!(!line(&model, &guided));
    assert!(line(&model, &guided));
    lies_there(second);
    assert!(!line(&model, &guided), "the guide is another one");

    let translator = Materials::translation().path("run");
    let input = within(&folder, "in.jsonl");
    let translated = ["--steps", "2", "--input", &input, "--input-column", "de", "--reference-column", "en"];
    let asks = |de: &str, en: &str| fs::write(&input, serde_json::json!({ "de": de, "en": en }).to_string()).unwrap();
    asks("tree the", "the tree");
    assert!(!line(&translator, &translated));
    assert!(line(&translator, &translated));
    asks("cat the", "the tree");
    assert!(!line(&translator, &translated), "the condition has changed");
    asks("cat the", "the cat");
    assert!(!line(&translator, &translated), "the reference has changed");
}

#[test]
fn a_translation_is_sampled_from_text_and_judged_against_references() {
    let (materials, folder) = (Materials::translation(), TempDir::new().unwrap());
    let (model, output) = (materials.path("run"), within(&folder, "s.jsonl"));
    let spoken =
        run(elf(&["sample", &model, "--steps", "2", "--text", "cat old the", "--text", "tree", "-o", &output])).well();
    assert!(spoken.out.contains("[0] ") && spoken.out.contains("[1] "));
    assert!(spoken.out.contains("from: cat old the") && !spoken.out.contains("reference:"), "{}", spoken.out);
    assert_eq!(json_lines(&output)[1]["input"], "tree");
    run(elf(&[
        "sample",
        &model,
        "--steps",
        "2",
        "--input",
        &materials.path("corpus.jsonl"),
        "--input-column",
        "de",
        "--reference-column",
        "en",
        "--limit",
        "5",
        "-o",
        &output,
    ]))
    .well();
    let lines = json_lines(&output);
    assert_eq!(lines.len(), 5);
    for line in &lines {
        let mut words: Vec<&str> = line["input"].as_str().unwrap().split(' ').collect();
        words.reverse();
        assert_eq!(line["reference"], words.join(" "));
    }
    let judged = run(elf(&["eval", "--samples", &output])).well();
    assert!(judged.out.contains("BLEU") && judged.out.contains("ROUGE-L"), "{}", judged.out);
    // A perfect translator gets 100.
    let perfect: String = lines
        .iter()
        .map(|l| format!("{}\n", serde_json::json!({ "prediction": l["reference"], "reference": l["reference"] })))
        .collect();
    fs::write(&output, perfect).unwrap();
    let judged = run(elf(&["eval", "--samples", &output])).well();
    assert!(judged.out.lines().any(|l| l.starts_with("| BLEU | 100 ")), "{}", judged.out);
}

#[test]
fn the_same_seed_gives_the_same_text_whatever_is_generated_beside_it() {
    let folder = TempDir::new().unwrap();
    let all = sample(&folder, "a.jsonl", &["-n", "10", "--batch-size", "4", "--seed", "7"]);
    assert_eq!(all, sample(&folder, "b.jsonl", &["-n", "10", "--batch-size", "4", "--seed", "7"]));
    assert_eq!(all[..3], sample(&folder, "c.jsonl", &["-n", "3", "--batch-size", "4", "--seed", "7"]));
    let another = sample(&folder, "d.jsonl", &["-n", "10", "--batch-size", "4", "--seed", "8"]);
    assert!(all.iter().zip(&another).all(|(a, b)| a["seed"] != b["seed"]));
    let tokens = |lines: &[Value]| lines.iter().map(|l| l["tokens"].clone()).collect::<Vec<_>>();
    assert_ne!(tokens(&all), tokens(&another));
}

#[test]
fn every_setting_of_a_sampling_file_has_its_own_output() {
    let folder = TempDir::new().unwrap();
    let settings = within(&folder, "s.yml");
    fs::write(&settings, "- sampling_method: ode\n  num_sampling_steps: [2, 3]\n- sampling_method: heun\n").unwrap();
    let model = Materials::unconditional().path("run");
    let output = within(&folder, "out.jsonl");
    run(elf(&["sample", &model, "-n", "2", "--sampling-config", &settings, "-o", &output])).well();
    for name in ["ode-2-w3-cfg1", "ode-3-w3-cfg1", "heun-32-w3-cfg1"] {
        assert_eq!(texts(&within(&folder, &format!("out-{name}.jsonl"))).len(), 2, "{name}");
    }
}

#[test]
fn a_lesser_version_of_a_model_guides_it() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let model = materials.path("run");
    let early = checkpoints(&model)[0].to_string_lossy().into_owned();
    let passes = |more: &[&str]| {
        let ran = run(elf(&[&["sample", &model, "-n", "2", "--sampler", "ode", "--steps", "5"], more].concat())).well();
        (ran.err.split(" passes").next().unwrap().rsplit(' ').next().unwrap().parse::<u64>().unwrap(), ran.out)
    };
    let ((plain, plain_text), (guided, guided_text)) =
        (passes(&[]), passes(&["--guide", &early, "--guide-scale", "4"]));
    assert_eq!((plain, guided), (6, 11));
    assert_ne!(plain_text, guided_text);
    assert_eq!(passes(&["--guide", &early, "--guide-scale", "1"]), (plain, plain_text));
    assert!(passes(&["--uniform-grid", "--decode-at", "0.5"]).0 < plain);
    run(elf(&["sample", &model, "--guide-scale", "2"])).badly(&["--guide-scale", "--guide"]);
    run(elf(&["sample", &model, "--decode-at", "1.5"])).badly(&["decode_at", "(0, 1]"]);
    run(elf(&["sample", &model, "--guide", &within(&folder, "nowhere")])).badly(&["guide", "nowhere"]);
}

#[cfg(unix)]
#[test]
fn an_output_that_is_no_file_is_written_to_and_not_replaced() {
    use std::os::unix::fs::FileTypeExt;
    let folder = TempDir::new().unwrap();
    let pipe = within(&folder, "pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || fs::read_to_string(pipe).unwrap()
    });
    let model = Materials::unconditional().path("run");
    run(elf(&["sample", &model, "--steps", "2", "-n", "2", "-o", &pipe])).well();
    // First this: nobody would ever wake the reader of a pipe that is gone.
    assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
    assert_eq!(reader.join().unwrap().lines().count(), 2);
}

#[test]
fn latents_that_are_learned_with_the_network() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let (whole, parts) = (within(&folder, "whole"), within(&folder, "parts"));
    let ran = materials.train(&whole, &["learned_latents=true"]).well();
    assert!(ran.err.contains("learned with the network"), "{}", ran.err);
    materials.train(&parts, &["learned_latents=true", "max_steps=3"]).well();
    materials.train(&parts, &["learned_latents=true"]).well();
    let last = |run: &str| tensors(checkpoints(run).last().unwrap());
    assert!(last(&whole) == last(&parts), "a run in two parts is another one");

    let output = within(&folder, "samples.jsonl");
    run(elf(&["sample", &whole, "--steps", "3", "-o", &output])).well();
    assert_eq!(texts(&output).len(), 8);
    let exported = within(&folder, "exported");
    run(elf(&["export", &whole, &exported, "--dtype", "f32"])).well();
    let again = within(&folder, "again.jsonl");
    run(elf(&["sample", &exported, "--steps", "3", "-o", &again])).well();
    assert_eq!(texts(&again), texts(&output));
    run(elf(&["distill", "--teacher", &whole, "--output", &within(&folder, "students")])).badly(&["learned_latents"]);
}

#[test]
fn a_probe_tells_what_a_model_knows() {
    for (materials, conditional) in [(Materials::unconditional(), false), (Materials::translation(), true)] {
        let folder = TempDir::new().unwrap();
        let (run_folder, shards, json) =
            (materials.path("run"), materials.path("shards"), within(&folder, "probe.json"));
        let probe = ["probe", &run_folder, "--data", &shards, "--limit", "20", "--times", "1,0,0.5", "--device", "cpu"];
        let told = run(elf(&[&probe[..], &["--output", &json]].concat())).well();
        assert_eq!(told.out.contains("without condition"), conditional, "{}", told.out);
        let found: serde_json::Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
        let times = found["times"].as_array().unwrap();
        assert_eq!(times.iter().map(|at| at["t"].as_f64().unwrap()).collect::<Vec<_>>(), [0.0, 0.5, 1.0]);
        // Less is wrong with an estimate the less noise there is.
        let errors: Vec<f64> = times.iter().map(|at| at["error"].as_f64().unwrap()).collect();
        assert!(errors[0] > errors[2], "{errors:?}");
        assert_eq!(times.iter().all(|at| at["without_condition"].is_object()), conditional);
        assert_eq!((found["texts"].as_u64(), found["words"].as_f64().unwrap() > 20.0), (Some(20), true));
        // The same again.
        let again = run(elf(&probe)).well();
        assert_eq!(again.out, told.out);
    }
    let (unconditional, translation) = (Materials::unconditional(), Materials::translation());
    let (run_folder, shards) = (translation.path("run"), unconditional.path("shards"));
    run(elf(&["probe", &run_folder, "--data", &shards, "--device", "cpu"])).badly(&[&shards]);
    run(elf(&["probe", &run_folder, "--data", &shards, "--times", "2"])).badly(&["--times", "2 is not a time"]);
}

/// Of more candidates the text is kept that was read most surely, and the first candidate is the text of one alone.
#[test]
fn the_surest_of_several_texts_is_kept() {
    let folder = TempDir::new().unwrap();
    let confidence = |line: &Value| line["confidence"].as_f64().expect("a confidence");
    let (alone, best) =
        (sample(&folder, "1.jsonl", &["-n", "5"]), sample(&folder, "6.jsonl", &["-n", "5", "--best-of", "6"]));
    assert_eq!(best.len(), 5);
    for (i, (alone, best)) in alone.iter().zip(&best).enumerate() {
        assert_eq!((alone["index"].as_u64(), best["index"].as_u64()), (Some(i as u64), Some(i as u64)));
        assert!(confidence(alone) < 0.0 && confidence(best) >= confidence(alone), "{alone} {best}");
        assert!(confidence(best) > confidence(alone) || best == alone, "{alone} {best}");
    }
    assert_ne!(alone, best);
    // Whatever the batches.
    assert_eq!(best, sample(&folder, "6-4.jsonl", &["-n", "5", "--best-of", "6", "--batch-size", "4"]));
    assert_eq!(alone, sample(&folder, "1-1.jsonl", &["-n", "5", "--best-of", "1"]));
    let model = Materials::unconditional().path("run");
    run(elf(&["sample", &model, "--best-of", "0"])).badly(&["best_of", "1000"]);
}
