//! Baselines by the program: trained, resumed, sampled, judged with and converted, on what ELF is trained on.

mod tiny_run;

use std::path::Path;
use std::sync::OnceLock;

use tempfile::TempDir;
use tiny_run::{LastingFolder, Materials, Ran, checkpoints, elf, json_lines, run, tensors, within};

/// A run of each kind on each task, made once.
struct Runs(LastingFolder);

impl Runs {
    fn all() -> &'static Self {
        static MADE: OnceLock<Runs> = OnceLock::new();
        MADE.get_or_init(|| {
            let runs = Self(LastingFolder::new());
            for objective in ["gpt2", "mdlm"] {
                let option = format!("objective={objective}");
                Materials::unconditional().train(&runs.path(objective, "free"), &[&option, "max_steps=30"]).well();
                Materials::translation().train(&runs.path(objective, "de-en"), &[&option]).well();
            }
            runs
        })
    }

    fn path(&self, objective: &str, task: &str) -> String {
        self.0.path(&format!("{objective}-{task}"))
    }
}

fn sample(model: &str, output: &str, more: &[&str]) -> Ran {
    run(elf(&[&["sample", model, "-o", output][..], more].concat()))
}

/// The fields of one name in a JSONL file.
fn field(path: &str, name: &str) -> Vec<String> {
    json_lines(path).iter().map(|line| line[name].as_str().unwrap_or_default().to_owned()).collect()
}

/// 8-bit products write texts of a network that has them, and are refused by one that has not; a processor without them is named.
#[test]
fn eight_bit_products_are_for_networks_and_processors_that_have_them() {
    let folder = TempDir::new().unwrap();
    let output = |name: &str| within(&folder, &format!("{name}.jsonl"));
    let rounded = |objective: &str| {
        let model = Runs::all().path(objective, "free");
        sample(&model, &output(objective), &["-n", "4", "--int8"])
    };
    if elf_core::device::cpu_features().vnni {
        rounded("mdlm").well();
        assert_eq!(field(&output("mdlm"), "prediction").len(), 4);
        rounded("gpt2").badly(&["GPT-2", "int8"]);
    } else {
        rounded("mdlm").badly(&["VNNI", "int8"]);
    }
}

#[test]
fn texts_are_written_and_depend_on_their_seeds_alone() {
    let folder = TempDir::new().unwrap();
    for (objective, settings) in [("gpt2", &["--top-p", "0.9"][..]), ("mdlm", &["--steps", "5"])] {
        let model = Runs::all().path(objective, "free");
        let texts = |count: &str, seed: &str| {
            let output = within(&folder, &format!("{objective}-{count}-{seed}.jsonl"));
            let ran =
                sample(&model, &output, &[settings, &["-n", count, "--seed", seed, "--batch-size", "4"]].concat());
            assert!(ran.well().err.contains("passes"));
            field(&output, "prediction")
        };
        let six = texts("6", "3");
        assert_eq!(six.len(), 6);
        assert!(six.iter().any(|text| !text.is_empty()));
        assert_eq!(six[..5], texts("5", "3")[..]);
        assert_ne!(six, texts("6", "4"));
    }
}

/// Of several candidates, one of the texts that the seeds of the candidates give is kept, whatever the batches.
#[test]
fn the_candidate_of_least_risk_is_kept() {
    let folder = TempDir::new().unwrap();
    for (model, settings) in [
        (Runs::all().path("mdlm", "free"), &["--steps", "5"][..]),
        (Runs::all().path("gpt2", "free"), &["--temperature", "1"]),
        (Materials::unconditional().path("run"), &["--steps", "4"]),
    ] {
        let texts = |name: &str, more: &[&str]| {
            let output = within(&folder, name);
            std::fs::remove_file(&output).ok();
            sample(&model, &output, &[settings, &["-n", "4"], more].concat()).well();
            field(&output, "prediction")
        };
        let kept = texts("5.jsonl", &["--mbr", "5"]);
        assert_eq!(kept.len(), 4);
        assert_eq!(kept, texts("5-3.jsonl", &["--mbr", "5", "--batch-size", "3"]));
        assert_eq!(texts("1.jsonl", &["--mbr", "1"]), texts("alone.jsonl", &[]));
    }
    let model = Materials::unconditional().path("run");
    sample(&model, &within(&folder, "x.jsonl"), &["--mbr", "2", "--best-of", "2"]).badly(&["mbr 2", "best_of 2"]);
    sample(&model, &within(&folder, "x.jsonl"), &["--mbr", "0"]).badly(&["mbr is 0", "1000"]);
}

