//! Outputs that are inputs are refused, by whatever name; `-` is standard input and output; folders that are asked for are made.

mod tiny_run;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use tempfile::TempDir;
use tiny_run::{Materials, Ran, elf, run, within};

/// Runs a command on the same file or folder as an input and an output; it must be refused and leave everything as it is.
#[track_caller]
fn refused(args: &[&str], input: &str) {
    let before = contents(Path::new(input));
    run(elf(args)).badly(&["would destroy"]);
    assert_eq!(contents(Path::new(input)), before, "{args:?}");
}

/// Names and bytes of a file or of all files of a folder.
fn contents(path: &Path) -> Vec<(String, Vec<u8>)> {
    if path.is_file() {
        return vec![(String::new(), fs::read(path).unwrap())];
    }
    let mut all: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .flat_map(|path| {
            contents(&path).into_iter().map(move |(name, bytes)| (format!("{}/{name}", path.display()), bytes))
        })
        .collect();
    all.sort();
    all
}

#[test]
fn no_command_writes_over_what_it_reads() {
    let (materials, translation, folder) =
        (Materials::unconditional(), Materials::translation(), TempDir::new().unwrap());
    let [corpus, shards, encoder, model] =
        ["corpus.jsonl", "shards", "encoder", "run"].map(|name| materials.copy(name, &folder));
    let tokenizer = materials.path("tokenizer");
    let [samples, pairs] = ["samples.jsonl", "pairs.jsonl"].map(|name| within(&folder, name));
    fs::write(&samples, "{\"text\": \"a\", \"reference\": \"a\"}\n").unwrap();
    fs::copy(translation.path("corpus.jsonl"), &pairs).unwrap();
    let (translator, shard) = (translation.path("run"), format!("{shards}/shard-00000.parquet"));
    for (args, input) in [
        (&["eval", "--samples", &samples, "-o", &samples][..], &samples),
        (&["eval", "--samples", &samples, "--references", &corpus, "-o", &corpus], &corpus),
        (&["eval", "--samples", &samples, "--training", &format!("{corpus}:text"), "-o", &corpus], &corpus),
        (&["data", "select", "--input", &corpus, "--column", "text", "--output", &corpus], &corpus),
        (
            &[
                "data",
                "select",
                "--input",
                &samples,
                "--column",
                "text",
                "--without",
                &format!("text={corpus}:text"),
                "--output",
                &corpus,
            ],
            &corpus,
        ),
        (&["tokenizer", "train", "--input", &corpus, "--output", &corpus], &corpus),
        (&["tokenizer", "train", "--text", &format!("{corpus}:text"), "--output", &corpus], &corpus),
        (&["data", "prepare", "--input", &shards, "--tokenizer", &tokenizer, "--output", &shards], &shards),
        (&["sample", &translator, "--input", &pairs, "--input-column", "de", "-o", &pairs], &pairs),
        (&["sample", &translator, "--data", &shards, "-o", &shard], &shards),
        (&["sample", &model, "-o", &format!("{model}/tokenizer.json")], &model),
        (&["infill", &model, "--input", &corpus, "--hide", "0.5", "-o", &corpus], &corpus),
        (&["correct", &model, "--input", &corpus, "-o", &corpus], &corpus),
        (&["probe", &model, "--data", &shard, "-o", &shard], &shards),
        (&["likelihood", &model, "--data", &shard, "-o", &shard], &shards),
        (&["convert", &format!("{encoder}/model.safetensors"), &format!("{encoder}/model.safetensors")], &encoder),
        (&["export", &model, &model], &model),
    ] {
        refused(args, input);
    }
    let config = materials.path("config.yml");
    for key in ["data_path", "encoder_model_name"] {
        let read = if key == "data_path" { &shards } else { &encoder };
        let before = contents(Path::new(read));
        let option = format!("{key}={read}");
        run(elf(&["train", &config, "-o", &option, "--output", read])).badly(&["output_dir", key]);
        assert_eq!(contents(Path::new(read)), before);
    }
    let before = contents(Path::new(&model));
    run(elf(&["distill", &config, "--teacher", &model, "--output", &model, "--plan"]))
        .badly(&["output_dir", "teacher_path"]);
    assert_eq!(contents(Path::new(&model)), before);
}

