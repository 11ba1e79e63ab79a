//! Distillation with the program as a user has it: five rounds, one round, interrupted and killed, sampled from.

mod tiny_run;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tiny_run::{LastingFolder, Materials, checkpoints, copy, elf, json_lines, run, tensors, text, within};

/// Optimiser steps of a round, with a checkpoint after each second one.
const STEPS: u64 = 8;
const ROUNDS: [&str; 5] = ["round1_16step", "round2_8step", "round3_4step", "round4_2step", "round5_1step"];

fn distill_command(teacher: &str, output: &str, more: &[&str]) -> Command {
    let steps = format!("max_steps={STEPS}");
    let usual = ["distill", "--teacher", teacher, "--output", output, "-o", &steps, "-o", "save_freq=0.05"];
    elf(&[&usual[..], &["-o", "lr=0.01", "-o", "ema_decay1=0.9", "-o", "warmup_steps=2"], more].concat())
}

fn teacher() -> String {
    Materials::unconditional().path("run")
}

/// All five rounds, undisturbed.
fn distilled() -> &'static str {
    static MADE: OnceLock<(LastingFolder, String)> = OnceLock::new();
    let (_, path) = MADE.get_or_init(|| {
        let folder = LastingFolder::new();
        let output = folder.path("students");
        let done = run(distill_command(&teacher(), &output, &[])).well();
        assert!(done.err.contains("all rounds are done"), "{}", done.err);
        (folder, output)
    });
    path
}

fn round(root: &str, name: &str) -> String {
    text(&Path::new(root).join(name))
}

/// The tensors of each round's last checkpoint.
fn final_tensors(root: &str) -> Vec<[Vec<u8>; 3]> {
    let of = |name: &&str| {
        let last = checkpoints(&round(root, name)).pop().unwrap();
        assert!(last.ends_with(format!("step-{STEPS:08}")), "{}", last.display());
        tensors(&last)
    };
    ROUNDS.iter().map(of).collect()
}

fn plan_of(folder: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(Path::new(folder).join("plan.json")).unwrap()).unwrap()
}

#[test]
fn a_curriculum_leaves_five_students_each_begun_as_the_one_before() {
    let root = distilled();
    let finals = final_tensors(root);
    for (i, name) in ROUNDS.iter().enumerate() {
        let folder = round(root, name);
        let metrics = json_lines(&format!("{folder}/metrics.jsonl"));
        assert_eq!(metrics.len() as u64, STEPS);
        assert!(metrics.iter().all(|m| m["loss"].as_f64().is_some_and(f64::is_finite)));
        let distillation = &plan_of(&folder)["distillation"];
        let steps = 16 >> i;
        assert_eq!(distillation["round"]["student_steps"], steps);
        assert_eq!(distillation["step"]["substeps"], 64 / steps);
        assert_eq!(distillation["step"]["step_size"], 1.0 / f64::from(steps));
        // The teacher is one checkpoint, by its fingerprint.
        assert_eq!(distillation["teacher"], plan_of(&round(root, ROUNDS[0]))["distillation"]["teacher"]);
        assert!(distillation["teacher"]["place"].as_str().unwrap().ends_with("step-00000006"));
        let start = &distillation["start"];
        if i == 0 {
            assert_eq!(*start, "teacher");
        } else {
            let place = start["checkpoint"].as_str().unwrap();
            assert!(place.contains(ROUNDS[i - 1]) && place.ends_with(&format!("step-{STEPS:08}")), "{place}");
            assert!(finals[i] != finals[i - 1], "{name} has learned something");
        }
        let card = fs::read_to_string(Path::new(&folder).join("README.md")).unwrap();
        assert!(card.contains(&format!("student_steps: {steps}\n")), "{card}");
    }
    // Once more does nothing.
    let again = run(distill_command(&teacher(), root, &[])).well();
    assert!(again.err.contains("all rounds are done"), "{}", again.err);
    assert!(final_tensors(root) == finals);
}

