//! The demo: from the texts in `data/` to a small trained model and text that it has written.
//! Every step is a call of the program `elf` that a reader can repeat by hand.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::libtorch::{SetUp, setup};
use crate::metrics;
use crate::steps::Steps;
use crate::workspace::Workspace;

/// What can be chosen about the demo.
#[derive(Debug, Args)]
pub struct Options {
    /// How long to train, in minutes.
    #[arg(long, default_value_t = 8.0, value_parser = minutes)]
    minutes: f64,
    /// Delete what an earlier demo has left, and start from nothing.
    #[arg(long)]
    fresh: bool,
}

fn minutes(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(minutes) if minutes > 0.0 && f64::is_finite(minutes) => Ok(minutes),
        _ => Err("a positive number of minutes is wanted".to_owned()),
    }
}

/// One call of `elf`.
struct Call {
    title: &'static str,
    arguments: Vec<String>,
    /// What the call leaves behind. If it is there, the call is not repeated: `elf` writes aside
    /// and renames, so that what is there is complete.
    leaves: Option<PathBuf>,
}

/// The calls in their order; paths are relative to the root of the repository.
fn calls(out: &Path, minutes: f64) -> Vec<Call> {
    let at = |name: &str| out.join(name).display().to_string();
    let words =
        |line: &str| -> Vec<String> { line.split_whitespace().map(str::to_owned).collect() };
    let (tokenizer, encoder, run) = (at("tokenizer.json"), at("encoder"), at("run"));
    let prepare = |split: &str| {
        let shards = at(&format!("data/{split}"));
        let mut arguments = words("data prepare --column target=description --input");
        arguments.push(format!("data/descriptions-{split}.parquet"));
        arguments.extend([
            "--tokenizer".into(),
            tokenizer.clone(),
            "--output".into(),
            shards,
        ]);
        arguments
    };
    vec![
        Call {
            title: "a tokenizer for the package descriptions",
            arguments: [
                words("tokenizer train --input data/descriptions-train.parquet"),
                words("--column description --vocab-size 4096 --output"),
                vec![tokenizer.clone()],
            ]
            .concat(),
            leaves: Some(out.join("tokenizer.json")),
        },
        Call {
            title: "token shards for training",
            arguments: prepare("train"),
            leaves: Some(out.join("data/train")),
        },
        Call {
            title: "token shards for validation",
            arguments: prepare("validation"),
            leaves: Some(out.join("data/validation")),
        },
        Call {
            title: "a small T5 encoder with random weights, which stay as they are",
            arguments: [
                words("encoder init --seed 0 --tokenizer"),
                vec![tokenizer, "--output".into(), encoder],
            ]
            .concat(),
            leaves: Some(out.join("encoder")),
        },
        Call {
            title: "training",
            arguments: [
                words("train configs/demo.yml --minutes"),
                vec![minutes.to_string(), "--output".into(), run.clone()],
            ]
            .concat(),
            leaves: None,
        },
        Call {
            title: "text from noise, 32 SDE steps",
            arguments: [
                vec!["sample".into(), run.clone()],
                words("--sampler sde --steps 32 --count 8 --trace --output"),
                vec![at("samples.jsonl")],
            ]
            .concat(),
            leaves: None,
        },
        Call {
            title: "evaluation",
            arguments: vec!["eval".into(), run, "--samples".into(), at("samples.jsonl")],
            leaves: None,
        },
    ]
}

/// Builds `elf`, runs all calls and sums up what they have written.
///
/// # Errors
/// At the first step that fails, with the command line that repeats it.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let out = Path::new("runs/demo");
    let folder = workspace.root.join(out);
    let mut steps = Steps::default();
    if options.fresh && folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("{} cannot be deleted", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;

    let libtorch = steps.time("libtorch", || {
        let libtorch = setup(workspace, SetUp::Once)?;
        println!("    {libtorch}");
        Ok(libtorch)
    })?;
    let elf = steps.time("building elf", || {
        workspace.build(&libtorch, "elf-cli", "elf")
    })?;
    for call in calls(out, options.minutes) {
        match &call.leaves {
            Some(path) if workspace.root.join(path).exists() => {
                println!("\n==> {}: {} is there already", call.title, path.display());
            }
            _ => {
                let mut command = Command::new(&elf);
                command.args(call.arguments).current_dir(&workspace.root);
                steps.run(call.title, &mut command)?;
            }
        }
    }

    println!("\n==> summary");
    for file in metrics::files(&folder)? {
        println!("{}", workspace.short(&file).display());
        println!("{}", metrics::table(&metrics::courses(&file)?));
    }
    println!("{}", steps.table());
    println!(
        "Everything was written to {}. `--fresh` starts from nothing.",
        out.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_written_lies_in_the_output_folder() {
        let out = Path::new("runs/elsewhere");
        for call in calls(out, 1.5) {
            if let Some(path) = &call.leaves {
                assert!(path.starts_with(out), "{}", call.title);
            }
            let at = call.arguments.iter().position(|word| word == "--output");
            if let Some(at) = at {
                assert!(
                    call.arguments[at + 1].starts_with("runs/elsewhere"),
                    "{}",
                    call.title
                );
            }
        }
    }

    #[test]
    fn corpora_that_the_demo_reads_are_in_the_repository() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let calls = calls(Path::new("out"), 1.0);
        let corpora: Vec<_> = calls
            .iter()
            .flat_map(|call| &call.arguments)
            .filter(|word| word.starts_with("data/") && word.ends_with(".parquet"))
            .collect();
        assert_eq!(corpora.len(), 3);
        for corpus in corpora {
            assert!(root.join(corpus).is_file(), "{corpus}");
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
