//! Standard output that nobody reads any more, or that cannot be written.
#![cfg(target_os = "linux")]

mod tiny_run;

use std::fs::{self, File, OpenOptions};
use std::path::Path;

use tempfile::TempDir;
use tiny_run::{FILLING, Materials, Ran, elf, run, within};

/// Command lines of every command that prints what was asked for, each with a cheap job.
fn printing(folder: &TempDir) -> Vec<Vec<String>> {
    let materials = Materials::unconditional();
    let [corpus, tokenizer, shards, model] =
        ["corpus.jsonl", "tokenizer", "shards", "run"].map(|name| materials.path(name));
    let encoder = materials.copy("encoder", folder);
    let samples = within(folder, "samples.jsonl");
    let filling = within(folder, "filling");
    materials.train(&filling, &FILLING).well();
    fs::write(&samples, "{\"text\": \"A dog finds the cat\", \"reference\": \"A dog finds a cat\"}\n").unwrap();
    let [vocabulary, prepared, selected, random] =
        ["vocabulary", "prepared", "selected.jsonl", "random"].map(|name| within(folder, name));
    let lines: [&[&str]; 17] = [
        &["--help"],
        &["sample", "--help"],
        &["--version"],
        &["scaling"],
        &["train", "--template"],
        &["sample", &model, "-n", "3", "--steps", "2"],
        &["sample", &model, "-n", "1", "--steps", "2", "--trace"],
        &["infill", &filling, "A [2] dog", "--steps", "2"],
        &["correct", &filling, "A dog finds the cat", "--steps", "2"],
        &["correct", &filling, "A dog finds the cat", "--words"],
        &["data", "inspect", &shards],
        &["data", "prepare", "--input", &corpus, "--tokenizer", &tokenizer, "--output", &prepared],
        &["data", "select", "--input", &corpus, "--column", "text", "--output", &selected],
        &["tokenizer", "train", "--input", &corpus, "--vocab-size", "60", "--output", &vocabulary],
        &["eval", "--samples", &samples],
        &["probe", &model, "--data", &shards, "--limit", "8", "--times", "0.5"],
        &["likelihood", &model, "--data", &shards, "--limit", "8", "--steps", "1"],
    ];
    let encoders: [&[&str]; 2] = [
        &["encoder", "init", "--tokenizer", &tokenizer, "--output", &random],
        &["encoder", "stats", &encoder, "--data", &shards],
    ];
    let owned = |line: &&[&str]| line.iter().map(|&word| word.to_owned()).collect();
    lines.iter().chain(&encoders).map(owned).collect()
}

fn with_output(line: &[String], output: impl Into<std::process::Stdio>) -> Ran {
    let words: Vec<&str> = line.iter().map(String::as_str).collect();
    let mut command = elf(&words);
    command.stdout(output).stderr(std::process::Stdio::piped());
    Ran::of(command.spawn().unwrap().wait_with_output().unwrap())
}

/// As `elf ... | head -1` does, at the latest when `head` has ended.
#[test]
fn a_reader_that_has_seen_enough_ends_the_program_quietly() {
    let folder = TempDir::new().unwrap();
    for line in printing(&folder) {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ran = with_output(&line, writer).well();
        for word in ["error", "defect", "panicked", "Broken pipe"] {
            assert!(!ran.err.contains(word), "{line:?}: {}", ran.err);
        }
    }
}

#[test]
fn an_output_that_cannot_be_written_is_an_error_with_the_reason() {
    let folder = TempDir::new().unwrap();
    for line in printing(&folder) {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        with_output(&line, full).badly(&["cannot write to standard output", "No space left on device"]);
    }
}

/// What is written to files does not depend on whether anybody reads the lines about it.
#[test]
fn files_are_written_whether_or_not_anybody_reads_along() {
    let (folder, model) = (TempDir::new().unwrap(), Materials::unconditional().path("run"));
    let [texts, figures] = ["texts.jsonl", "figures.json"].map(|name| within(&folder, name));
    let line = ["sample", &model, "-n", "3", "--steps", "2", "-o", &texts].map(str::to_owned);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    with_output(&line, writer).well();
    assert_eq!(fs::read_to_string(&texts).unwrap().lines().count(), 3);
    assert!(!Path::new(&format!("{texts}.partial")).exists(), "what was kept is removed");
    let line = ["eval", "--samples", &texts, "-o", &figures].map(str::to_owned);
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    with_output(&line, full).badly(&["cannot write to standard output"]);
    assert!(Path::new(&figures).exists());
}

/// Notes have no other place to go to: the work is done all the same.
#[test]
fn a_full_standard_error_stops_nothing() {
    let model = Materials::unconditional().path("run");
    let mut command = elf(&["sample", &model, "-n", "2", "--steps", "2"]);
    command.stderr(OpenOptions::new().write(true).open("/dev/full").unwrap());
    assert_eq!(run(command).well().out.lines().count(), 2);
    let mut command = elf(&["sample", "/none/here"]);
    command.stderr(File::options().write(true).open("/dev/full").unwrap());
    assert_eq!(run(command).code, Some(1));
}
