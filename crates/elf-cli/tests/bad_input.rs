//! What goes wrong in a user's hands: one clear message, an exit code, and nothing lost.

mod tiny_run;

use std::fs::{self, OpenOptions};
use std::path::Path;

use tempfile::TempDir;
use tiny_run::{Materials, Ran, checkpoints, elf, elf_with_file_limit, elf_with_limits, run, tensors, text, within};

/// Trains into a folder that is not there yet, with settings changed; asserts that it fails and leaves nothing behind.
#[track_caller]
fn refused(materials: &Materials, options: &[&str], words: &[&str]) {
    let folder = TempDir::new().unwrap();
    let output = within(&folder, "run");
    materials.train(&output, options).badly(words);
    assert!(!Path::new(&output).exists(), "a run that cannot begin leaves a folder");
}

fn cut(path: &Path, bytes: u64) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() - bytes).unwrap();
}

fn sample(model: &str, more: &[&str]) -> Ran {
    run(elf(&[&["sample", model, "--steps", "2"], more].concat()))
}

#[test]
fn shards_that_are_missing_damaged_or_of_another_tokenizer() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    refused(materials, &["data_path=/none/here"], &["data_path", "/none/here"]);
    let empty = within(&folder, "empty");
    fs::create_dir(&empty).unwrap();
    refused(materials, &[&format!("data_path={empty}")], &["no token shards", &empty, "elf data prepare"]);

    let shards = materials.copy("shards", &folder);
    cut(&Path::new(&shards).join("shard-00000.parquet"), 100);
    refused(materials, &[&format!("data_path={shards}")], &["shard-00000.parquet", "truncated", "elf data prepare"]);
    run(elf(&["data", "inspect", &shards])).badly(&["shard-00000.parquet", "truncated"]);

    let (corpus, other) = (materials.path("corpus.jsonl"), within(&folder, "other"));
    run(elf(&["tokenizer", "train", "--input", &corpus, "--vocab-size", "60", "--output", &other])).well();
    let option = format!("tokenizer_name={other}");
    refused(materials, &[&option], &["shards", "another tokenizer", "prepare the text again"]);
}

#[test]
fn columns_and_files_that_are_not_there() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let (corpus, tokenizer) = (materials.path("corpus.jsonl"), materials.path("tokenizer"));
    let output = within(&folder, "shards");
    let prepare = |more: &[&str]| run(elf(&[&["data", "prepare", "--output", &output], more].concat()));
    prepare(&["--input", &corpus, "--tokenizer", &tokenizer, "--target-column", "txet"])
        .badly(&["`txet`", "did you mean `text`?"]);
    prepare(&["--input", "/none/here", "--tokenizer", &tokenizer]).badly(&["/none/here"]);
    prepare(&["--input", &corpus, "--tokenizer", "/none/here"]).badly(&["tokenizer", "/none/here"]);
    assert!(!Path::new(&output).exists(), "nothing is begun");
    run(elf(&["eval", "--samples", "/none/here"])).badly(&["/none/here"]);
    run(elf(&["eval", "--samples", &materials.path("config.yml")])).badly(&["config.yml", "line 1", "JSON"]);
    run(elf(&["encoder", "stats", "/none/here", "--data", &output, "--max-length", "18446744073709551615"]))
        .badly(&["--max-length", "65536"]);
    run(elf(&["encoder", "stats", "/none/here", "--data", &output])).badly(&["encoder", "/none/here"]);
    refused(materials, &["encoder_model_name=/none/here"], &["/none/here"]);
}

/// What is in its folder is named, and a network that is not there costs no waits.
#[test]
fn a_mistyped_path_that_could_be_an_id() {
    let folder = TempDir::new().unwrap();
    fs::create_dir_all(folder.path().join("runs/other")).unwrap();
    fs::create_dir(folder.path().join("runs/first-try")).unwrap();
    let mut command = elf(&["sample", "runs/first-tyr"]);
    command.current_dir(folder.path()).env("HF_HUB_CACHE", folder.path()).env("HF_ENDPOINT", "http://127.0.0.1:1");
    let ran =
        run(command).badly(&["no local file or folder `runs/first-tyr`", "has first-try, other", "cannot be reached"]);
    assert!(!ran.err.contains("trying again"), "{}", ran.err);
}

