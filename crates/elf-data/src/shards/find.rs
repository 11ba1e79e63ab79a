//! Which shard files a path stands for.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::MANIFEST;
use super::manifest::Manifest;
use crate::error::{Error, Result};

/// A Hugging Face data set of several splits says so in this file.
const DATASET_DICT: &str = "dataset_dict.json";
/// A Hugging Face `save_to_disk` folder lists its files in this one.
const STATE: &str = "state.json";

/// Shard files of `paths`, in order. A folder stands for what its manifest or its `state.json` lists, for the only split of a
/// saved `DatasetDict`, or for its Parquet or Arrow files (in it, or in its `data` folder, as on the Hugging Face Hub). A path
/// `FOLDER/SPLIT` that does not exist stands for the files of `FOLDER` that are named `SPLIT-*`.
pub(crate) fn find<P: AsRef<Path>>(paths: &[P]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        let path = path.as_ref();
        let about = match fs::metadata(path) {
            Ok(about) => about,
            Err(e) => match split_by_name(path)? {
                Some(found) => {
                    files.extend(found);
                    continue;
                }
                None => return Err(Error::io("open", path)(e)),
            },
        };
        if !about.is_dir() {
            files.push(path.to_owned());
            continue;
        }
        match Manifest::load(path)? {
            Some(manifest) if !manifest.complete => {
                return Err(Error::Config(format!(
                    "`{}` is not fully prepared ({} shards are finished): run the same `elf data prepare` again to finish it",
                    path.display(),
                    manifest.shards.len()
                )));
            }
            Some(manifest) => {
                for shard in manifest.shards {
                    let file = path.join(&shard.file);
                    let about = fs::metadata(&file).map_err(|e| missing(&file, &e))?;
                    if about.len() != shard.bytes {
                        return Err(Error::Damaged {
                            path: file,
                            reason: format!("{} bytes instead of {}", about.len(), shard.bytes),
                            remedy: "copy it again, or run the same `elf data prepare` again, which replaces damaged shards",
                        });
                    }
                    files.push(file);
                }
            }
            None => files.extend(without_manifest(path)?),
        }
    }
    if files.is_empty() {
        return Err(Error::Config("no token shards were named".to_owned()));
    }
    Ok(files)
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
    let files = data_files(folder)?;
    if files.is_empty() {
        let remedy =
            "name a folder that `elf data prepare` or `save_to_disk` wrote, or Parquet files with a column `input_ids`";
        return Err(Error::NothingFound { what: "token shards", path: folder.to_owned(), remedy: remedy.to_owned() });
    }
    let names: BTreeSet<String> = files.iter().filter_map(|file| series(file)).map(|(name, ..)| name).collect();
    if names.len() > 1 {
        let names: Vec<_> = names.iter().map(|name| format!("`{}`", folder.join(name).display())).collect();
        return Err(Error::Config(format!(
            "`{}` holds several splits, which must not be mixed: name one of {}",
            folder.display(),
            names.join(", ")
        )));
    }
    complete(&files)?;
    Ok(files)
}

/// The files that a `save_to_disk` folder lists, in its order.
fn saved(folder: &Path) -> Result<Option<Vec<PathBuf>>> {
    #[derive(Deserialize)]
    struct State {
        _data_files: Vec<Entry>,
        // Earlier versions kept a selection of rows apart from the rows.
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
            return Err(damaged(&path, format!("`{filename}` is not the name of a file beside it")));
        }
        let file = folder.join(filename);
        if !file.is_file() {
            return Err(damaged(&file, format!("listed in {STATE}, but it is not there")));
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
        return Err(damaged(format!("`{wrong}` is not the name of a folder beside it")));
    }
    match splits.as_slice() {
        [] => Err(damaged("it lists no splits".to_owned())),
        [only] => Ok(folder.join(only)),
        several => {
            let names: Vec<_> = several.iter().map(|name| format!("`{}`", folder.join(name).display())).collect();
            Err(Error::Config(format!("`{}` holds several splits: name one of {}", folder.display(), names.join(", "))))
        }
    }
}

/// The files `SPLIT-*` of `FOLDER`, for a path `FOLDER/SPLIT`.
fn split_by_name(path: &Path) -> Result<Option<Vec<PathBuf>>> {
    let (Some(folder), Some(split)) = (path.parent().filter(|p| p.is_dir()), path.file_name()) else { return Ok(None) };
    let mut files = data_files(folder)?;
    files.retain(|file| series(file).is_some_and(|(name, ..)| OsStr::new(&name) == split));
    complete(&files)?;
    Ok((!files.is_empty()).then_some(files))
}

/// Parquet or Arrow files of a folder, or of its `data` folder, in the order of their names.
fn data_files(folder: &Path) -> Result<Vec<PathBuf>> {
    for folder in [folder.to_owned(), folder.join("data")] {
        for extension in ["parquet", "arrow"] {
            if !folder.is_dir() {
                continue;
            }
            let files = files_named(&folder, extension)?;
            if !files.is_empty() {
                return Ok(files);
            }
        }
    }
    Ok(Vec::new())
}

fn files_named(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let path = entry.map_err(Error::io("list", folder))?.path();
        if path.extension().is_some_and(|e| e == extension) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Name, number and total of a file called like `train-00003-of-00010.parquet`.
fn series(file: &Path) -> Option<(String, u32, u32)> {
    let stem = file.file_stem()?.to_str()?;
    let (rest, total) = stem.rsplit_once("-of-")?;
    let (name, number) = rest.rsplit_once('-')?;
    Some((name.to_owned(), number.parse().ok()?, total.parse().ok()?))
}

/// Files named `train-00003-of-00010.parquet` say how many they should be.
fn complete(files: &[PathBuf]) -> Result<()> {
    let mut by_name: BTreeMap<(String, u32), Vec<u32>> = BTreeMap::new();
    for (name, number, total) in files.iter().filter_map(|file| series(file)) {
        by_name.entry((name, total)).or_default().push(number);
    }
    for ((name, total), numbers) in by_name {
        let extension = files[0].extension().unwrap_or_default().to_string_lossy();
        let numbers: BTreeSet<u32> = numbers.into_iter().collect();
        if let Some(lost) = (0..total).find(|n| !numbers.contains(n)) {
            return Err(Error::NothingFound {
                what: "shard of that name",
                path: files[0].with_file_name(format!("{name}-{lost:05}-of-{total:05}.{extension}")),
                remedy: format!("its siblings say that there are {total} shards; copy or download the lost one"),
            });
        }
    }
    Ok(())
}
