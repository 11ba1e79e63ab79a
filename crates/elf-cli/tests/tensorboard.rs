//! Event files, read by TensorBoard itself. Skipped, with a message, where Python or the package is not to be had.

mod python_package;
mod tiny_run;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tiny_run::{Materials, elf, run};

/// What TensorBoard finds in a folder, or `None` where it cannot be installed.
fn seen_by_tensorboard(folder: &str) -> Option<Value> {
    let python = match python_package::python_with("tensorboard") {
        Ok(python) => python,
        Err(reason) => {
            eprintln!("skipped: the package tensorboard cannot be installed ({reason})");
            return None;
        }
    };
    let reader = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tensorboard_reader.py");
    let output = Command::new(python).arg(reader).arg(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

/// The scalars of a run by name and step, from its metrics.jsonl.
fn logged(run: &str) -> BTreeMap<(String, u64), f64> {
    let mut found = BTreeMap::new();
    for line in fs::read_to_string(format!("{run}/metrics.jsonl")).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let step = line["step"].as_u64().unwrap();
        for (name, value) in line.as_object().unwrap().iter().filter(|(name, _)| *name != "step" && *name != "seconds")
        {
            if let Some(value) = value.as_f64() {
                found.insert((name.clone(), step), value);
            }
        }
    }
    found
}

/// The name in metrics.jsonl of a tag.
fn name_of(tag: &str) -> String {
    let (group, name) = tag.split_once('/').unwrap();
    let (prefix, group) = match group.strip_prefix("held_out") {
        Some(rest) => ("validation_", rest),
        None => match group.strip_prefix("train") {
            Some(rest) => ("", rest),
            None => return tag.to_owned(),
        },
    };
    match group.strip_prefix('_').and_then(|group| group.strip_suffix("_by_t")) {
        Some(term) => format!("{prefix}{term}@{name}"),
        None => format!("{prefix}{name}"),
    }
}

#[test]
fn tensorboard_finds_every_scalar_of_a_resumed_run() {
    let materials = Materials::unconditional();
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("run").display().to_string();
    let held_out = format!("eval_data_path={}", materials.path("shards"));
    let settings =
        ["online_eval=true", "num_samples=3", "eval_rows=8", "eval_freq=0.05", "keep_checkpoints=9", &held_out];
    materials.train(&output, &settings).well();
    // The run goes back to step 4: what its first file says of steps 5 and 6 is replaced.
    fs::remove_dir_all(format!("{output}/checkpoints/step-00000006")).unwrap();
    materials.train(&output, &settings).well();
    let files = fs::read_dir(&output)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("events.out.tfevents."));
    assert_eq!(files.count(), 2);
    let Some(seen) = seen_by_tensorboard(&output) else { return };

    let mut expected = logged(&output);
    assert!(expected.keys().any(|(name, step)| name == "validation_l2" && *step == 6), "{expected:?}");
    assert!(expected.keys().any(|(name, _)| name.contains('@')) && expected.keys().any(|(name, _)| name.contains('/')));
    for (tag, events) in seen["scalars"].as_object().unwrap() {
        for event in events.as_array().unwrap() {
            let (step, value) = (event[0].as_u64().unwrap(), event[1].as_f64().unwrap());
            let key = (name_of(tag), step);
            let logged =
                expected.remove(&key).unwrap_or_else(|| panic!("{key:?} is not in metrics.jsonl, or twice here"));
            assert!((logged - value).abs() <= 1e-6 * logged.abs(), "{key:?}: {logged} and {value}");
        }
    }
    assert!(expected.is_empty(), "TensorBoard does not find {:?}", expected.keys());
    let texts = seen["texts"].as_object().unwrap();
    assert!(!texts.is_empty() && texts.keys().all(|tag| tag.ends_with("/texts")), "{texts:?}");
    for events in texts.values() {
        assert_eq!(events.as_array().unwrap().last().unwrap()[1].as_array().unwrap().len(), 3);
    }
    let settings = &seen["settings"];
    assert_eq!((settings["lr"].as_f64(), settings["num_samples"].as_f64()), (Some(0.01), Some(3.0)), "{settings}");
}

#[test]
fn a_key_turns_event_files_off() {
    let materials = Materials::unconditional();
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("run").display().to_string();
    materials.train(&output, &["tensorboard=false"]).well();
    assert!(fs::read_dir(&output).unwrap().all(|e| !e.unwrap().file_name().to_string_lossy().contains("tfevents")));
}

#[test]
fn tensorboard_shows_an_encoders_training() {
    let materials = Materials::unconditional();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let text = format!("{}:text", materials.path("corpus.jsonl"));
    let (tokenizer, output, events) = (materials.path("tokenizer"), path("encoder"), path("events"));
    let sizes = ["--d-model", "16", "--d-kv", "8", "--d-ff", "32", "--num-layers", "1", "--num-heads", "2"];
    let command = ["encoder", "train", "--text", &text, "--validation", &text, "--tokenizer", &tokenizer];
    let settings = ["--steps", "4", "--log-every", "2", "--output", &output, "--tensorboard", &events];
    run(elf(&[&command[..], &sizes, &settings].concat())).well();
    let Some(seen) = seen_by_tensorboard(&events) else { return };
    let steps =
        |tag: &str| seen["scalars"][tag].as_array().unwrap().iter().map(|e| e[0].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(steps("train/loss"), [2, 4]);
    assert_eq!(steps("held_out/loss").last(), Some(&4));
    assert_eq!(seen["settings"]["steps"].as_f64(), Some(4.0));
}