#[test]
fn configurations_that_are_missing_or_no_yaml() {
    let folder = TempDir::new().unwrap();
    run(elf(&["train", "/none/here.yml"])).badly(&["configuration", "/none/here.yml"]);
    run(elf(&["train"])).badly(&["data_path is not set"]);
    let path = within(&folder, "config.yml");
    fs::write(&path, "max_length: [1,\nepochs: }\n").unwrap();
    run(elf(&["train", &path])).badly(&["config.yml is not YAML", "line"]);
    fs::write(&path, "just words\n").unwrap();
    run(elf(&["train", &path])).badly(&["config.yml", "keys"]);
}

#[test]
fn settings_that_make_no_model() {
    let materials = Materials::unconditional();
    refused(materials, &["hiden_size=32"], &["`hiden_size`", "`hidden_size`"]);
    refused(materials, &["hidden_size=30"], &["hidden_size 30", "num_heads 2"]);
    refused(materials, &["max_length=long"], &["max_length is \"long\"", "a whole number"]);
    refused(materials, &["model=ELF-X"], &["`ELF-X`", "ELF-B"]);
    refused(materials, &["max_input_length=6"], &["no conditions", "--condition-column"]);
    refused(materials, &["batch_size=1000"], &["320 rows", "1000"]);
    let translation = Materials::translation();
    refused(translation, &["max_input_length=22"], &["max_input_length 22", "max_length 22"]);
    refused(translation, &["learned_latents=true"], &["learned_latents", "unconditional"]);
    refused(materials, &["learned_latents=true", "causal_latents=true"], &["causal_latents", "learned_latents"]);
}

/// Known before the first step, not after the first epoch.
#[test]
fn evaluations_that_cannot_be_made() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let settings = within(&folder, "s.yml");
    let named = format!("sampling_configs_path={settings}");
    let with = |text: &str, words: &[&str]| {
        fs::write(&settings, text).unwrap();
        refused(materials, &["online_eval=true", &named], words);
    };
    with("- sampling_method: eular\n", &["sampling_configs_path", "`eular`"]);
    with("- guide: weak\n", &["sampling_configs_path", "weak", "elf sample"]);
    with("- num_sampling_steps: [0]\n", &["sampling_configs_path", "step"]);
    with("- decode_at: 2\n", &["sampling_configs_path", "decode_at"]);
    with("- best_of: 0\n", &["sampling_configs_path", "best_of"]);
    with("- num_sampling_steps: []\n", &["sampling_configs_path", "num_sampling_steps", "empty list"]);
    refused(materials, &["online_eval=true", "num_samples=0"], &["num_samples", "at least 1"]);
    refused(materials, &["online_eval=true", "num_samples=99999999999"], &["num_samples", "at most"]);
    let held_out = format!("eval_data_path={}", materials.path("shards"));
    refused(materials, &[&held_out, "eval_rows=0"], &["eval_rows", "at least 1"]);
    refused(Materials::translation(), &["online_eval=true"], &["online_eval", "eval_data_path"]);
    fs::write(&settings, "- num_sampling_steps: [0]\n").unwrap();
    refused(materials, &["online_eval=true", "objective=mdlm", &named], &["sampling_configs_path", "step"]);
    // Without texts to generate, none of this matters.
    let mut plan = materials.train_command(&within(&folder, "run"), &["num_samples=0", &named]);
    plan.arg("--plan");
    run(plan).well();
}

#[test]
fn a_model_that_no_machine_holds() {
    refused(Materials::unconditional(), &["hidden_size=65536", "depth=1000"], &["parameters", "hidden_size or depth"]);
}

#[cfg(unix)]
#[test]
fn memory_that_runs_out_is_one_line_too() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let (config, output) = (materials.path("config.yml"), within(&folder, "run"));
    // More than the limit, less than the machine has: the plan lets it pass, the first batch has no room.
    let args = ["train", &config, "--output", &output, "-o", "max_length=100000"];
    run(elf_with_limits("ulimit -v 4000000", &args)).badly(&["out of memory", "shorter sequences"]);
    assert!(checkpoints(&output).is_empty());
}

#[test]
fn devices_that_are_not_there() {
    let model = Materials::unconditional().path("run");
    sample(&model, &["--device", "gpu"]).badly(&["`gpu`", "cuda:N"]);
    sample(&model, &["--device", "cuda:99"]).badly(&["cuda:99", "--device cpu"]);
}

