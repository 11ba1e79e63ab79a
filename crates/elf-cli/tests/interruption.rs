//! A run that is interrupted, or killed, ends where one ends that never was.
#![cfg(unix)]

mod tiny_run;

use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tiny_run::{Materials, checkpoints, json_lines, tensors, within};

const STEPS: u64 = 160;
/// A checkpoint every ten steps, all of which stay.
const OPTIONS: [&str; 3] = ["max_steps=160", "save_freq=0.25", "keep_checkpoints=1000"];

/// The tensors of a run that nobody disturbed.
fn undisturbed() -> &'static [Vec<u8>; 3] {
    static TENSORS: OnceLock<[Vec<u8>; 3]> = OnceLock::new();
    TENSORS.get_or_init(|| {
        let folder = TempDir::new().unwrap();
        let output = within(&folder, "run");
        Materials::unconditional().train(&output, &OPTIONS).well();
        final_tensors(&output)
    })
}

fn final_tensors(output: &str) -> [Vec<u8>; 3] {
    let last = checkpoints(output).pop().unwrap();
    assert!(last.ends_with(format!("step-{STEPS:08}")), "{}", last.display());
    tensors(&last)
}

/// Starts training and sends `signal` as soon as there are `after` checkpoints; returns the exit code.
fn disturb(output: &str, signal: &str, after: usize) -> Option<i32> {
    let mut command = Materials::unconditional().train_command(output, &OPTIONS);
    let mut child: Child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    while checkpoints(output).len() < after {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "no checkpoint came");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
    child.wait().unwrap().code()
}

/// The steps in metrics.jsonl: each once, in order.
fn assert_whole_metrics(output: &str) {
    let lines = json_lines(&format!("{output}/metrics.jsonl"));
    let steps: Vec<u64> = lines.iter().map(|l| l["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=STEPS).collect::<Vec<_>>());
}

#[test]
fn an_interrupted_run_saves_and_goes_on_to_the_same_parameters() {
    let folder = TempDir::new().unwrap();
    let output = within(&folder, "run");
    assert_eq!(disturb(&output, "-INT", 1), Some(130));
    let saved = checkpoints(&output).len();
    assert!(saved >= 1);
    assert!(
        !checkpoints(&output).pop().unwrap().ends_with(format!("step-{STEPS:08}")),
        "it was over before the signal"
    );
    let resumed = Materials::unconditional().train(&output, &OPTIONS).well();
    assert!(resumed.err.contains("resuming from"), "{}", resumed.err);
    assert!(final_tensors(&output) == *undisturbed(), "the parameters differ");
    assert_whole_metrics(&output);
    // Once more does nothing.
    let again = Materials::unconditional().train(&output, &OPTIONS).well();
    assert!(again.err.contains("finished after step 160"), "{}", again.err);
    assert!(final_tensors(&output) == *undisturbed());
}

#[test]
fn a_killed_run_goes_on_from_its_last_checkpoint_to_the_same_parameters() {
    let folder = TempDir::new().unwrap();
    let output = within(&folder, "run");
    // Twice, at different moments of a save.
    for after in [1, 4] {
        assert_eq!(disturb(&output, "-KILL", after), None);
    }
    Materials::unconditional().train(&output, &OPTIONS).well();
    assert!(final_tensors(&output) == *undisturbed(), "the parameters differ");
    assert_whole_metrics(&output);
    let left: Vec<_> = std::fs::read_dir(format!("{output}/checkpoints")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(left.len(), checkpoints(&output).len(), "what was half written is gone: {left:?}");
}

#[test]
fn a_resumed_run_may_be_made_longer() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let output = materials.copy("run", &folder);
    let longer = materials.train(&output, &["max_steps=8"]).well();
    assert!(longer.err.contains("(step 6)"), "{}", longer.err);
    let fresh = within(&folder, "fresh");
    materials.train(&fresh, &["max_steps=8"]).well();
    let last = |run: &str| tensors(&checkpoints(run).pop().unwrap());
    assert!(last(&output) == last(&fresh));
}
