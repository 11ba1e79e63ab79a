//! One file a command.

pub mod bench;
pub mod convert;
pub mod correct;
pub mod data;
pub mod distill;
pub mod encoder;
mod encoder_args;
mod encoder_cut;
mod encoder_stats;
mod encoder_train;
pub mod eval;
pub mod export;
pub mod given_texts;
pub mod infill;
pub mod launch;
pub mod likelihood;
pub mod model_args;
pub mod probe;
pub mod pull;
pub mod sample;
pub mod sampling_args;
pub mod scaling;
pub mod serve;
pub mod tokenizer;
pub mod train;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::builder::{PathBufValueParser, TypedValueParser};

use crate::standard_streams;

/// Refuses counts of nothing, each with the flag that gave it.
///
/// # Errors
/// Names the first flag whose value is 0.
pub fn at_least_one(counts: &[(&str, usize)]) -> Result<()> {
    match counts.iter().find(|(_, count)| *count == 0) {
        Some((flag, _)) => bail!("{flag} is 0; it must be at least 1"),
        None => Ok(()),
    }
}

/// Most rows of one batch; a mistyped number must not exhaust memory.
pub const MOST_ROWS: usize = 1 << 16;

/// Refuses counts that nobody wants, each with the flag that gave it, its value and the most that it may be.
///
/// # Errors
/// Names the first flag whose value is larger.
pub fn at_most(counts: &[(&str, usize, usize)]) -> Result<()> {
    match counts.iter().find(|(_, count, most)| count > most) {
        Some((flag, count, most)) => bail!("{flag} is {count}; it can be at most {most}"),
        None => Ok(()),
    }
}

/// The file that `-o` names in commands without settings of the form `key=value`; `-` is standard output. One that looks like such a setting, which is what `-o` means to
/// `elf train`, is refused: a file of that name is hardly meant.
pub fn output_file() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(no_setting).map(standard_streams::output)
}

fn no_setting(file: PathBuf) -> Result<PathBuf, String> {
    let text = file.to_string_lossy();
    let of_a_key = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    match text.split_once('=') {
        Some((key, _)) if key.chars().all(of_a_key) && !text.ends_with(".json") && !text.ends_with(".jsonl") => {
            Err(format!(
                "-o {text}: here -o is the file to write, and {key} would be part of its name; settings are flags of their own, see --help. If a file of this \
             name is meant: -o ./{text}"
            ))
        }
        _ => Ok(file),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_no_files() {
        for setting in ["steps=4", "temperature=0.8", "self_cond_cfg_scale=1", "guide=runs/a"] {
            assert!(no_setting(setting.into()).unwrap_err().contains(&format!("-o ./{setting}")));
        }
        for file in ["texts.jsonl", "./steps=4", "runs/lr=0.1/texts.jsonl", "w=3.jsonl", "texts"] {
            assert_eq!(no_setting(file.into()).unwrap(), PathBuf::from(file));
        }
    }
}
