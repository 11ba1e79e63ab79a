//! Which files of a repository are needed for what.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::listing::{Listing, RemoteFile};
use crate::reference::{Reference, is_inner_path};

/// What a reference is wanted for. It decides the kind of repository and the files that are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A text encoder: `config.json`, weights, and `tokenizer.json` and `latent_stats.json` if there are any. Gives a folder.
    Encoder,
    /// A GPT-2 that judges text: `config.json`, `tokenizer.json`, weights. Gives a folder.
    Gpt2,
    /// `tokenizer.json`. Gives the file.
    Tokenizer,
    /// A data set, from a data set repository: its Parquet files, or else its Arrow, JSON-lines or text files. Gives a
    /// folder, or the file that was named.
    Dataset,
    /// The one file that was named, from a model repository. Gives the file.
    File,
    /// A trained model: a run's plan, tokenizer and latest checkpoint; or the latest `checkpoint_N` with the settings beside
    /// it; or weights with `config.json`, the guide that `sampling.yml` may ask for, and the encoder if it lies in a folder of
    /// the repository; or the only weights there are. Gives a folder, or a file where it is one file.
    ElfCheckpoint,
}

impl What {
    /// `model` or `dataset`.
    pub(crate) fn repository_kind(self) -> &'static str {
        match self {
            Self::Dataset => "dataset",
            _ => "model",
        }
    }

    fn noun(self) -> &'static str {
        match self {
            Self::Encoder => "a text encoder",
            Self::Gpt2 => "a GPT-2",
            Self::Tokenizer => "a tokenizer",
            Self::Dataset => "a data set",
            Self::File => "a file",
            Self::ElfCheckpoint => "a trained model",
        }
    }
}

/// Files to fetch, and which of them (or which folder over them) is the result.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Selection {
    pub files: Vec<RemoteFile>,
    /// Relative to the repository; empty for the whole.
    pub result: String,
}

const WEIGHTS: [(&str, &str); 2] =
    [("model.safetensors", "model.safetensors.index.json"), ("pytorch_model.bin", "pytorch_model.bin.index.json")];

/// An index of shards larger than this is none.
const LARGEST_INDEX: u64 = 64 << 20;

/// The settings that the released code leaves beside its checkpoints.
const RECORD: &str = "config.yml";

/// The file that says how a model is sampled from, and the folder of the lesser model that it may ask for, as `elf export` names them.
const SAMPLING: &str = "sampling.yml";
const GUIDE: &str = "guide";

/// The setting that says which encoder a model was made with: a folder within its repository, or one elsewhere.
const ENCODER_KEY: &str = "encoder_model_name";

/// Settings larger than this are none.
const LARGEST_RECORD: u64 = 1 << 20;

/// What the repositories of the ELF authors' PyTorch checkpoints end in; those without hold the same models for JAX.
const TORCH: &str = "-torch";

/// Whether a file belongs to a checkpoint that Orbax, JAX's library for them, wrote.
fn is_orbax(path: &str) -> bool {
    path.split('/').any(|part| {
        ["_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"].contains(&part) || part.starts_with("ocdbt.process_")
    })
}

