//! Trained models in the layouts of runs, of the released code and of exports.

use super::chosen::{Fetch, Selection};
use super::folder::{Folder, RECORD, WEIGHTS};
use super::what::What;
use crate::error::{Error, Result};
use crate::listing::RemoteFile;
use crate::reference::is_inner_path;

/// The file of sampling settings, and the folder of the guide that they may name, as `elf export` writes them.
const SAMPLING: &str = "sampling.yml";
const GUIDE: &str = "guide";

/// The words that a model's texts may consist of.
const WORDS: &str = "words.txt";

/// The setting that names the encoder: a folder of the repository, or one elsewhere.
const ENCODER_KEY: &str = "encoder_model_name";

/// Largest file of settings in bytes.
const LARGEST_RECORD: u64 = 1 << 20;

/// The ending of the ids of the ELF authors' PyTorch checkpoints. The id without it holds the same model for JAX.
const TORCH: &str = "-torch";

/// Whether a file belongs to a checkpoint of Orbax, JAX's library for checkpoints.
fn is_orbax(path: &str) -> bool {
    path.split('/').any(|part| {
        ["_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"].contains(&part) || part.starts_with("ocdbt.process_")
    })
}

impl Folder<'_> {
    /// A folder in this one, for a purpose of its own.
    fn folder_in(&self, name: &str, what: What) -> Self {
        Self { what, reference: self.reference, listing: self.listing, prefix: format!("{}{name}/", self.prefix) }
    }

    /// The settings and the list of words at the top of the folder.
    fn settings(&self) -> impl Iterator<Item = RemoteFile> {
        let settings = |path: &str| {
            path == WORDS || !path.contains('/') && [".yml", ".yaml", ".json"].iter().any(|e| path.ends_with(e))
        };
        self.files().filter(move |(path, _)| settings(path)).map(|(_, file)| file.clone())
    }

    /// Weights and the settings in their folder.
    fn described_weights(&self, fetch: &mut Fetch) -> Result<Vec<RemoteFile>> {
        let weights = self.weights(fetch)?;
        let mut files: Vec<RemoteFile> = self.settings().filter(|f| !f.path.ends_with(".index.json")).collect();
        files.extend(weights);
        Ok(files)
    }

    /// The guide of the model's sampling and its encoder, if they are folders of the repository.
    fn companions(&self, fetch: &mut Fetch) -> Result<Vec<RemoteFile>> {
        let mut files = Vec::new();
        let guide = self.folder_in(GUIDE, What::ElfCheckpoint);
        if self.get(SAMPLING).is_some() && guide.files().next().is_some() {
            files.extend(guide.described_weights(fetch)?);
        }
        if let Some(name) = self.encoder_name(fetch)? {
            let encoder = self.folder_in(&name, What::Encoder);
            if encoder.get("config.json").is_some() {
                files.extend(encoder.encoder(fetch)?);
            }
        }
        Ok(files)
    }

    /// The encoder's folder in this one, if the settings name a relative path.
    fn encoder_name(&self, fetch: &mut Fetch) -> Result<Option<String>> {
        let Some(record) = self.get(RECORD) else { return Ok(None) };
        if self.files().all(|(path, _)| !path.contains('/')) {
            // Without folders the settings need not be fetched.
            return Ok(None);
        }
        let path = fetch(record)?;
        let size = std::fs::metadata(&path).map_err(Error::disk("read", &path))?.len();
        if size > LARGEST_RECORD {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&std::fs::read(&path).map_err(Error::disk("read", &path))?).into_owned();
        let value = text.lines().find_map(|line| line.strip_prefix(ENCODER_KEY)?.trim_start().strip_prefix(':'));
        // Faults in the settings are reported by the YAML parser that reads them later.
        let name = value.unwrap_or_default().split(" #").next().unwrap_or_default().trim().trim_matches(['"', '\'']);
        let name = name.trim_start_matches("./").trim_end_matches('/');
        Ok((!name.is_empty() && is_inner_path(name)).then(|| name.to_owned()))
    }

    /// The files of a trained model.
    pub(super) fn checkpoint(&self, fetch: &mut Fetch) -> Result<Selection> {
        let number_in = |name: &str, before: &str| {
            let name = name.strip_prefix(before)?;
            name.strip_suffix(".pt").unwrap_or(name).parse::<u64>().ok()
        };
        // The folder of a run.
        let step = |path: &str| number_in(path.strip_prefix("checkpoints/")?.split('/').next()?, "step-");
        if let Some(latest) = self.files().filter_map(|(path, _)| step(path)).max() {
            let wanted =
                |path: &str| ["plan.json", "tokenizer.json", WORDS].contains(&path) || step(path) == Some(latest);
            let files = self.files().filter(|(path, _)| wanted(path)).map(|(_, f)| f.clone()).collect();
            return Ok(Selection { files, result: self.path() });
        }
        // Files of the released code.
        let numbered = |path: &str| number_in(path.rsplit('/').next()?, "checkpoint_");
        if let Some((_, _, file)) =
            self.files().filter_map(|(path, f)| Some((numbered(path)?, path, f))).max_by_key(|(n, ..)| *n)
        {
            return Ok(Selection { files: self.settings().chain([file.clone()]).collect(), result: file.path.clone() });
        }
        if WEIGHTS.iter().any(|(whole, index)| self.get(whole).or(self.get(index)).is_some()) {
            let mut files = self.described_weights(fetch)?;
            files.extend(self.companions(fetch)?);
            return Ok(Selection { files, result: self.path() });
        }
        // A JAX checkpoint has hundreds of files, none of which can be read: none is fetched.
        if let Some(marker) = self.files().map(|(path, _)| path).find(|path| is_orbax(path)) {
            let id = self.reference.id();
            return Err(Error::JaxCheckpoint {
                what: self.reference.to_string(),
                marker: marker.to_owned(),
                sibling: (!id.ends_with(TORCH)).then(|| format!("{id}{TORCH}")),
            });
        }
        self.only_weights()
    }

    /// The only file of weights of any name, with the settings in the folder.
    fn only_weights(&self) -> Result<Selection> {
        let is_weights = |path: &str| [".safetensors", ".pt", ".pth", ".bin"].iter().any(|e| path.ends_with(e));
        match &self.files().filter(|(path, _)| is_weights(path)).collect::<Vec<_>>()[..] {
            [(_, file)] => {
                Ok(Selection { files: self.settings().chain([(*file).clone()]).collect(), result: file.path.clone() })
            }
            [] => Err(self.lacks("checkpoint", &[])),
            [(first, _), ..] => Err(self.lacks(
                "single checkpoint, but several",
                &[&format!("say which one is meant, such as {}:{}{first}", self.reference.id(), self.prefix)],
            )),
        }
    }
}