#[cfg(unix)]
#[test]
fn other_names_of_a_file_are_the_same_file() {
    let folder = TempDir::new().unwrap();
    let input = within(&folder, "d.jsonl");
    fs::write(&input, "{\"text\": \"a\", \"reference\": \"a\"}\n").unwrap();
    fs::create_dir(folder.path().join("in")).unwrap();
    fs::hard_link(&input, folder.path().join("hard.jsonl")).unwrap();
    std::os::unix::fs::symlink("d.jsonl", folder.path().join("soft.jsonl")).unwrap();
    std::os::unix::fs::symlink(".", folder.path().join("way")).unwrap();
    for name in ["./d.jsonl", "in/../d.jsonl", "hard.jsonl", "soft.jsonl", "way/d.jsonl", "way/soft.jsonl", "d.jsonl"] {
        for args in [
            &["eval", "--samples", "d.jsonl", "-o", name][..],
            &["data", "select", "--input", ".", "--column", "text", "--output", name],
            &["tokenizer", "train", "--input", name, "--output", "./d.jsonl"],
        ] {
            let mut command = elf(args);
            command.current_dir(folder.path());
            run(command).badly(&["would destroy"]);
            assert_eq!(fs::read_to_string(&input).unwrap().lines().count(), 1, "{args:?}");
        }
    }
    // Another file of the same name is another file.
    let other = within(&folder, "in/d.jsonl");
    run(elf(&["eval", "--samples", &input, "-o", &other])).well();
    assert!(Path::new(&other).exists());
}

/// Runs a command whose output goes where it was sent.
#[track_caller]
fn run_to_its_end(mut command: std::process::Command) {
    assert!(command.status().unwrap().success());
}

fn fed(args: &[&str], input: impl AsRef<[u8]>) -> Ran {
    let mut command = elf(args);
    // As users have it: the program begins anew with settings of its own for threads.
    command.env_remove("OMP_WAIT_POLICY");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_ref()).unwrap();
    Ran::of(child.wait_with_output().unwrap())
}