#[test]
fn samplers_that_are_misspelt_or_have_no_such_setting() {
    let (model, folder) = (Materials::unconditional().path("run"), TempDir::new().unwrap());
    sample(&model, &["--sampler", "eular"]).badly(&["`eular`", "euler"]);
    sample(&model, &["--sampler", "euler", "--sde-gamma", "1"]).badly(&["--sde-gamma", "`euler`"]);
    sample(&model, &["--sde-gamma=-1"]).badly(&["gamma", "-1"]);
    sample(&model, &["--batch-size", "0"]).badly(&["--batch-size"]);
    sample(&model, &["-n", "0"]).badly(&["--num"]);
    for (flag, most) in [("--num", "1000000"), ("--batch-size", "65536")] {
        sample(&model, &[flag, "18446744073709551615"]).badly(&[flag, "18446744073709551615", most]);
    }
    sample(&model, &["-n", "1000000", "--best-of", "2"]).badly(&["best_of 2", "ask for fewer"]);
    sample(&model, &["--sde-gamma", "NaN"]).badly(&["--sde-gamma", "NaN", "a number"]);
    sample("/none/here", &["--batch-size", "0"]).badly(&["--batch-size"]);
    run(elf(&["sample", &model, "--steps", "0"])).badly(&["step"]);
    let settings = within(&folder, "s.yml");
    fs::write(&settings, "- sampling_metod: sde\n").unwrap();
    sample(&model, &["--sampling-config", &settings]).badly(&["s.yml", "`sampling_metod`", "`sampling_method`"]);
    fs::write(&settings, "- num_sampling_steps: []\n").unwrap();
    sample(&model, &["--sampling-config", &settings]).badly(&["s.yml", "num_sampling_steps", "empty list"]);
    fs::write(&settings, "- num_sampling_steps: [4, 4]\n").unwrap();
    run(elf(&["sample", &model, "--sampling-config", &settings])).badly(&["sde-4-w3-cfg1-gamma1.5", "leave one out"]);
    // An option in place of a list leaves one setting of several.
    fs::write(&settings, "- num_sampling_steps: [4, 8]\n").unwrap();
    assert_eq!(sample(&model, &["-n", "3", "--sampling-config", &settings]).well().out.lines().count(), 3);
    // Known before the model is looked for.
    let output = text(folder.path());
    sample("/none/here", &["-o", &output]).badly(&["could not be written", "a folder", &output]);
}

#[test]
fn inputs_that_do_not_suit_the_model() {
    let (free, translator) = (Materials::unconditional().path("run"), Materials::translation().path("run"));
    sample(&free, &["--text", "a dog"]).badly(&["unconditional", "no input"]);
    sample(&translator, &[]).badly(&["--text", "--input"]);
    let corpus = Materials::translation().path("corpus.jsonl");
    sample(&translator, &["--input", &corpus, "--input-column", "fr"]).badly(&["`fr`", "`de`", "--input-column"]);
    sample(&free, &["--input", &corpus]).badly(&["no input"]);
    // No network is asked for what can only be a file.
    sample(&translator, &["--input", "data/none.parquet"]).badly(&["data/none.parquet", "no such file"]);
    sample(&free, &["-o", "steps=4"]).badly(&["-o steps=4", "--help"]);
}

#[test]
fn folders_without_a_checkpoint() {
    let materials = Materials::unconditional();
    let folder = TempDir::new().unwrap();
    sample("/none/here", &[]).badly(&["/none/here"]);
    sample(&materials.path("shards"), &[]).badly(&["shards holds no checkpoint", "elf train"]);
    let empty = within(&folder, "empty");
    fs::create_dir(&empty).unwrap();
    refused(materials, &["max_minutes=-1"], &["max_minutes", "null"]);
    refused(materials, &[&format!("resume={empty}")], &[&empty, "no checkpoint"]);
    // A file beside us has no folder in its name.
    let mut command = elf(&["sample", "config.yml"]);
    command.current_dir(materials.path(""));
    run(command).badly(&["config.yml holds no checkpoint"]);
}

#[test]
fn checkpoints_that_are_damaged_are_named_and_the_one_before_serves() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let model = materials.copy("run", &folder);
    let last = checkpoints(&model).pop().unwrap();
    cut(&last.join("ema.safetensors"), 5);
    let words = ["step-00000006", "ema.safetensors", "remove this folder"];
    sample(&model, &[]).badly(&words);
    materials.train(&model, &["max_steps=8"]).badly(&words);
    // Same length, another content: found before training goes on from it.
    let whole = fs::read(Path::new(&materials.path("run")).join("checkpoints/step-00000006/ema.safetensors")).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    fs::write(last.join("ema.safetensors"), flipped).unwrap();
    materials.train(&model, &["max_steps=8"]).badly(&words);
    fs::write(last.join("state.json"), "{\"format\": 1, ").unwrap();
    sample(&model, &[]).badly(&["step-00000006", "state.json is damaged"]);
    // The remedy works.
    fs::remove_dir_all(&last).unwrap();
    sample(&model, &[]).well();
    assert!(materials.train(&model, &[]).well().err.contains("(step 4)"));
    assert!(fs::read(last.join("ema.safetensors")).unwrap() == whole);
}

