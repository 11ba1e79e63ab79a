//! Configurations in the YAML at the beginning of a data set's README.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::pattern::Pattern;
use crate::error::{Error, Result};

/// A configuration: a part of a data set with splits of its own.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(super) name: String,
    pub(super) default: bool,
    /// The folder of its files, relative to the README's.
    pub(super) data_dir: Option<String>,
    pub(super) files: Files,
}

/// The files of a configuration.
#[derive(Clone, Debug)]
pub(super) enum Files {
    /// Patterns of each split's files.
    Named(Vec<(String, Vec<Pattern>)>),
    /// Splits follow from the files' names.
    ByNames,
}

/// The configurations of a folder's `README.md`; none without one.
///
/// # Errors
/// If the README cannot be read, or its configurations have another form than that of the `datasets` library.
pub(super) fn configs(folder: &Path) -> Result<Vec<Config>> {
    let path = folder.join("README.md");
    let text = match fs::read(&path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("read", &path)(e)),
    };
    let text = text.trim_start_matches('\u{feff}').replace("\r\n", "\n");
    let Some((yaml, _)) = text.strip_prefix("---\n").and_then(|rest| rest.split_once("\n---")) else {
        return Ok(Vec::new());
    };
    if !yaml.lines().any(|line| line.starts_with("configs:")) {
        return Ok(Vec::new());
    }
    let bad = |reason: String| Error::BadRecord { path: path.clone(), place: "`configs`".to_owned(), reason };
    let card: Value =
        serde_saphyr::from_str(yaml).map_err(|e| bad(e.render_with_formatter(&serde_saphyr::UserMessageFormatter)))?;
    let configs = card["configs"].as_array().ok_or_else(|| bad("not a list of configurations".to_owned()))?;
    configs.iter().map(|value| config(value).map_err(bad)).collect()
}

fn config(value: &Value) -> Result<Config, String> {
    let text = |key: &str| value[key].as_str().map(str::to_owned);
    let name = text("config_name").unwrap_or_else(|| "default".to_owned());
    let files = match &value["data_files"] {
        Value::Null => Files::ByNames,
        // A list with splits; a map of them; or files of the split `train` alone.
        Value::Array(members) if members.iter().any(Value::is_object) => Files::Named(
            members
                .iter()
                .map(|member| {
                    let split = member["split"].as_str().ok_or("an entry of `data_files` has no `split`")?;
                    Ok((split.to_owned(), patterns(&member["path"])?))
                })
                .collect::<Result<_, String>>()?,
        ),
        Value::Object(splits) => Files::Named(
            splits.iter().map(|(split, files)| Ok((split.clone(), patterns(files)?))).collect::<Result<_, String>>()?,
        ),
        files => Files::Named(vec![("train".to_owned(), patterns(files)?)]),
    };
    let data_dir = text("data_dir");
    if let Some(folder) =
        data_dir.as_ref().filter(|folder| folder.starts_with('/') || folder.split('/').any(|part| part == ".."))
    {
        return Err(format!("`data_dir: {folder}` leads out of the data set's folder"));
    }
    Ok(Config { default: name == "default" || value["default"] == true, name, data_dir, files })
}

fn patterns(value: &Value) -> Result<Vec<Pattern>, String> {
    let of = |value: &Value| {
        let text = value.as_str().ok_or_else(|| format!("`{value}` is not a file's path"))?;
        Pattern::new(text).ok_or_else(|| format!("`{text}` is not a pattern of files"))
    };
    match value {
        Value::Array(members) => members.iter().map(of).collect(),
        one => Ok(vec![of(one)?]),
    }
}
