//! One file a command.

pub mod bench;
pub mod convert;
pub mod data;
pub mod distill;
pub mod encoder;
pub mod encoder_train;
pub mod eval;
pub mod export;
pub mod launch;
pub mod probe;
pub mod pull;
pub mod sample;
pub mod scaling;
pub mod tokenizer;
pub mod train;

use std::path::PathBuf;

/// The file that `-o` names in commands without settings of the form `key=value`. One that looks like such a setting, which is what `-o` means to
/// `elf train`, is refused: a file of that name is hardly meant.
///
/// # Errors
/// Says what `-o` is, and how a file of this name is asked for all the same.
pub fn output_file(text: &str) -> Result<PathBuf, String> {
    let key = text
        .split_once('=')
        .map(|(key, _)| key)
        .filter(|key| key.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit()));
    match key {
        Some(key) if ![".json", ".jsonl"].iter().any(|end| text.ends_with(end)) => Err(format!(
            "-o {text}: here -o is the file to write, and {key} would be part of its name; settings are flags of their own, see --help. If a file of this \
             name is meant: -o ./{text}"
        )),
        _ => Ok(text.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_no_files() {
        for setting in ["steps=4", "temperature=0.8", "self_cond_cfg_scale=1", "guide=runs/a"] {
            assert!(output_file(setting).unwrap_err().contains(&format!("-o ./{setting}")));
        }
        for file in ["texts.jsonl", "./steps=4", "runs/lr=0.1/texts.jsonl", "w=3.jsonl", "texts"] {
            assert_eq!(output_file(file).unwrap(), PathBuf::from(file));
        }
    }
}