/// Chooses files. `fetch` brings one file, for indices whose content decides what else is needed.
///
/// # Errors
/// If the repository lacks something, in words that say what it does have; and those of `fetch`.
pub(crate) fn select(
    what: What,
    reference: &Reference,
    listing: &Listing,
    fetch: &mut dyn FnMut(&RemoteFile) -> Result<PathBuf>,
) -> Result<Selection> {
    let prefix = match reference.file() {
        None => String::new(),
        Some(file) => {
            if let Some(found) = listing.get(file) {
                if matches!(what, What::Encoder | What::Gpt2) {
                    return Err(Error::Lacks {
                        what: reference.to_string(),
                        missing: "folder of that name, but a file".to_owned(),
                        remedy: format!("{} is a repository or a folder in one: leave `:{file}` out", what.noun()),
                    });
                }
                // The released code's checkpoints do not say how they were trained: the file beside them does.
                let folder = file.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
                let record = listing.get(&format!("{folder}{RECORD}")).filter(|_| what == What::ElfCheckpoint);
                let files = record.into_iter().filter(|record| *record != found).chain([found]).cloned().collect();
                return Ok(Selection { files, result: file.to_owned() });
            }
            format!("{file}/")
        }
    };
    let within = Within { what, reference, listing, prefix };
    if within.files().next().is_none() && reference.file().is_some() {
        return Err(within.lacks("file or folder of that name", &[]));
    }
    let files = match what {
        What::File => {
            return Err(Error::Lacks {
                what: reference.to_string(),
                missing: "file in its name".to_owned(),
                remedy: "write which one is meant: org/name:file".to_owned(),
            });
        }
        What::Tokenizer => {
            let file = within.needed("tokenizer.json")?;
            let result = file.path.clone();
            return Ok(Selection { files: vec![file], result });
        }
        What::Encoder => within.encoder(fetch)?,
        What::Gpt2 => {
            let mut files = vec![within.needed("config.json")?, within.needed("tokenizer.json")?];
            files.extend(within.weights(fetch)?);
            files
        }
        What::Dataset => within.data()?,
        What::ElfCheckpoint => return within.checkpoint(fetch),
    };
    Ok(Selection { files, result: within.folder() })
}

struct Within<'a> {
    what: What,
    reference: &'a Reference,
    listing: &'a Listing,
    prefix: String,
}

impl<'a> Within<'a> {
    fn files(&self) -> impl Iterator<Item = (&'a str, &'a RemoteFile)> {
        let listing = self.listing;
        let prefix = self.prefix.clone();
        listing.files.iter().filter_map(move |f| Some((f.path.strip_prefix(&prefix)?, f)))
    }

    fn folder(&self) -> String {
        self.prefix.trim_end_matches('/').to_owned()
    }

