//! `elf bench`: every stage at its smallest, and what it writes of them. Speeds are not looked at.

mod tiny_run;

use serde_json::Value;
use tempfile::TempDir;
use tiny_run::{Materials, elf, run, within};

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

/// A flow and GPT-2, each served and asked by one client and by two.
#[test]
fn servers_are_measured_as_clients_see_them() {
    let folder = TempDir::new().unwrap();
    let (flow, gpt2, file) = (within(&folder, "flow"), within(&folder, "gpt2"), within(&folder, "http.json"));
    Materials::unconditional().train(&flow, &["max_steps=1"]).well();
    Materials::unconditional().train(&gpt2, &["max_steps=1", "objective=gpt2"]).well();
    let load = ["--clients", "1,2", "--seconds", "0.5", "--pause", "0.05"];
    let asked = ["--only", "http", "--model", &flow, "--model", &gpt2, "--json", &file];
    let ran = run(elf(&[&SMALL[..], &asked, &load].concat())).well();
    for words in ["flow: an embedded language flow", "32 steps, all shown", "token by token", "reads its weights at"] {
        assert!(ran.out.contains(words), "{}", ran.out);
    }
    let all: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let loads = all["http"].as_array().unwrap();
    // 8, 16 and 32 steps, all steps shown, and GPT-2.
    assert_eq!(loads.len(), 10);
    for load in loads {
        let (seconds, first) = (&load["seconds"], &load["first_frame_seconds"]);
        let [p50, p99, first] = [&seconds[0], &seconds[2], &first[0]].map(|seconds| seconds.as_f64().unwrap());
        assert!(0.0 < first && first <= p50 && p50 <= p99, "{load}");
        assert!(load["positions_per_s"].as_f64().unwrap() > 0.0 && load["memory_bytes"].as_f64().unwrap() > 1e6);
        assert!(load["answered"].as_u64().unwrap() >= load["clients"].as_u64().unwrap(), "{load}");
    }
    assert_eq!(loads.iter().filter(|load| load["every_step"] == true).count(), 2);

    run(elf(&["bench", "--only", "http"])).badly(&["--model"]);
    run(elf(&["bench", "--only", "http", "--model", &flow, "--clients", "0"])).badly(&["--clients", "at least 1"]);
    run(elf(&["bench", "--only", "http", "--model", &flow, "--pause", "nan"])).badly(&["--pause"]);
    let missing = within(&folder, "missing");
    run(elf(&["bench", "--preset", "mini", "--only", "http", "--model", &missing])).badly(&["elf serve", "missing"]);
}

/// Operations agree with their plain forms in every kind, each with a speed; without reference numbers parity is refused.
#[test]
fn operations_are_compared_and_timed() {
    let folder = TempDir::new().unwrap();
    let file = within(&folder, "operations.json");
    let asked = ["--only", "operations", "--only", "speeds", "--json", &file];
    let ran = run(elf(&[&SMALL[..], &asked].concat())).well();
    assert!(ran.out.contains("checks: 16 of 16 hold") && !ran.out.contains("ceilings"), "{}", ran.out);
    let all: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let (checked, speeds) = (all["checked"].as_array().unwrap(), all["speeds"].as_array().unwrap());
    assert!(checked.iter().all(|check| check["beyond"] == serde_json::json!([]) && check["error"].is_null()));
    assert!(speeds.iter().all(|speed| speed["seconds"].as_f64().unwrap() > 0.0 && speed["bytes"].as_u64() > Some(0)));
    assert!(all["matmul_peak_flops"].is_null() && all["gpu_memory_bytes"].is_null());

    let mut parity = elf(&["bench", "--preset", "mini", "--only", "parity"]);
    parity.env("ELF_PARITY_DIR", folder.path());
    run(parity).badly(&["samplers.json"]);
}

#[test]
fn sizes_of_nothing_are_refused() {
    run(elf(&["bench", "--batch", "0"])).badly(&["--batch", "at least 1"]);
    run(elf(&["bench", "--sampling-steps", "0"])).badly(&["--sampling-steps", "at least 1"]);
}