#[test]
fn conditional_models_answer_inputs_and_carry_references() {
    let folder = TempDir::new().unwrap();
    let data = Materials::translation().path("shards");
    for (objective, name, settings) in [
        ("gpt2", "beam-1", &[][..]),
        ("gpt2", "beam-1", &["--beam", "1"]),
        ("gpt2", "beam-4-a0.5", &["--beam", "4", "--length-penalty", "0.5"]),
        ("gpt2", "sample-t0.7-p1", &["--temperature", "0.7"]),
        ("mdlm", "mdlm-64", &[]),
        ("mdlm", "mdlm-4", &["--steps", "4"]),
    ] {
        let (model, output) = (Runs::all().path(objective, "de-en"), within(&folder, "out.jsonl"));
        let ran = sample(&model, &output, &[settings, &["--data", &data, "--limit", "5"]].concat()).well();
        assert!(ran.err.contains(&format!("{name}: 5 texts")), "{}", ran.err);
        let rows = json_lines(&output);
        assert!(rows.iter().all(|row| row["reference"].is_string() && row["input"].is_string()), "{rows:?}");
        // Of 22 positions 10 are the condition's at most.
        assert!(rows.iter().all(|row| row["tokens"].as_array().is_some_and(|tokens| tokens.len() <= 12)));
    }
    // A text of one's own, too, and greedy search is what drawing at temperature 0 gives.
    let model = Runs::all().path("gpt2", "de-en");
    let greedy = run(elf(&["sample", &model, "--text", "dog red the"])).well();
    let drawn = run(elf(&["sample", &model, "--text", "dog red the", "--temperature", "0"])).well();
    assert_eq!(greedy.out, drawn.out);
    run(elf(&["sample", &model])).badly(&["input text"]);
    run(elf(&["sample", &Runs::all().path("gpt2", "free"), "--text", "dog"])).badly(&["takes no input text"]);
}

#[test]
fn flags_that_do_not_fit_are_refused_in_one_message() {
    let (gpt2, mdlm) = (Runs::all().path("gpt2", "free"), Runs::all().path("mdlm", "free"));
    let flow = Materials::unconditional().path("run");
    for (model, flags, words) in [
        (&gpt2, &["--steps", "4"][..], &["--steps has no meaning", "gpt2"]),
        (&gpt2, &["--sampler", "sde", "--cfg", "2"], &["--sampler, --cfg", "gpt2"]),
        (&gpt2, &["--beam", "2", "--temperature", "1"], &["--beam", "--temperature"]),
        (&gpt2, &["--beam", "0"], &["beam", "at least 1"]),
        (&gpt2, &["--beam", "18446744073709551615"], &["--beam", "at most 1000"]),
        (&gpt2, &["--top-p", "1.5"], &["top_p", "1.5"]),
        (&mdlm, &["--beam", "2"], &["--beam has no meaning", "mdlm"]),
        (&mdlm, &["-o", "steps=4"], &["-o steps=4", "--help"]),
        (&mdlm, &["--trace"], &["--trace", "mdlm"]),
        (&mdlm, &["--steps", "0"], &["steps", "at least one"]),
        (&mdlm, &["--top-p", "0.9"], &["--top-p has no meaning", "mdlm"]),
        (&flow, &["--beam", "2"], &["--beam has no meaning", "flow"]),
        (&flow, &["--top-p", "0.9"], &["top_p", "no effect at temperature 0"]),
        (&gpt2, &["--top-p", "0.9", "--temperature", "0"], &["top_p", "no effect at temperature 0"]),
        (&flow, &["--temperature", "nan"], &["--temperature", "must be a number"]),
    ] {
        run(elf(&[&["sample", model][..], flags].concat())).badly(words);
    }
}

#[test]
fn a_run_in_two_parts_is_a_run_in_one() {
    let folder = TempDir::new().unwrap();
    for objective in ["gpt2", "mdlm"] {
        let option = format!("objective={objective}");
        let (whole, parts) =
            (within(&folder, &format!("{objective}-whole")), within(&folder, &format!("{objective}-parts")));
        let materials = Materials::unconditional();
        materials.train(&whole, &[&option, "proj_dropout=0.1"]).well();
        materials.train(&parts, &[&option, "proj_dropout=0.1", "max_steps=3"]).well();
        let ran = materials.train(&parts, &[&option, "proj_dropout=0.1"]).well();
        assert!(ran.err.contains("resuming"), "{}", ran.err);
        let last = |run: &str| tensors(checkpoints(run).last().unwrap());
        assert!(last(&whole) == last(&parts), "{objective} differs");
        // What another kind of model learned is no beginning.
        materials.train(&parts, &[]).badly(&["another objective", "output_dir"]);
    }
}

