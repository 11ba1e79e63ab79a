//! The list of a folder's finished shards, from which an interrupted preparation continues.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{EosOptions, MANIFEST};
use crate::error::{Error, Result};
use crate::packing::Packing;
use crate::source::PlainText;

/// Every setting and input that determines the content of the shards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    pub format_version: u32,
    pub tokenizer: String,
    pub inputs: Vec<Input>,
    pub plain_text: PlainText,
    pub target_column: String,
    pub condition_column: Option<String>,
    pub eos: EosOptions,
    pub packing: Packing,
    pub documents_per_shard: usize,
}

/// An input file, identified by name and size: hashing its content would cost as much as tokenising it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    pub name: String,
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FinishedShard {
    pub file: String,
    pub bytes: u64,
    /// Rows of the source in this shard, empty documents included. A rerun skips them.
    pub source_rows: u64,
    pub documents: u64,
    pub rows: u64,
    pub tokens: u64,
    pub condition_tokens: u64,
    /// Unknown ids in both columns; 0 in manifests of before they were counted.
    #[serde(default)]
    pub unknown: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub parameters: Parameters,
    pub complete: bool,
    pub shards: Vec<FinishedShard>,
}

impl Manifest {
    /// The manifest of `folder`, if it has one.
    pub(super) fn load(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(MANIFEST);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("read", &path)(e)),
        };
        let damaged = |e: serde_json::Error| Error::Damaged {
            path: path.clone(),
            reason: e.to_string(),
            remedy: "prepare the data again, with overwriting allowed or into another folder",
        };
        let manifest: Self = serde_json::from_slice(&bytes).map_err(damaged)?;
        if manifest.shards.iter().any(|shard| Path::new(&shard.file).file_name() != Some(shard.file.as_ref())) {
            return Err(Error::Config(format!("`{}` names a shard outside its folder", path.display())));
        }
        Ok(Some(manifest))
    }

    pub(super) fn save(&self, folder: &Path) -> Result<()> {
        let path = folder.join(MANIFEST);
        let json = serde_json::to_vec_pretty(self).map_err(|e| Error::io("write", &path)(e.into()))?;
        elf_files::write(&path, &json).map_err(Error::io("write", &path))
    }

    /// Drops the first shard that is missing or has another size, and all shards after it.
    pub(super) fn forget_lost_shards(&mut self, folder: &Path) {
        let whole =
            |shard: &&FinishedShard| fs::metadata(folder.join(&shard.file)).is_ok_and(|file| file.len() == shard.bytes);
        let kept = self.shards.iter().take_while(whole).count();
        if kept < self.shards.len() {
            self.shards.truncate(kept);
            self.complete = false;
        }
    }
}

impl Parameters {
    /// The names of the parameters that differ, for a message.
    pub(super) fn difference(&self, other: &Self) -> Option<String> {
        let version = self.format_version != other.format_version;
        let tokenizer = self.tokenizer != other.tokenizer;
        let inputs = self.inputs != other.inputs || self.plain_text != other.plain_text;
        let columns = self.target_column != other.target_column || self.condition_column != other.condition_column;
        let differs = [
            (version, "format version"),
            (tokenizer, "tokenizer"),
            (inputs, "input files"),
            (columns, "columns"),
            (self.eos != other.eos, "EOS options"),
            (self.packing != other.packing, "packing"),
            (self.documents_per_shard != other.documents_per_shard, "documents per shard"),
        ];
        let names: Vec<&str> = differs.iter().filter(|(yes, _)| *yes).map(|(_, name)| *name).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }
}
