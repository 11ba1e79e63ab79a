//! A folder of a repository, and the files that purposes need of it.

use std::collections::BTreeSet;

use serde_json::Value;

use super::chosen::{Fetch, Selection};
use super::what::What;
use crate::error::{Error, Result};
use crate::listing::{Listing, RemoteFile};
use crate::reference::{Reference, is_inner_path};

/// Whole weights and indices of shards, in the order of preference.
pub(super) const WEIGHTS: [(&str, &str); 2] =
    [("model.safetensors", "model.safetensors.index.json"), ("pytorch_model.bin", "pytorch_model.bin.index.json")];

/// The file of settings in the folder of the released code's checkpoints.
pub(super) const RECORD: &str = "config.yml";

/// Largest index of shards in bytes.
const LARGEST_INDEX: u64 = 64 << 20;

/// Files that describe data, fetched with it.
const DESCRIPTIONS: [&str; 5] = ["README.md", "manifest.json", "dataset_info.json", "dataset_dict.json", "state.json"];

/// A folder of a repository.
pub(super) struct Folder<'a> {
    pub(super) what: What,
    pub(super) reference: &'a Reference,
    pub(super) listing: &'a Listing,
    /// The folder's path with a `/` at its end; empty for the whole repository.
    pub(super) prefix: String,
}

impl<'a> Folder<'a> {
    /// The files below the folder, with their paths relative to it.
    pub(super) fn files(&self) -> impl Iterator<Item = (&'a str, &'a RemoteFile)> {
        let listing = self.listing;
        let prefix = self.prefix.clone();
        listing.files.iter().filter_map(move |f| Some((f.path.strip_prefix(&prefix)?, f)))
    }

