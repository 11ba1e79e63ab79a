//! The shard files that a path stands for.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::MANIFEST;
use super::manifest::{FinishedShard, Manifest};
use crate::error::{Error, Result};
use crate::splits;

/// The file of a saved `DatasetDict` that lists its splits.
const DATASET_DICT: &str = "dataset_dict.json";
/// The file of a `save_to_disk` folder that lists its data files.
const STATE: &str = "state.json";

/// Shard files of `paths`, in order. A folder stands for the files of its manifest or its `state.json`, for the only split of a
/// saved `DatasetDict`, or for the Parquet or Arrow files of its only split. A path `FOLDER/SPLIT` that does not exist stands for
/// the files of that split of `FOLDER`.
pub(crate) fn find<P: AsRef<Path>>(paths: &[P]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        let path = path.as_ref();
        match fs::metadata(path) {
            Ok(about) if about.is_dir() => files.extend(of_folder(path)?),
            Ok(_) => files.push(path.to_owned()),
            Err(e) => match data_files(path)? {
                Some(found) => files.extend(found),
                None => return Err(Error::io("open", path)(e)),
            },
        }
    }
    if files.is_empty() {
        return Err(Error::Config("no token shards were named".to_owned()));
    }
    Ok(files)
}

fn of_folder(path: &Path) -> Result<Vec<PathBuf>> {
    let Some(manifest) = Manifest::load(path)? else { return without_manifest(path) };
    if !manifest.complete {
        return Err(Error::Config(format!(
            "`{}` is not fully prepared ({} shards are finished): run the same `elf data prepare` again to finish it",
            path.display(),
            manifest.shards.len()
        )));
    }
    let shard = |shard: FinishedShard| {
        let file = path.join(&shard.file);
        let about = fs::metadata(&file).map_err(|e| missing(&file, &e))?;
        if about.len() != shard.bytes {
            return Err(Error::Damaged {
                path: file,
                reason: format!("{} bytes instead of {}", about.len(), shard.bytes),
                remedy: "copy it again, or run the same `elf data prepare` again, which replaces damaged shards",
            });
        }
        Ok(file)
    };
    manifest.shards.into_iter().map(shard).collect()
}

fn missing(file: &Path, error: &std::io::Error) -> Error {
    Error::Damaged {
        path: file.to_owned(),
        reason: format!("listed in {MANIFEST}, but cannot be opened: {error}"),
        remedy: "copy it again, or run the same `elf data prepare` again, which replaces lost shards",
    }
}

fn without_manifest(folder: &Path) -> Result<Vec<PathBuf>> {
    if folder.join(DATASET_DICT).is_file() {
        let split = only_split(folder)?;
        return saved(&split)?.ok_or_else(|| Error::NothingFound {
            what: "state.json",
            path: split,
            remedy: "the data set's folder lists this split; copy it again".to_owned(),
        });
    }
    if let Some(files) = saved(folder)? {
        return Ok(files);
    }
    data_files(folder)?.ok_or_else(|| {
        let remedy =
            "name a folder that `elf data prepare` or `save_to_disk` wrote, or Parquet files with a column `input_ids`";
        Error::NothingFound { what: "token shards", path: folder.to_owned(), remedy: remedy.to_owned() }
    })
}

/// The Parquet files, or else the Arrow files, of the split that `path` stands for.
fn data_files(path: &Path) -> Result<Option<Vec<PathBuf>>> {
    for wanted in ["parquet", "arrow"] {
        let found = splits::files(path, &|file| file.extension().is_some_and(|extension| extension == wanted))?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// The files that a `save_to_disk` folder lists, in its order.
fn saved(folder: &Path) -> Result<Option<Vec<PathBuf>>> {
    #[derive(Deserialize)]
    struct State {
        _data_files: Vec<Entry>,
        // Earlier versions stored a selection of rows in files of their own.
        #[serde(default)]
        _indices_data_files: Option<Vec<Entry>>,
    }
    #[derive(Deserialize)]
    struct Entry {
        filename: String,
    }
    let path = folder.join(STATE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("read", &path)(e)),
    };
    let damaged = |path: &Path, reason: String| Error::Damaged {
        path: path.to_owned(),
        reason,
        remedy: "copy the folder again, or write it again with `save_to_disk`",
    };
    let state: State = serde_json::from_slice(&bytes).map_err(|e| damaged(&path, e.to_string()))?;
    if state._indices_data_files.is_some_and(|files| !files.is_empty()) {
        return Err(Error::Config(format!(
            "`{}` keeps a selection of rows apart from the rows: call flatten_indices() and save_to_disk again",
            folder.display()
        )));
    }
    let mut files = Vec::new();
    for Entry { filename } in state._data_files {
        // A list of files must not lead out of its folder.
        if Path::new(&filename).file_name() != Some(OsStr::new(&filename)) {
            return Err(damaged(&path, format!("`{filename}` is not the name of a file in its folder")));
        }
        let file = folder.join(filename);
        if !file.is_file() {
            return Err(damaged(&file, format!("listed in {STATE}, but missing")));
        }
        files.push(file);
    }
    if files.is_empty() {
        return Err(damaged(&path, "it lists no files".to_owned()));
    }
    Ok(Some(files))
}

/// The folder of the only split of a saved `DatasetDict`.
fn only_split(folder: &Path) -> Result<PathBuf> {
    #[derive(Deserialize)]
    struct Splits {
        splits: Vec<String>,
    }
    let path = folder.join(DATASET_DICT);
    let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
    let damaged = |reason: String| Error::Damaged {
        path: path.clone(),
        reason,
        remedy: "copy the folder again, or write it again with `save_to_disk`",
    };
    let Splits { splits } = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
    if let Some(wrong) = splits.iter().find(|name| Path::new(name).file_name() != Some(OsStr::new(name))) {
        return Err(damaged(format!("`{wrong}` is not the name of a folder in its folder")));
    }
    match splits.as_slice() {
        [] => Err(damaged("it lists no splits".to_owned())),
        [only] => Ok(folder.join(only)),
        several => {
            let names: Vec<_> = several.iter().map(|name| format!("`{}`", folder.join(name).display())).collect();
            Err(Error::Config(format!(
                "`{}` holds several splits, which must not be mixed: name one of {}",
                folder.display(),
                names.join(", ")
            )))
        }
    }
}