#[test]
fn an_exported_student_is_sampled_in_the_steps_that_it_was_made_for() {
    let folder = TempDir::new().unwrap();
    let student = round(distilled(), ROUNDS[0]);
    let [exported, of_run, of_export] = ["exported", "run.jsonl", "export.jsonl"].map(|name| within(&folder, name));
    run(elf(&["export", &student, &exported, "--dtype", "f32"])).well();
    for (model, texts) in [(&student, &of_run), (&exported, &of_export)] {
        let ran = run(elf(&["sample", model, "-n", "4", "-o", texts])).well();
        assert!(ran.err.contains("sde-16-w2-cfg1-gamma2:"), "{}", ran.err);
    }
    assert_eq!(json_lines(&of_run), json_lines(&of_export));
    let card = fs::read_to_string(Path::new(&exported).join("README.md")).unwrap();
    assert!(card.contains("student_steps: 16\n") && card.contains("| distilled | for 16 steps"), "{card}");
}

#[test]
fn the_first_step_of_a_round_starts_from_the_averages_of_the_one_before() {
    let folder = TempDir::new().unwrap();
    let root = within(&folder, "students");
    fs::create_dir(&root).unwrap();
    for name in ["teacher.json", ROUNDS[0]] {
        copy(&Path::new(distilled()).join(name), &Path::new(&root).join(name));
    }
    // With warm-up the first update has learning rate 0: the student is still what it began as.
    run(distill_command(&teacher(), &root, &["--round", "2", "-o", "max_steps=1"])).well();
    let first = tensors(&checkpoints(&round(&root, ROUNDS[1])).pop().unwrap());
    let before = tensors(&checkpoints(&round(&root, ROUNDS[0])).pop().unwrap());
    // Parameters and averages of round 2 are the averages of round 1, but for the files' own headers.
    let body = |file: &[u8]| file[8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize..].to_vec();
    assert!(body(&first[0]) == body(&before[1]) && body(&first[1]) == body(&before[1]));
    assert!(before[0] != before[1]);
}

/// Starts the curriculum and sends `signal` as soon as it has come so far; returns the exit code.
fn disturb(output: &str, signal: &str, so_far: impl Fn() -> bool) -> Option<i32> {
    let mut command = distill_command(&teacher(), output, &[]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    while !so_far() {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "it did not come so far");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
    child.wait().unwrap().code()
}

/// Each round's steps are in its metrics once, in order.
fn assert_whole_metrics(root: &str) {
    for name in ROUNDS {
        let lines = json_lines(&format!("{}/metrics.jsonl", round(root, name)));
        let steps: Vec<u64> = lines.iter().map(|l| l["step"].as_u64().unwrap()).collect();
        assert_eq!(steps, (1..=STEPS).collect::<Vec<_>>(), "{name}");
    }
}

#[cfg(unix)]
#[test]
fn an_interrupted_curriculum_goes_on_in_the_same_round_to_the_same_parameters() {
    let folder = TempDir::new().unwrap();
    let output = within(&folder, "students");
    let saved = |name| !checkpoints(&round(&output, name)).is_empty();
    assert_eq!(disturb(&output, "-INT", || saved(ROUNDS[1])), Some(130));
    assert!(!Path::new(&round(&output, ROUNDS[4])).exists(), "it was over before the signal");
    let resumed = run(distill_command(&teacher(), &output, &[])).well();
    assert!(resumed.err.contains("resuming from"), "{}", resumed.err);
    assert!(!resumed.err.contains("round 1 of 5:"), "round 1 was done: {}", resumed.err);
    assert!(final_tensors(&output) == final_tensors(distilled()), "the parameters differ");
    assert_whole_metrics(&output);
}

#[cfg(unix)]
#[test]
fn a_killed_curriculum_goes_on_from_its_last_checkpoint_to_the_same_parameters() {
    let folder = TempDir::new().unwrap();
    let output = within(&folder, "students");
    let saved = |name| !checkpoints(&round(&output, name)).is_empty();
    let begun = |name| Path::new(&round(&output, name)).join("plan.json").exists();
    // Within a round, and between the beginning of one and its first checkpoint.
    assert_eq!(disturb(&output, "-KILL", || saved(ROUNDS[1])), None);
    assert_eq!(disturb(&output, "-KILL", || begun(ROUNDS[2])), None);
    assert_eq!(disturb(&output, "-KILL", || saved(ROUNDS[3])), None);
    run(distill_command(&teacher(), &output, &[])).well();
    assert!(final_tensors(&output) == final_tensors(distilled()), "the parameters differ");
    assert_whole_metrics(&output);
}

#[test]
fn rounds_one_by_one_are_the_curriculum() {
    let folder = TempDir::new().unwrap();
    let output = within(&folder, "students");
    for number in 1..=3 {
        run(distill_command(&teacher(), &output, &["--round", &number.to_string()])).well();
    }
    let rest = run(distill_command(&teacher(), &output, &[])).well();
    assert!(rest.err.contains("goes on in round 4"), "{}", rest.err);
    assert!(final_tensors(&output) == final_tensors(distilled()));
}

/// Rounds that end before their last step, as held-out rows are no longer learned better: each of them once.
#[test]
fn a_curriculum_goes_on_behind_rounds_that_end_early() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let output = within(&folder, "students");
    let held_out = format!("eval_data_path={}", materials.path("shards"));
    // A learning rate that makes nothing better.
    let options =
        ["-o", &held_out, "-o", "early_stopping=1", "-o", "eval_freq=0.05", "-o", "lr=5", "-o", "warmup_steps=0"];
    let ran = run(distill_command(&teacher(), &output, &options)).well();
    assert_eq!(ran.err.matches("round 2 of 5").count(), 1, "{}", ran.err);
    assert!(ran.err.contains("no longer learned better") && ran.err.contains("all rounds are done"), "{}", ran.err);
    let again = run(distill_command(&teacher(), &output, &options)).well();
    assert!(!again.err.contains("of 5:") && again.err.contains("all rounds are done"), "{}", again.err);
}