    /// The folder's path.
    pub(super) fn path(&self) -> String {
        self.prefix.trim_end_matches('/').to_owned()
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a RemoteFile> {
        self.listing.get(&format!("{}{name}", self.prefix))
    }

    pub(super) fn needed(&self, name: &str) -> Result<RemoteFile> {
        let remedy: &[&str] = match name {
            "tokenizer.json" => &[
                "it may hold a tokenizer of the old kind only: name a model with the same vocabulary that has a tokenizer.json \
                 (t5-small for the T5 family, gpt2 for the GPT-2 family), or load it in Python and save it again",
            ],
            _ => &[],
        };
        self.get(name).cloned().ok_or_else(|| self.lacks(name, remedy))
    }

    pub(super) fn lacks(&self, missing: &str, remedy: &[&str]) -> Error {
        let some: Vec<&str> = self.listing.files.iter().map(|f| f.path.as_str()).take(12).collect();
        let rest = self.listing.files.len().saturating_sub(some.len());
        let holds = match (some.is_empty(), rest) {
            (true, _) => "it is empty".to_owned(),
            (_, 0) => format!("it holds {}", some.join(", ")),
            (_, n) => format!("it holds {} and {n} more", some.join(", ")),
        };
        let remedy = match remedy.first() {
            Some(remedy) => format!("{holds}; {remedy}"),
            None => format!("{holds}; is it {}?", self.what.noun()),
        };
        Error::Lacks { what: self.reference.to_string(), missing: missing.to_owned(), remedy }
    }

    /// One file of weights, or the shards of an index and the index. Safetensors are preferred.
    pub(super) fn weights(&self, fetch: &mut Fetch) -> Result<Vec<RemoteFile>> {
        for (whole, index) in WEIGHTS {
            if let Some(file) = self.get(whole) {
                return Ok(vec![file.clone()]);
            }
            if let Some(file) = self.get(index) {
                let mut files = vec![file.clone()];
                for shard in self.shards(file, fetch)? {
                    files.push(self.needed(&shard)?);
                }
                return Ok(files);
            }
        }
        Err(self.lacks("model.safetensors (nor an index of shards, nor pytorch_model.bin)", &[]))
    }

    pub(super) fn encoder(&self, fetch: &mut Fetch) -> Result<Vec<RemoteFile>> {
        let mut files = vec![self.needed("config.json")?];
        files.extend(["tokenizer.json", "latent_stats.json"].iter().filter_map(|name| self.get(name)).cloned());
        files.extend(self.weights(fetch)?);
        Ok(files)
    }

    fn shards(&self, index: &RemoteFile, fetch: &mut Fetch) -> Result<BTreeSet<String>> {
        let odd = |why: &str| Error::Lacks {
            what: format!("{}:{}", self.reference.id(), index.path),
            missing: "list of shards that can be read".to_owned(),
            remedy: why.to_owned(),
        };
        let path = fetch(index)?;
        let size = std::fs::metadata(&path).map_err(Error::disk("read", &path))?.len();
        if size > LARGEST_INDEX {
            return Err(odd("it is larger than any index"));
        }
        let bytes = std::fs::read(&path).map_err(Error::disk("read", &path))?;
        let json: Value = serde_json::from_slice(&bytes).map_err(|e| odd(&format!("it is no JSON: {e}")))?;
        let Some(map) = json["weight_map"].as_object().filter(|m| !m.is_empty()) else {
            return Err(odd("it has no `weight_map`"));
        };
        map.values()
            .map(|v| {
                v.as_str()
                    .filter(|s| is_inner_path(s))
                    .map(str::to_owned)
                    .ok_or_else(|| odd("a shard's name is no file name"))
            })
            .collect()
    }

    /// All data files of the best kind, and the files that describe them.
    pub(super) fn data(&self) -> Result<Vec<RemoteFile>> {
        for kinds in [&["parquet"][..], &["arrow"], &["jsonl", "ndjson"], &["json"], &["txt", "text"]] {
            let of_kind = |path: &str| {
                let path = [".gz", ".zst", ".zstd"].iter().find_map(|end| path.strip_suffix(end)).unwrap_or(path);
                let extension = path.rsplit_once('.').map_or("", |(_, e)| e).to_ascii_lowercase();
                kinds.contains(&extension.as_str()) && !is_description(path)
            };
            if self.files().any(|(path, _)| of_kind(path)) {
                let wanted = |path: &str| of_kind(path) || is_description(path);
                return Ok(self.files().filter(|(path, _)| wanted(path)).map(|(_, f)| f.clone()).collect());
            }
        }
        Err(self.lacks("Parquet, Arrow, JSON-lines or text file", &[]))
    }

    /// The repository's own folder.
    pub(super) fn whole(&self) -> Self {
        Self { what: self.what, reference: self.reference, listing: self.listing, prefix: String::new() }
    }

    /// The data files of a split: those with its name, or one of its synonyms, as a word in their paths.
    pub(super) fn split(&self, name: &str) -> Result<Selection> {
        const SYNONYMS: [&[&str]; 3] = [
            &["train", "training"],
            &["validation", "valid", "dev", "val"],
            &["test", "testing", "eval", "evaluation"],
        ];
        let split = name.rsplit('/').next().unwrap_or(name);
        let synonyms: Option<&[&str]> = SYNONYMS.into_iter().find(|words| words.contains(&split));
        let words = synonyms.unwrap_or(std::slice::from_ref(&split));
        let has_word = |path: &str| path.split(|c: char| !c.is_ascii_alphabetic()).any(|word| words.contains(&word));
        let data = self.data().unwrap_or_default();
        let mut files: Vec<RemoteFile> =
            data.into_iter().filter(|f| is_description(&f.path) || has_word(&f.path)).collect();
        if files.iter().all(|f| is_description(&f.path)) {
            return Err(self.lacks("file, folder or split of that name", &[]));
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Selection { files, result: name.to_owned() })
    }
}

fn is_description(path: &str) -> bool {
    DESCRIPTIONS.contains(&path.rsplit('/').next().unwrap_or(path))
}