    fn get(&self, name: &str) -> Option<&'a RemoteFile> {
        self.listing.get(&format!("{}{name}", self.prefix))
    }

    fn needed(&self, name: &str) -> Result<RemoteFile> {
        let remedy: &[&str] = match name {
            "tokenizer.json" => &[
                "it may hold a tokenizer of the old kind only: name a model with the same vocabulary that has a tokenizer.json \
                 (t5-small for the T5 family, gpt2 for the GPT-2 family), or load it in Python and save it again",
            ],
            _ => &[],
        };
        self.get(name).cloned().ok_or_else(|| self.lacks(name, remedy))
    }

    fn lacks(&self, missing: &str, remedy: &[&str]) -> Error {
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

    /// One file or the shards of an index; safetensors if there are both kinds.
    fn weights(&self, fetch: &mut dyn FnMut(&RemoteFile) -> Result<PathBuf>) -> Result<Vec<RemoteFile>> {
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

    /// A folder in this one, for another purpose.
    fn folder_in(&self, name: &str, what: What) -> Self {
        Self { what, reference: self.reference, listing: self.listing, prefix: format!("{}{name}/", self.prefix) }
    }

    fn encoder(&self, fetch: &mut dyn FnMut(&RemoteFile) -> Result<PathBuf>) -> Result<Vec<RemoteFile>> {
        let mut files = vec![self.needed("config.json")?];
        files.extend(["tokenizer.json", "latent_stats.json"].iter().filter_map(|name| self.get(name)).cloned());
        files.extend(self.weights(fetch)?);
        Ok(files)
    }

    /// The settings at the top of the folder.
    fn settings(&self) -> impl Iterator<Item = RemoteFile> {
        let settings = |path: &str| !path.contains('/') && [".yml", ".yaml", ".json"].iter().any(|e| path.ends_with(e));
        self.files().filter(move |(path, _)| settings(path)).map(|(_, file)| file.clone())
    }

    /// Settings and weights that lie together.
    fn described_weights(&self, fetch: &mut dyn FnMut(&RemoteFile) -> Result<PathBuf>) -> Result<Vec<RemoteFile>> {
        let weights = self.weights(fetch)?;
        let mut files: Vec<RemoteFile> = self.settings().filter(|f| !f.path.ends_with(".index.json")).collect();
        files.extend(weights);
        Ok(files)
    }

    /// What lies in folders beside a model and is used with it: the guide that its sampling asks for, and its encoder.
    fn companions(&self, fetch: &mut dyn FnMut(&RemoteFile) -> Result<PathBuf>) -> Result<Vec<RemoteFile>> {
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

    /// The folder in this one that the settings name as the encoder's, if they name one that could be in it.
    fn encoder_name(&self, fetch: &mut dyn FnMut(&RemoteFile) -> Result<PathBuf>) -> Result<Option<String>> {
        let Some(record) = self.get(RECORD) else { return Ok(None) };
        if self.files().all(|(path, _)| !path.contains('/')) {
            // Without folders there is none, and no need to look.
            return Ok(None);
        }
        let path = fetch(record)?;
        let size = std::fs::metadata(&path).map_err(Error::disk("read", &path))?.len();
        if size > LARGEST_RECORD {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&std::fs::read(&path).map_err(Error::disk("read", &path))?).into_owned();
        let value = text.lines().find_map(|line| line.strip_prefix(ENCODER_KEY)?.trim_start().strip_prefix(':'));
        // A name with spaces or a comment: whoever reads the settings as YAML says what is wrong with it.
        let name = value.unwrap_or_default().split(" #").next().unwrap_or_default().trim().trim_matches(['"', '\'']);
        let name = name.trim_start_matches("./").trim_end_matches('/');
        Ok((!name.is_empty() && is_inner_path(name)).then(|| name.to_owned()))
    }

    fn shards(
        &self,
        index: &RemoteFile,
        fetch: &mut dyn FnMut(&RemoteFile) -> Result<PathBuf>,
    ) -> Result<BTreeSet<String>> {
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

    /// All files of the best kind that is there, with what describes them.
    fn data(&self) -> Result<Vec<RemoteFile>> {
        const BESIDE: [&str; 4] = ["manifest.json", "dataset_info.json", "dataset_dict.json", "state.json"];
        let name = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
        for kinds in [&["parquet"][..], &["arrow"], &["jsonl", "ndjson"], &["json"], &["txt", "text"]] {
            let of_kind = |path: &str| {
                let extension = path.rsplit_once('.').map_or("", |(_, e)| e).to_ascii_lowercase();
                kinds.contains(&extension.as_str()) && !BESIDE.contains(&name(path).as_str())
            };
            if self.files().any(|(path, _)| of_kind(path)) {
                let wanted = |path: &str| of_kind(path) || BESIDE.contains(&name(path).as_str());
                return Ok(self.files().filter(|(path, _)| wanted(path)).map(|(_, f)| f.clone()).collect());
            }
        }
        Err(self.lacks("Parquet, Arrow, JSON-lines or text file", &[]))
    }

    fn checkpoint(&self, fetch: &mut dyn FnMut(&RemoteFile) -> Result<PathBuf>) -> Result<Selection> {
        let number_in = |name: &str, before: &str| {
            let name = name.strip_prefix(before)?;
            name.strip_suffix(".pt").unwrap_or(name).parse::<u64>().ok()
        };
        // A run's folder.
        let step = |path: &str| number_in(path.strip_prefix("checkpoints/")?.split('/').next()?, "step-");
        if let Some(latest) = self.files().filter_map(|(path, _)| step(path)).max() {
            let wanted = |path: &str| ["plan.json", "tokenizer.json"].contains(&path) || step(path) == Some(latest);
            let files = self.files().filter(|(path, _)| wanted(path)).map(|(_, f)| f.clone()).collect();
            return Ok(Selection { files, result: self.folder() });
        }
        // The released code's files.
        let numbered = |path: &str| number_in(path.rsplit('/').next()?, "checkpoint_");
        if let Some((_, _, file)) =
            self.files().filter_map(|(path, f)| Some((numbered(path)?, path, f))).max_by_key(|(n, ..)| *n)
        {
            return Ok(Selection { files: self.settings().chain([file.clone()]).collect(), result: file.path.clone() });
        }
        if WEIGHTS.iter().any(|(whole, index)| self.get(whole).or(self.get(index)).is_some()) {
            let mut files = self.described_weights(fetch)?;
            files.extend(self.companions(fetch)?);
            return Ok(Selection { files, result: self.folder() });
        }
        // A checkpoint of JAX is hundreds of files, none of which can be read: nothing of it is fetched.
        if let Some(marker) = self.files().map(|(path, _)| path).find(|path| is_orbax(path)) {
            let id = self.reference.id();
            return Err(Error::JaxCheckpoint {
                what: self.reference.to_string(),
                marker: marker.to_owned(),
                sibling: (!id.ends_with(TORCH)).then(|| format!("{id}{TORCH}")),
            });
        }
        let only = |path: &str| [".safetensors", ".pt", ".pth", ".bin"].iter().any(|e| path.ends_with(e));
        match &self.files().filter(|(path, _)| only(path)).collect::<Vec<_>>()[..] {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(what: What, reference: &str, names: &[&str], index: &str) -> Result<(Vec<String>, String)> {
        let folder = tempfile::tempdir().unwrap();
        let file = |path: &&str| RemoteFile { path: (*path).to_owned(), size: None, hash: None };
        let listing = Listing { commit: String::new(), files: names.iter().map(file).collect() };
        let mut fetch = |_: &RemoteFile| {
            let path = folder.path().join("index");
            std::fs::write(&path, index).unwrap();
            Ok(path)
        };
        let selection = select(what, &Reference::parse(reference).unwrap(), &listing, &mut fetch)?;
        Ok((selection.files.into_iter().map(|f| f.path).collect(), selection.result))
    }

    /// The files of the real repository of GPT-2 Large, 19 GB together.
    const GPT2: [&str; 12] = [
        "64.tflite",
        "README.md",
        "config.json",
        "flax_model.msgpack",
        "generation_config.json",
        "merges.txt",
        "model.safetensors",
        "onnx/decoder_model.onnx",
        "pytorch_model.bin",
        "rust_model.ot",
        "tf_model.h5",
        "tokenizer.json",
    ];

    #[test]
    fn a_judge_is_three_files_of_nineteen_gigabytes() {
        let (files, result) = chosen(What::Gpt2, "gpt2-large", &GPT2, "").unwrap();
        assert_eq!(
            (files, result),
            (["config.json", "tokenizer.json", "model.safetensors"].map(String::from).to_vec(), String::new())
        );
        let without: Vec<&str> = GPT2.into_iter().filter(|n| *n != "model.safetensors").collect();
        assert!(chosen(What::Gpt2, "x", &without, "").unwrap().0.contains(&"pytorch_model.bin".to_owned()));
    }

    #[test]
    fn shards_are_those_of_the_index() {
        let names =
            ["config.json", "model.safetensors.index.json", "m-1.safetensors", "m-2.safetensors", "m-old.safetensors"];
        let index = r#"{"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors", "c": "m-1.safetensors"}}"#;
        let (files, _) = chosen(What::Encoder, "x/y", &names, index).unwrap();
        assert_eq!(files, ["config.json", "model.safetensors.index.json", "m-1.safetensors", "m-2.safetensors"]);
        for (index, part) in [
            ("{", "no JSON"),
            ("{}", "weight_map"),
            (r#"{"weight_map": {"a": "../../x"}}"#, "no file name"),
            (r#"{"weight_map": {"a": "m-3.safetensors"}}"#, "m-3.safetensors"),
        ] {
            let message = chosen(What::Encoder, "x/y", &names, index).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn data_are_the_best_kind_and_folders_narrow() {
        let names = ["README.md", "train/a.parquet", "test/b.parquet", "raw.jsonl"];
        assert_eq!(chosen(What::Dataset, "x/y", &names, "").unwrap().0, ["train/a.parquet", "test/b.parquet"]);
        let narrowed = chosen(What::Dataset, "x/y:test", &names, "").unwrap();
        assert_eq!(narrowed, (vec!["test/b.parquet".to_owned()], "test".to_owned()));
        let one = chosen(What::Dataset, "x/y:raw.jsonl", &names, "").unwrap();
        assert_eq!(one, (vec!["raw.jsonl".to_owned()], "raw.jsonl".to_owned()));
        let saved = ["dataset_info.json", "state.json", "data-00000-of-00001.arrow", "README.md"];
        assert_eq!(chosen(What::Dataset, "x/y", &saved, "").unwrap().0.len(), 3);
        assert!(chosen(What::Dataset, "x/y", &["README.md"], "").unwrap_err().to_string().contains("README.md"));
    }

    #[test]
    fn checkpoints_of_all_layouts() {
        let run = [
            "plan.json",
            "tokenizer.json",
            "metrics.jsonl",
            "checkpoints/step-00000010/state.json",
            "checkpoints/step-00000020/state.json",
        ];
        let (files, result) = chosen(What::ElfCheckpoint, "x/y", &run, "").unwrap();
        assert_eq!(
            (files.join(" "), result.as_str()),
            ("plan.json tokenizer.json checkpoints/step-00000020/state.json".to_owned(), "")
        );
        let released = ["config.yml", "checkpoint_9", "checkpoint_10", "README.md"];
        let (files, result) = chosen(What::ElfCheckpoint, "x/y", &released, "").unwrap();
        assert_eq!((files.join(" "), result.as_str()), ("config.yml checkpoint_10".to_owned(), "checkpoint_10"));
        // Settings of the run, its samples and the model's card lie beside the one file that is wanted.
        let published = [
            ".gitattributes",
            "README.md",
            "checkpoint_95085",
            "config.yml",
            "sde-steps32-cfg1-sccfg3-ts_logit_normal-gamma1.5-uncond/all_generated_5_95085.jsonl",
        ];
        for reference in ["x/y", "x/y:checkpoint_95085", "x/y@main"] {
            let (files, result) = chosen(What::ElfCheckpoint, reference, &published, "").unwrap();
            assert_eq!(result, "checkpoint_95085");
            assert_eq!(files, ["config.yml", "checkpoint_95085"], "{reference}");
        }
        let message = chosen(What::ElfCheckpoint, "x/y", &["a.pt", "b.pt"], "").unwrap_err().to_string();
        assert!(message.contains("x/y:a.pt"), "{message}");
        assert_eq!(chosen(What::ElfCheckpoint, "x/y", &["config.json", "model.safetensors"], "").unwrap().1, "");
    }

    #[test]
    fn an_exported_model_comes_with_its_guide_and_its_encoder() {
        let names = [
            "README.md",
            "config.yml",
            "model.safetensors",
            "sampling.yml",
            "tokenizer.json",
            "guide/config.yml",
            "guide/model.safetensors",
            "guide/notes.txt",
            "guide/tokenizer.json",
            "parts/encoder/config.json",
            "parts/encoder/latent_stats.json",
            "parts/encoder/model.safetensors",
            "samples/a.json",
        ];
        let model = ["config.yml", "sampling.yml", "tokenizer.json", "model.safetensors"];
        let guide = ["guide/config.yml", "guide/tokenizer.json", "guide/model.safetensors"];
        let encoder = ["config.json", "latent_stats.json", "model.safetensors"].map(|n| format!("parts/encoder/{n}"));
        let encoder = encoder.each_ref().map(String::as_str);
        for named in ["parts/encoder", "\"parts/encoder\"", "'./parts/encoder/'  # beside"] {
            let record = format!("max_length: 64\nencoder_model_name: {named}\n");
            let (files, result) = chosen(What::ElfCheckpoint, "x/y", &names, &record).unwrap();
            assert_eq!(
                (files, result.as_str()),
                ([&model[..], &guide, &encoder].concat().iter().map(ToString::to_string).collect(), ""),
                "{named}"
            );
        }
        for elsewhere in ["../parts/encoder", "/parts/encoder", "t5-small", "", "parts"] {
            let record = format!("encoder_model_name: {elsewhere}\n");
            let (files, _) = chosen(What::ElfCheckpoint, "x/y", &names, &record).unwrap();
            assert_eq!(files, [&model[..], &guide].concat(), "{elsewhere}");
        }
        // The same within a folder; and without settings that ask for it, no guide.
        let within: Vec<String> = names.iter().filter(|n| **n != "sampling.yml").map(|n| format!("m/{n}")).collect();
        let within: Vec<&str> = within.iter().map(String::as_str).collect();
        let (files, result) =
            chosen(What::ElfCheckpoint, "x/y:m", &within, "encoder_model_name: parts/encoder").unwrap();
        assert_eq!((files.len(), result.as_str()), (6, "m"), "{files:?}");
        assert!(files.iter().all(|file| !file.contains("guide")), "{files:?}");
        // A guide without weights is no guide, and told before anything large is fetched.
        let half: Vec<&str> = names.into_iter().filter(|n| *n != "guide/model.safetensors").collect();
        assert!(chosen(What::ElfCheckpoint, "x/y", &half, "").unwrap_err().to_string().contains("model.safetensors"));
    }

    #[test]
    fn a_checkpoint_of_jax_is_called_so_and_its_sibling_is_named() {
        let at_the_root = ["README.md", "_METADATA", "manifest.ocdbt", "d/0a1b", "ocdbt.process_0/d/2c3d"];
        let in_a_folder =
            ["config.yml", "checkpoint_95085/_METADATA", "checkpoint_95085/ocdbt.process_0/manifest.ocdbt"];
        for names in [&at_the_root[..], &in_a_folder] {
            let message = chosen(What::ElfCheckpoint, "org/ELF-B-owt", names, "").unwrap_err().to_string();
            for part in ["JAX", "Orbax", "org/ELF-B-owt-torch"] {
                assert!(message.contains(part), "{message}");
            }
        }
        let message = chosen(What::ElfCheckpoint, "org/a-torch", &at_the_root, "").unwrap_err().to_string();
        assert!(message.contains("JAX") && !message.contains("-torch-torch"), "{message}");
        // Where both lie side by side, the one that can be read is.
        let both = [&at_the_root[..], &["checkpoint_7"]].concat();
        assert_eq!(chosen(What::ElfCheckpoint, "org/both", &both, "").unwrap().1, "checkpoint_7");
    }

    #[test]
    fn what_is_missing_is_named_with_what_is_there() {
        let message = chosen(What::Tokenizer, "x/y", &["spiece.model"], "").unwrap_err().to_string();
        assert!(message.contains("tokenizer.json") && message.contains("spiece.model"), "{message}");
        let message =
            chosen(What::Encoder, "x/y:model.safetensors", &["model.safetensors"], "").unwrap_err().to_string();
        assert!(message.contains("leave"), "{message}");
        assert!(chosen(What::File, "x/y", &["a"], "").unwrap_err().to_string().contains("org/name:file"));
        assert!(chosen(What::File, "x/y:b", &["a"], "").unwrap_err().to_string().contains("of that name"));
    }
}