#[test]
fn the_released_configuration_works_unchanged() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let path = within(&folder, "distill.yml");
    let output = within(&folder, "students");
    // Its keys, with this corpus, this network and this folder.
    let own = fs::read_to_string(materials.path("config.yml")).unwrap();
    let own: Vec<&str> = own
        .lines()
        .filter(|l| !["max_steps", "warmup_steps", "lr", "save_freq"].contains(&l.split(':').next().unwrap()))
        .collect();
    fs::write(
        &path,
        format!(
            "{}\nmax_steps: 2\npd_teacher_steps: 4\npd_step_size: 0.0625\npd_student_schedule: logit_normal\n\
             pd_teacher_schedule: logit_normal\nteacher_path: \"{}\"\ninitialize_student_from_teacher: true\n\
             teacher_use_ema: true\nstudent_init_from_checkpoint: null\nepochs: 1\nblr: 0.001\nweight_decay: 0.0\n\
             warmup_epochs: 0.1\nwarmup_steps: -1\noptimizer: muon\n\
             sampling_configs_path: \"src/configs/sampling_configs/uncond_fewstep_sampling_configs.yml\"\n\
             num_samples: 500\nsave_freq: 1\noutput_dir: \"{output}/round1_16step\"\nhf_repo_id: null\n\
             resume: null\nuse_wandb: true\nwandb_project: elf\nwandb_entity: null\nwandb_run_name: a-run\n",
            own.join("\n"),
            teacher()
        ),
    )
    .unwrap();
    let planned = run(elf(&["distill", &path, "--plan"])).well();
    assert!(planned.err.contains("goes on in round 1") && planned.err.contains("round 5"), "{}", planned.err);
    assert!(!Path::new(&output).exists(), "a plan writes nothing");
    run(elf(&["distill", &path])).well();
    for name in ROUNDS {
        assert_eq!(checkpoints(&round(&output, name)).len(), 1, "{name}");
    }
    // The released way to run one round, here with one of nobody's curriculum.
    let single = within(&folder, "single");
    let options = ["-o", "pd_step_size=0.2", "-o", "pd_teacher_steps=3", "--output", &single];
    run(elf(&[&["distill", &path], &options[..]].concat())).well();
    assert_eq!(plan_of(&single)["distillation"]["step"]["substeps"], 3);
    assert_eq!(plan_of(&single)["distillation"]["round"], Value::Null);
    assert_eq!(checkpoints(&single).len(), 1);
}