#[test]
fn resuming_with_other_settings_is_refused_and_the_run_is_as_it_was() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let model = materials.copy("run", &folder);
    let last = checkpoints(&model).pop().unwrap();
    let (before, metrics) = (tensors(&last), fs::read(format!("{model}/metrics.jsonl")).unwrap());
    for (option, what) in [
        ("hidden_size=64", "size of the model"),
        ("max_length=14", "max_length"),
        ("seed=5", "seed"),
        ("optimizer=adamw", "optimizer"),
        ("batch_size=4", "batch size"),
    ] {
        materials.train(&model, &["max_steps=8", option]).badly(&["step-00000006", what, "another output_dir"]);
    }
    assert_eq!(checkpoints(&model).pop().unwrap(), last);
    assert!(tensors(&last) == before && fs::read(format!("{model}/metrics.jsonl")).unwrap() == metrics);
}

#[test]
fn a_loss_that_is_no_number_ends_the_run_and_leaves_the_last_checkpoint_whole() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let model = materials.copy("run", &folder);
    let last = checkpoints(&model).pop().unwrap();
    let before = tensors(&last);
    materials.train(&model, &["max_steps=60", "lr=1e30"]).badly(&["step ", "last checkpoint", "lower learning rate"]);
    assert_eq!(checkpoints(&model).pop().unwrap(), last, "nothing was saved after the loss was lost");
    assert!(tensors(&last) == before);
    sample(&model, &["-n", "1"]).well();
    // Latents that are no numbers from the start.
    let output = within(&folder, "new");
    materials.train(&output, &["latent_std=1e-30"]).badly(&["step 0", "loss"]);
    assert!(checkpoints(&output).is_empty());
}

#[cfg(unix)]
#[test]
fn a_full_disk_is_named_and_the_earlier_checkpoint_is_whole() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let model = within(&folder, "run");
    // Wide enough that parameters take more room than everything else that is written.
    materials.train(&model, &["hidden_size=128", "max_steps=2"]).well();
    let last = checkpoints(&model).pop().unwrap();
    let before = tensors(&last);
    let files = fs::read_dir(last.parent().unwrap()).unwrap().count();
    let (room, tokenizer) = (600, fs::metadata(format!("{model}/tokenizer.json")).unwrap().len());
    assert!(before[0].len() > room * 1024 && tokenizer < room as u64 * 1024);
    let config = materials.path("config.yml");
    let options = ["train", &config, "--output", &model, "-o", "hidden_size=128", "-o", "max_steps=4"];
    let full = run(elf_with_file_limit(room, &options)).badly(&["cannot write", "model.safetensors"]);
    assert!(full.err.contains("resuming from"), "{}", full.err);
    assert_eq!(checkpoints(&model), std::slice::from_ref(&last));
    assert!(tensors(&last) == before);
    assert_eq!(fs::read_dir(last.parent().unwrap()).unwrap().count(), files, "nothing half written is left");
    // With room again, the same command goes on.
    assert!(run(elf(&options)).well().err.contains("(step 2)"));

    // Other files, too: named, and not half there.
    let shards = within(&folder, "shards");
    let [corpus, tokenizer] = ["corpus.jsonl", "tokenizer"].map(|name| materials.path(name));
    let args = ["data", "prepare", "--input", &corpus, "--tokenizer", &tokenizer, "--output", &shards];
    run(elf_with_file_limit(1, &args)).badly(&["cannot write", "shard-00000.parquet"]);
    assert!(!Path::new(&shards).join("shard-00000.parquet").exists());
    run(elf(&args)).well();
    let texts = within(&folder, "s.jsonl");
    let args = ["sample", &model, "--steps", "2", "-n", "40", "-o", &texts];
    run(elf_with_file_limit(1, &args)).badly(&["could not be written", "s.jsonl"]);
    assert!(!Path::new(&texts).exists());
}

#[test]
fn a_reference_that_is_missing_is_named() {
    let folder = TempDir::new().unwrap();
    let path = within(&folder, "pairs.jsonl");
    let pair = "{\"prediction\": \"a\", \"reference\": \"a\"}\n";
    fs::write(&path, format!("{pair}{{\"prediction\": \"b\"}}\n")).unwrap();
    run(elf(&["eval", "--samples", &path])).badly(&["pairs.jsonl", "reference"]);
    fs::write(&path, pair).unwrap();
    assert!(run(elf(&["eval", "--samples", &path])).well().out.contains("BLEU"));
}