#[cfg(unix)]
#[test]
fn a_dash_is_standard_input_and_output() {
    let (materials, translation, folder) =
        (Materials::unconditional(), Materials::translation(), TempDir::new().unwrap());
    let rows = "{\"text\": \"A dog\", \"reference\": \"A dog\"}\n{\"text\": \"A cat\", \"reference\": \"A cat\"}\n";
    assert!(fed(&["eval", "--samples", "-"], rows).well().out.contains("BLEU"));
    let figures = fed(&["eval", "--samples", "-", "-o", "-"], rows).well();
    serde_json::from_str::<serde_json::Value>(&figures.out).unwrap();
    let selected = fed(&["data", "select", "--input", "-", "--column", "text", "--output", "-"], rows).well();
    assert_eq!(selected.out, "{\"text\":\"A dog\"}\n{\"text\":\"A cat\"}\n");
    assert!(selected.err.contains("2 of 2 rows"), "{}", selected.err);
    // The content decides whether standard input is plain text or another format.
    let shards = within(&folder, "shards");
    let tokenizer = materials.path("tokenizer");
    let prepare = ["data", "prepare", "--input", "-", "--tokenizer", &tokenizer, "--output", &shards];
    assert!(fed(&prepare, "A dog\nA cat\n").well().out.starts_with("2 documents"));
    let parquet = fs::read(materials.path("shards/shard-00000.parquet")).unwrap();
    fed(&["data", "select", "--input", "-", "--column", "text", "--output", "-"], parquet)
        .badly(&["`text`", "input_ids"]);
    let model = translation.path("run");
    let texts = fed(&["sample", &model, "--steps", "2", "--input", "-", "-o", "-"], "tree\ndog\n").well();
    assert_eq!(texts.out.lines().filter(|line| line.starts_with('{')).count(), 2, "{}", texts.out);
    assert_eq!(texts.out.lines().count(), 2, "nothing else is on standard output");
    let config = fs::read(materials.path("config.yml")).unwrap();
    let output = within(&folder, "new");
    assert!(fed(&["train", "-", "--output", &output, "--plan"], config).well().err.contains("rows"));

    // A file that several programs write to one after another holds it all, as in `(elf ...; echo end) > FILE`.
    let shared = within(&folder, "shared.txt");
    let file = File::create(&shared).unwrap();
    let corpus = materials.path("corpus.jsonl");
    for every in ["160", "320"] {
        let mut command =
            elf(&["data", "select", "--input", &corpus, "--column", "text", "--every-nth", every, "--output", "-"]);
        command.stdout(file.try_clone().unwrap());
        run_to_its_end(command);
    }
    assert_eq!(fs::read_to_string(&shared).unwrap().lines().count(), 3);
    // What was in a file that standard output is appended to stays.
    let appended = within(&folder, "all.jsonl");
    fs::write(&appended, "before\n").unwrap();
    let mut command = elf(&["sample", &materials.path("run"), "-n", "1", "--steps", "2", "-o", "-"]);
    command.stdout(File::options().append(true).open(&appended).unwrap());
    run_to_its_end(command);
    let written = fs::read_to_string(&appended).unwrap();
    assert!(written.starts_with("before\n{") && written.lines().count() == 2, "{written}");
    let link = fs::symlink_metadata("/dev/stdout").unwrap();
    assert!(!link.is_file(), "the device is not replaced by a file");
}

#[test]
fn folders_that_are_asked_for_are_made() {
    let (materials, folder) = (Materials::unconditional(), TempDir::new().unwrap());
    let [corpus, shards, model] = ["corpus.jsonl", "shards", "run"].map(|name| materials.path(name));
    let at = |name: &str| within(&folder, name);
    run(elf(&["tokenizer", "train", "--input", &corpus, "--vocab-size", "60", "--output", &at("a/b/tokenizer")]))
        .well();
    assert!(Path::new(&at("a/b/tokenizer/tokenizer.json")).is_file());
    run(elf(&["tokenizer", "train", "--input", &corpus, "--vocab-size", "60", "--output", &at("a/c/mine.json")]))
        .well();
    assert!(Path::new(&at("a/c/mine.json")).is_file());
    run(elf(&["data", "select", "--input", &corpus, "--column", "text", "--output", &at("d/e/f.jsonl")])).well();
    run(elf(&["sample", &model, "-n", "1", "--steps", "1", "-o", &at("g/h/texts.jsonl")])).well();
    run(elf(&["eval", "--samples", &at("g/h/texts.jsonl"), "-o", &at("i/j/figures.json")])).well();
    run(elf(&["probe", &model, "--data", &shards, "--limit", "4", "--times", "1", "-o", &at("k/l.json")])).well();
    run(elf(&["likelihood", &model, "A dog", "--steps", "1", "-o", &at("q/r.json")])).well();
    run(elf(&["convert", &model, &at("m/n/model.safetensors")])).well();
    run(elf(&["export", &model, &at("o/p/exported")])).well();
    assert!(Path::new(&at("o/p/exported/config.yml")).is_file());
    run(elf(&[
        "eval",
        "--run",
        &model,
        "-n",
        "2",
        "--device",
        "cpu",
        "--samples-folder",
        &at("q/r"),
        "--",
        "--steps",
        "1",
    ]))
    .well();
    assert_eq!(fs::read_dir(at("q/r")).unwrap().count(), 1);
}
