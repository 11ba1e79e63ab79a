//! The demo: texts of the models in `models/`, then all steps that carry one of them to other texts.
//! Every step is a call of the program `elf` that a reader can repeat by hand.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::libtorch::{SetUp, setup};
use crate::steps::Steps;
use crate::training_figures as figures;
use crate::workspace::Workspace;

/// Settings of the demo.
#[derive(Debug, Args)]
pub struct Options {
    /// How long to train, in minutes.
    #[arg(long, default_value_t = 5.0, value_parser = minutes)]
    minutes: f64,
    /// Delete the results of an earlier demo, and start from scratch.
    #[arg(long)]
    fresh: bool,
}

fn minutes(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(minutes) if minutes > 0.0 && f64::is_finite(minutes) => Ok(minutes),
        _ => Err("a positive number of minutes is wanted".to_owned()),
    }
}

/// What a few minutes of training on two cores can and cannot show.
const HONESTLY: &str = "\
The texts before the training are definitions, those after it have the words and forms of package descriptions; both losses fall on
held-out text. Texts are read as words of the training texts, and few of them describe a package yet: minutes teach the manner of a corpus,
hours its words.";

/// One call of `elf`.
struct Call {
    title: &'static str,
    arguments: Vec<String>,
    /// The file that the call writes last. If it is there, the call is not repeated. None if `elf` itself resumes.
    leaves: Option<PathBuf>,
}

impl Call {
    /// From a command line without quotes.
    fn new(title: &'static str, leaves: Option<PathBuf>, line: &str) -> Self {
        Self { title, arguments: line.split_whitespace().map(str::to_owned).collect(), leaves }
    }
}

/// The texts of the demo's training: the one-line descriptions of Debian's packages.
const COLUMN: &str = "synopsis";

/// Texts of the repository's models. They take seconds, so they are generated every time.
fn ready_models() -> [Call; 6] {
    let call = |title, line| Call::new(title, None, line);
    [
        call(
            "definitions, all words at once in 32 steps: one as it forms, and twelve",
            "sample models/definitions --num 12 --trace",
        ),
        call(
            "definitions in 4 steps, by a student of that model: one as it forms, and twelve",
            "sample models/definitions-few --num 12 --trace",
        ),
        call(
            "definitions of the test split of which some words were hidden, filled in: one as it forms, and six",
            "infill models/infill --input data/definitions-test.parquet --input-column definition --hide 0.3 --limit 6 --trace",
        ),
        call(
            "German descriptions of the test split in English, token by token",
            "sample models/mini-de-en --input data/de-en-test.parquet --input-column de --reference-column en --limit 6 --trace",
        ),
        call(
            "descriptions of the test split in one line, token by token",
            "sample models/mini-summaries --input data/descriptions-test.parquet --input-column description \
             --reference-column synopsis --limit 6 --trace",
        ),
        call(
            "beginnings of package descriptions, token by token: one as it forms, and eight",
            "sample models/mini-descriptions-blocks --num 8 --trace",
        ),
    ]
}

/// The calls that carry `models/definitions` to other texts, in their order; paths are relative to the root of the repository and hold no
/// spaces.
fn calls(out: &Path, minutes: f64) -> Vec<Call> {
    let at = out.display();
    let call = |title, leaves: Option<&str>, line: String| Call::new(title, leaves.map(|name| out.join(name)), &line);
    let prepare = |split: &str| {
        format!(
            "data prepare --input data/descriptions-{split}.parquet --target-column {COLUMN} --eos-target \
             --tokenizer models/minilm-l3 --output {at}/data/{split}"
        )
    };
    vec![
        call("one-line package descriptions as token shards to train on", None, prepare("train")),
        call("token shards to validate on", None, prepare("validation")),
        call(
            "training that begins as models/definitions",
            None,
            format!(
                "train configs/demo.yml -o data_path={at}/data/train -o eval_data_path={at}/data/validation \
                 --minutes {minutes} --output {at}/run"
            ),
        ),
        call(
            "the words that its texts may consist of",
            None,
            format!(
                "data words --input data/descriptions-train.parquet --column {COLUMN} --tokenizer models/minilm-l3 \
                 --output {at}/run/words.txt"
            ),
        ),
        call(
            "its texts, all words at once in 32 steps: one as it forms, and the results",
            None,
            format!(
                "sample {at}/run --sampling-config configs/sampling/definitions.yml --temperature 0 --num 64 --batch-size 64 --trace \
                 --output {at}/samples.jsonl"
            ),
        ),
        call(
            "an evaluation of the texts",
            None,
            format!(
                "eval --samples {at}/samples.jsonl --training data/descriptions-train.parquet --training-column {COLUMN} \
                 --output {at}/eval.json"
            ),
        ),
    ]
}

/// Builds `elf`, runs all calls and prints a summary of their results.
///
/// # Errors
/// At the first step that fails, with the command line that repeats it.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let out = Path::new("runs/demo");
    let folder = workspace.root.join(out);
    let mut steps = Steps::default();
    if options.fresh && folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("{} cannot be deleted", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;

    let libtorch = steps.time("libtorch", || {
        let libtorch = setup(workspace, SetUp::Once)?;
        println!("    {libtorch}");
        Ok(libtorch)
    })?;
    let elf = steps.time("building elf", || workspace.build(&libtorch, "elf"))?;
    for call in ready_models().into_iter().chain(calls(out, options.minutes)) {
        match &call.leaves {
            Some(path) if workspace.root.join(path).exists() => {
                println!("\n==> {}: {} already exists", call.title, path.display());
            }
            _ => {
                let mut command = Command::new(&elf);
                command.args(call.arguments).current_dir(&workspace.root);
                steps.run(call.title, &mut command)?;
            }
        }
    }

    println!("\n==> summary");
    for file in figures::files(&folder)? {
        println!("{}", workspace.short(&file).display());
        println!("{}", figures::table(&figures::courses(&file)?));
    }
    println!("{}", steps.table());
    println!("{HONESTLY}");
    println!("Everything was written to {}. `--fresh` starts from nothing.", out.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_files_are_written_to_the_output_folder() {
        let out = Path::new("runs/elsewhere");
        for call in calls(out, 1.5) {
            if let Some(path) = &call.leaves {
                assert!(path.starts_with(out), "{}", call.title);
            }
            let at = call.arguments.iter().position(|word| word == "--output");
            if let Some(at) = at {
                assert!(call.arguments[at + 1].starts_with("runs/elsewhere"), "{}", call.title);
            }
        }
    }

    #[test]
    fn files_that_the_demo_reads_are_in_the_repository() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let all = ready_models().into_iter().chain(calls(Path::new("out"), 1.0));
        let words: Vec<String> = all.flat_map(|call| call.arguments).collect();
        let corpora = words.iter().filter(|word| word.starts_with("data/") && word.ends_with(".parquet"));
        let models = words.iter().filter(|word| word.starts_with("models/"));
        assert!(corpora.clone().count() > 0 && models.clone().count() > 0);
        for path in corpora.chain(models) {
            assert!(root.join(path).exists(), "{path}");
        }
    }

    #[test]
    fn times_to_train_are_positive() {
        assert_eq!(minutes("0.5"), Ok(0.5));
        for wrong in ["0", "-1", "inf", "NaN", "soon"] {
            assert!(minutes(wrong).is_err(), "{wrong}");
        }
    }
}