#[test]
fn a_distilled_model_is_sampled_in_the_steps_it_was_made_for() {
    let folder = TempDir::new().unwrap();
    let output = within(&folder, "s.jsonl");
    for (name, steps) in [(ROUNDS[2], 4), (ROUNDS[4], 1)] {
        let sampled = run(elf(&["sample", &round(distilled(), name), "-n", "2", "-o", &output])).well();
        assert!(sampled.err.contains(&format!("sde-{steps}-")), "{}", sampled.err);
        assert!(sampled.err.contains(&format!("{} passes", steps + 1)), "{}", sampled.err);
        assert!(!sampled.err.contains("note:"), "{}", sampled.err);
        assert_eq!(json_lines(&output).len(), 2);
    }
    // The folder of all rounds means the last one.
    let sampled = run(elf(&["sample", distilled(), "-n", "2", "-o", &output])).well();
    assert!(sampled.err.contains("sde-1-"), "{}", sampled.err);
    let fewer = run(elf(&["sample", &round(distilled(), ROUNDS[2]), "-n", "2", "--steps", "2", "-o", &output])).well();
    assert!(fewer.err.contains("distilled for 4 steps"), "{}", fewer.err);
}

#[test]
fn held_out_rows_are_judged_by_what_is_learned() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let output = within(&folder, "students");
    let held_out = format!("eval_data_path={}", materials.path("shards"));
    let options =
        ["--round", "3", "-o", &held_out, "-o", "eval_rows=16", "-o", "online_eval=true", "-o", "num_samples=2"];
    let start = format!("student_init_from_checkpoint={}", teacher());
    run(distill_command(&teacher(), &output, &[&options[..], &["-o", "max_steps=2", "-o", &start]].concat())).well();
    let folder = round(&output, ROUNDS[2]);
    let last = json_lines(&format!("{folder}/metrics.jsonl")).pop().unwrap();
    let value = |key: &str| last[key].as_f64().unwrap_or_else(|| panic!("{key}: {last}"));
    // A mean over rows, of which the share of decode rows is random; each lies between its parts.
    let parts = [value("validation_l2"), value("validation_ce")];
    let loss = value("validation_loss");
    assert!(parts[0].min(parts[1]) <= loss && loss <= parts[0].max(parts[1]), "{last}");
    assert!(Path::new(&folder).join("samples/step-00000002-sde-4-w2.5-cfg1-gamma1.5.jsonl").is_file());
    assert_eq!(plan_of(&folder)["distillation"]["start"]["checkpoint"], teacher());
}

#[test]
fn what_cannot_be_distilled_is_said_in_one_line() {
    let folder = TempDir::new().unwrap();
    let output = within(&folder, "students");
    let distill = |teacher: &str, more: &[&str]| run(distill_command(teacher, &output, more));
    run(elf(&["distill", "--output", &output])).badly(&["teacher_path", "--teacher"]);
    run(elf(&["distill", "--teacher", &teacher()])).badly(&["output_dir"]);
    distill(&within(&folder, "nowhere"), &[]).badly(&["nowhere"]);
    distill(&teacher(), &["--round", "6"]).badly(&["round 6", "1 to 5"]);
    distill(&teacher(), &["--round", "2"]).badly(&["round 2", "round 1", "student_init_from_checkpoint"]);
    distill(&teacher(), &["--single"]).badly(&["pd_teacher_steps", "pd_step_size"]);
    distill(&teacher(), &["--single", "-o", "pd_step_size=2", "-o", "pd_teacher_steps=4"]).badly(&["pd_step_size"]);
    distill(&teacher(), &["-o", "resume=somewhere"]).badly(&["resume"]);
    distill(&teacher(), &["-o", "denoiser_noise_scale=1"]).badly(&["denoiser_noise_scale", "teacher"]);
    distill(&teacher(), &["-o", "self_cond_prob=0"]).badly(&["self_cond_prob", "teacher"]);
    distill(&teacher(), &["-o", "pd_teacher_shedule=uniform"]).badly(&["pd_teacher_shedule", "pd_teacher_schedule"]);
    assert!(!Path::new(&round(&output, ROUNDS[0])).exists());
}

