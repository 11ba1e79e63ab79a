//! A run that is interrupted, or killed, ends where one ends that never was; the same for an encoder's training.
#![cfg(unix)]

mod tiny_run;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use elf_train::CheckpointFolder;
use tempfile::TempDir;
use tiny_run::{Materials, checkpoints, elf, json_lines, run, tensors, within};

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
    let command = Materials::unconditional().train_command(output, &OPTIONS);
    disturb_once(command, signal, || checkpoints(output).len() >= after)
}

/// Starts a program and sends `signal` as soon as `ready` says so; returns the exit code.
fn disturb_once(mut command: Command, signal: &str, ready: impl Fn() -> bool) -> Option<i32> {
    let mut child: Child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    while !ready() {
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
    let entries = std::fs::read_dir(format!("{output}/checkpoints")).unwrap();
    let mut others = entries.map(|e| e.unwrap().path()).filter(|path| !checkpoints(&output).contains(path));
    assert!(others.all(|path| path.ends_with("evaluations.json")), "what was half written is gone");
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

#[test]
fn interrupted_sampling_goes_on_to_the_same_file() {
    let (model, folder) = (Materials::unconditional().path("run"), TempDir::new().unwrap());
    let [undisturbed, output] = ["undisturbed.jsonl", "texts.jsonl"].map(|name| within(&folder, name));
    let partial = format!("{output}.partial");
    let batches = || std::fs::read_to_string(&partial).map_or(0, |text| text.lines().count().saturating_sub(1));
    // Of two texts the surest, in batches that part them.
    let sampling = |output: &str, more: &[&str]| {
        let fixed = ["sample", &model, "-n", "100", "--best-of", "2", "--batch-size", "3", "--steps", "40", "--ragged"];
        elf(&[&fixed[..], &["-o", output], more].concat())
    };
    run(sampling(&undisturbed, &[])).well();
    assert_eq!(disturb_once(sampling(&output, &[]), "-INT", || batches() >= 3), Some(130));
    let kept = batches();
    assert!((3..67).contains(&kept) && !Path::new(&output).exists(), "it was over before the signal: {kept}");
    run(sampling(&output, &["--seed", "1"])).badly(&["texts.jsonl.partial", "--seed", "remove the file"]);
    assert_eq!(batches(), kept, "what was refused has changed nothing");
    assert_eq!(disturb_once(sampling(&output, &[]), "-KILL", || batches() >= kept + 3), None);
    let resumed = run(sampling(&output, &[])).well();
    assert!(resumed.err.contains("going on with") && resumed.err.contains("and an earlier call"), "{}", resumed.err);
    let [one, other] = [&undisturbed, &output].map(|path| std::fs::read(path).unwrap());
    assert!(one == other, "the texts differ");
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "nothing else is left: {left:?}");
}

/// A setting that is done is not made anew when a later one was interrupted.
#[test]
fn several_settings_go_on_where_they_were() {
    let (model, folder) = (Materials::unconditional().path("run"), TempDir::new().unwrap());
    let [settings, output] = ["s.yml", "texts.jsonl"].map(|name| within(&folder, name));
    std::fs::write(&settings, "- num_sampling_steps: [2, 60]\n").unwrap();
    let sampling =
        || elf(&["sample", &model, "-n", "200", "--batch-size", "2", "--sampling-config", &settings, "-o", &output]);
    let file = |steps: u32| within(&folder, &format!("texts-sde-{steps}-w3-cfg1-gamma1.5.jsonl"));
    let begun = || std::fs::read_to_string(format!("{}.partial", file(60))).is_ok_and(|text| text.lines().count() > 2);
    assert_eq!(disturb_once(sampling(), "-INT", begun), Some(130));
    assert!(Path::new(&file(2)).exists() && !Path::new(&file(60)).exists());
    let resumed = run(sampling()).well();
    assert_eq!(resumed.err.matches("going on with").count(), 2, "{}", resumed.err);
    assert_eq!(json_lines(&file(2)).len() + json_lines(&file(60)).len(), 400);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
}

/// Pre-training of an encoder that saves after nearly every step.
fn pretraining(output: &str, more: &[&str]) -> Command {
    pretraining_on(Materials::unconditional(), "text", output, more)
}

/// The same on texts of one's choice.
fn pretraining_on(materials: &Materials, column: &str, output: &str, more: &[&str]) -> Command {
    let (corpus, tokenizer) = (format!("{}:{column}", materials.path("corpus.jsonl")), materials.path("tokenizer"));
    let texts = ["encoder", "train", "--text", &corpus, "--validation", &corpus, "--tokenizer", &tokenizer];
    let sizes = ["--d-model", "16", "--d-kv", "8", "--d-ff", "32", "--num-layers", "1", "--num-heads", "2"];
    let rest = ["--batch-tokens", "256", "--save-minutes", "0.0001", "--device", "cpu", "--output", output];
    elf(&[&texts[..], &sizes, &rest, more].concat())
}

#[test]
fn pretraining_of_an_encoder_goes_on_to_the_same_encoder() {
    let folder = TempDir::new().unwrap();
    let [undisturbed, output] = ["undisturbed", "encoder"].map(|name| within(&folder, name));
    let begun = folder.path().join("encoder.training");
    let saved = |least: u64| {
        let latest = CheckpointFolder::new(&begun).list().unwrap().pop();
        latest.is_some_and(|(step, _)| step >= least)
    };
    let steps = ["--steps", "150"];
    run(pretraining(&undisturbed, &steps)).well();

    assert_eq!(disturb_once(pretraining(&output, &steps), "-INT", || saved(5)), Some(130));
    assert!(!Path::new(&output).exists(), "it was over before the signal");
    let held = std::fs::File::open(begun.join(".lock")).unwrap();
    held.lock().unwrap();
    run(pretraining(&output, &steps)).badly(&["another process", "encoder.training"]);
    drop(held);
    assert_eq!(disturb_once(pretraining(&output, &steps), "-KILL", || saved(40)), None);
    run(pretraining(&output, &["--steps", "150", "--seed", "1"])).badly(&["encoder.training", "--seed", "(0, now 1)"]);
    let resumed = run(pretraining(&output, &steps)).well();
    assert!(resumed.out.contains("resuming from"), "{}", resumed.out);
    for file in ["model.safetensors", "latent_stats.json"] {
        let [one, other] = [&undisturbed, &output].map(|f| std::fs::read(Path::new(f).join(file)).unwrap());
        assert!(one == other, "{file} differs");
    }
    assert!(!begun.exists(), "what it went on from is no longer needed");
    run(pretraining(&output, &steps)).badly(&[&output, "already exists"]);
}

#[test]
fn pretraining_on_pairs_may_be_ended_where_it_was_interrupted() {
    let pretraining = |output: &str, more: &[&str]| pretraining_on(Materials::translation(), "de+en", output, more);
    let folder = TempDir::new().unwrap();
    let output = within(&folder, "encoder");
    let begun = CheckpointFolder::new(folder.path().join("encoder.training"));
    let saved = || begun.list().unwrap().pop().is_some_and(|(step, _)| step >= 5);
    let long = ["--steps", "1000000"];
    assert_eq!(disturb_once(pretraining(&output, &long), "-INT", saved), Some(130));
    let (step, _) = begun.list().unwrap().pop().unwrap();
    let ended = run(pretraining(&output, &["--steps", "1"])).well();
    assert!(ended.out.contains(&format!("; {step} steps over")), "{}", ended.out);
    // Both sentences of a row and what parts them are one text.
    assert!(ended.out.starts_with("320 texts of "), "{}", ended.out);
    let card = std::fs::read_to_string(format!("{output}/README.md")).unwrap();
    assert!(card.contains("corpus.jsonl:de+en`; 320 texts"), "{card}");
    run(pretraining_on(Materials::translation(), "de+fr", &within(&folder, "x"), &long)).badly(&["fr"]);
}

#[test]
fn an_encoder_learns_texts_and_tasks_side_by_side() {
    let (materials, folder) = (Materials::translation(), TempDir::new().unwrap());
    let output = within(&folder, "encoder");
    let task = format!("{}:de=en", materials.path("corpus.jsonl"));
    let more = ["--text", &task, "--text", &task, "--validation", &task, "--steps", "60"];
    let learned = run(pretraining_on(materials, "en", &output, &more)).well();
    let of_each =
        learned.out.lines().filter(|l| l.contains("held-out loss") && l.contains(" (en ") && l.contains(", de=en "));
    assert!(of_each.count() > 5, "{}", learned.out);
    assert!(learned.out.starts_with("960 texts of "), "{}", learned.out);
    let card = std::fs::read_to_string(format!("{output}/README.md")).unwrap();
    assert!(card.contains("by span corruption, and tasks beside it"), "{card}");
    assert!(card.contains("corpus.jsonl:de=en`, `") && card.contains("--text"), "{card}");
    for (column, named) in [("de=fr", "fr"), ("de=", "FILE:COLUMN=COLUMN"), ("de=en=de", "FILE:COLUMN=COLUMN")] {
        run(pretraining_on(materials, column, &within(&folder, "x"), &["--steps", "1"])).badly(&[named]);
    }
}
