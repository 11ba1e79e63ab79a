//! Which shard files a path stands for.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::MANIFEST;
use super::manifest::Manifest;
use crate::error::{Error, Result};

/// Shard files of `paths`, in order. A folder stands for what its manifest lists, or for its Parquet files (in it, or in its
/// `data` folder, as on the Hugging Face Hub).
pub(crate) fn find<P: AsRef<Path>>(paths: &[P]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        let path = path.as_ref();
        if !fs::metadata(path).map_err(Error::io("open", path))?.is_dir() {
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
    let mut files = parquet_files(folder)?;
    let below = folder.join("data");
    if files.is_empty() && below.is_dir() {
        files = parquet_files(&below)?;
    }
    if files.is_empty() {
        let remedy = if folder.join("dataset_info.json").exists() || folder.join("dataset_dict.json").exists() {
            "this is a Hugging Face `save_to_disk` folder; write it as Parquet with `datasets.load_from_disk(...).to_parquet(...)`"
        } else {
            "name a folder that `elf data prepare` wrote, or Parquet files with a column `input_ids`"
        };
        return Err(Error::NothingFound { what: "token shards", path: folder.to_owned(), remedy: remedy.to_owned() });
    }
    complete(&files)?;
    Ok(files)
}

fn parquet_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let path = entry.map_err(Error::io("list", folder))?.path();
        if path.extension().is_some_and(|e| e == "parquet") && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Files named `train-00003-of-00010.parquet` say how many they should be.
fn complete(files: &[PathBuf]) -> Result<()> {
    let mut series: BTreeMap<(String, u32), Vec<u32>> = BTreeMap::new();
    for file in files {
        let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let parts = stem.rsplit_once("-of-").and_then(|(rest, total)| Some((rest.rsplit_once('-')?, total)));
        if let Some(((name, number), total)) = parts
            && let (Ok(number), Ok(total)) = (number.parse(), total.parse())
        {
            series.entry((name.to_owned(), total)).or_default().push(number);
        }
    }
    for ((name, total), numbers) in series {
        if let Some(lost) = (0..total).find(|n| !numbers.contains(n)) {
            return Err(Error::NothingFound {
                what: "shard of that name",
                path: files[0].with_file_name(format!("{name}-{lost:05}-of-{total:05}.parquet")),
                remedy: format!("its siblings say that there are {total} shards; copy or download the lost one"),
            });
        }
    }
    Ok(())
}