#[test]
fn a_teacher_from_elsewhere_is_the_same_teacher() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let config = materials.path("config.yml");
    for name in ["teacher.safetensors", "teacher.pt"] {
        let (file, output) = (within(&folder, name), within(&folder, &format!("of-{name}")));
        run(elf(&["convert", &teacher(), &file])).well();
        let steps = format!("max_steps={STEPS}");
        let distill = ["distill", &config, "--teacher", &file, "--output", &output, "--round", "1", "-o", &steps];
        run(elf(&distill)).well();
        let last = tensors(&checkpoints(&round(&output, ROUNDS[0])).pop().unwrap());
        assert!(last == final_tensors(distilled())[0], "{name}");
    }
    // It does not say what it was trained with, but another encoder may not fit.
    let (narrow, tokenizer) = (within(&folder, "narrow"), materials.path("tokenizer"));
    let sizes = ["--d-model", "8", "--d-kv", "8", "--d-ff", "16", "--num-layers", "1", "--num-heads", "1"];
    run(elf(&[&["encoder", "init", "--tokenizer", &tokenizer, "--output", &narrow][..], &sizes].concat())).well();
    let (file, encoder) = (within(&folder, "teacher.pt"), format!("encoder_model_name={narrow}"));
    let distill = ["distill", &config, "--teacher", &file, "--output", &within(&folder, "x"), "-o", &encoder];
    run(elf(&distill)).badly(&["teacher", "channels", "16", "8"]);
}

#[test]
fn a_translation_is_distilled_and_sampled_from_text() {
    let (materials, folder) = (Materials::translation(), TempDir::new().unwrap());
    let output = within(&folder, "students");
    run(distill_command(&materials.path("run"), &output, &["--round", "1"])).well();
    let student = round(&output, ROUNDS[0]);
    assert_eq!(plan_of(&student)["label_drop_prob"], 0.1, "as in training");
    let sampled = run(elf(&["sample", &student, "--text", "cat old the"])).well();
    // Condition guidance takes two passes a step.
    assert!(sampled.err.contains("ode-16-") && sampled.err.contains("33 passes"), "{}", sampled.err);
}

#[test]
fn a_deadline_is_for_all_rounds_together() {
    let folder = TempDir::new().unwrap();
    let output = within(&folder, "students");
    let ended = run(distill_command(&teacher(), &output, &["--minutes", "0"])).well();
    assert!(
        ended.err.contains("before round 1") && checkpoints(&round(&output, ROUNDS[0])).is_empty(),
        "{}",
        ended.err
    );
    let ended = run(distill_command(&teacher(), &output, &["--minutes", "0.001", "-o", "max_steps=100000"])).well();
    assert!(ended.err.contains("stopped after the minutes"), "{}", ended.err);
    assert!(!Path::new(&round(&output, ROUNDS[1])).exists());
}

#[test]
fn a_teacher_stays_the_same_teacher() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let teacher = materials.copy("run", &folder);
    let output = within(&folder, "students");
    let distill =
        |teacher: &str, more: &[&str]| run(distill_command(teacher, &output, &[&["-o", "max_steps=2"], more].concat()));
    distill(&teacher, &["--round", "1"]).well();
    // Trained on, it has a later checkpoint; its students go on with the one that they began with.
    materials.train(&teacher, &["max_steps=8"]).well();
    let second = distill(&teacher, &["--round", "2"]).well();
    assert!(second.err.contains("step-00000006"), "{}", second.err);
    distill(&materials.path("run"), &["--round", "3"]).badly(&["learn from", "output_dir"]);
    distill(&teacher, &["--round", "3", "-o", "teacher_use_ema=false"]).badly(&["as trained", "averaged"]);
    // Another network in its place is another teacher.
    let place = Path::new(&teacher).join("checkpoints");
    fs::remove_dir_all(place.join("step-00000006")).unwrap();
    distill(&teacher, &["--round", "3"]).badly(&["has changed", "output_dir"]);
}