#[test]
fn evaluations_in_training_name_losses_and_texts() {
    let folder = TempDir::new().unwrap();
    let shards = Materials::translation().path("shards");
    let held_out = format!("eval_data_path={shards}");
    for (objective, setting) in [("gpt2", "beam-1"), ("mdlm", "mdlm-64")] {
        let output = within(&folder, objective);
        let option = format!("objective={objective}");
        let options = [option.as_str(), &held_out, "online_eval=true", "num_samples=3", "eval_rows=16"];
        Materials::translation().train(&output, &options).well();
        let lines = json_lines(&format!("{output}/metrics.jsonl"));
        let last = lines.last().unwrap();
        for name in ["validation_loss", "validation_nll", &format!("{setting}/BLEU")] {
            assert!(last[name].as_f64().is_some_and(f64::is_finite), "{name} is missing: {last}");
        }
        assert!(lines.iter().any(|line| line["nll"].is_f64() && line["positions_per_s"].is_f64()));
        assert!(Path::new(&format!("{output}/samples/step-00000006-{setting}.jsonl")).is_file());
    }
}

#[test]
fn a_trained_gpt2_judges_as_a_run_and_as_a_folder() {
    let folder = TempDir::new().unwrap();
    let model = Runs::all().path("gpt2", "free");
    let (exported, texts) = (within(&folder, "exported"), within(&folder, "texts.jsonl"));
    run(elf(&["convert", &model, &exported])).well();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        assert!(Path::new(&exported).join(file).is_file(), "{file} is missing");
    }
    sample(&model, &texts, &["-n", "6", "--temperature", "0.8"]).well();
    let judged = |judge: &str| {
        let report = within(&folder, "report.json");
        run(elf(&["eval", "--samples", &texts, "--judge", judge, "-o", &report])).well();
        let report: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&report).unwrap()).unwrap();
        let metrics = report["metrics"].as_array().unwrap().clone();
        let value = |wanted: &str| {
            let found = metrics.iter().find(|m| m["name"].as_str().is_some_and(|name| name.contains(wanted)));
            found.unwrap_or_else(|| panic!("no {wanted} in {metrics:?}"))["value"].as_f64().unwrap()
        };
        [value("PPL"), value("Entropy")]
    };
    // Texts that are only judged are not shown.
    let evaluated =
        run(elf(&["eval", "--run", &model, "-n", "3", "--samples-folder", &within(&folder, "kept")])).well();
    assert!(evaluated.out.contains("| ") && !evaluated.out.contains("[0]"), "{}", evaluated.out);
    let of_run = judged(&model);
    assert!(of_run[0] > 1.0 && of_run[0] < 120.0, "{of_run:?}");
    assert_eq!(of_run, judged(&exported));
    run(elf(&["eval", "--samples", &texts, "--judge", &Runs::all().path("mdlm", "free")]))
        .badly(&["masked diffusion", "objective gpt2"]);
}

#[test]
fn what_has_no_use_for_a_baseline_says_so() {
    let folder = TempDir::new().unwrap();
    let (gpt2, mdlm) = (Runs::all().path("gpt2", "free"), Runs::all().path("mdlm", "free"));
    run(elf(&["convert", &mdlm, &within(&folder, "m.pt")])).badly(&["mdlm", ".safetensors"]);
    run(elf(&["convert", &mdlm, &within(&folder, "m.safetensors")])).well();
    run(elf(&["convert", &gpt2, &within(&folder, "g.safetensors"), "--all"])).badly(&["--all"]);
    let config = Materials::unconditional().path("config.yml");
    let teacher = format!("teacher_path={gpt2}");
    let output = format!("output_dir={}", within(&folder, "student"));
    run(elf(&["distill", &config, "-o", &teacher, "-o", &output])).badly(&["autoregressive", "cannot be distilled"]);
    let output = within(&folder, "run");
    let train = |options: &[&str]| Materials::unconditional().train(&output, options);
    train(&["objective=gpt2", "gradient_checkpointing=true"]).badly(&["gradient_checkpointing"]);
    train(&["objective=gpt3"]).badly(&["objective must be one of", "`mdlm`"]);
}

#[test]
fn no_encoder_is_needed() {
    let folder = TempDir::new().unwrap();
    let tokenizer = format!("tokenizer_name={}", Materials::unconditional().path("tokenizer"));
    let options = ["objective=mdlm", &tokenizer, "encoder_model_name=/nowhere/at/all", "max_steps=2"];
    Materials::unconditional().train(&within(&folder, "run"), &options).well();
}
