//! Parameters by name, from safetensors (one file, or shards with an index) or a PyTorch checkpoint.
//!
//! The names are the model's own, without the prefixes of wrappers: `_orig_mod.` of compiled PyTorch modules, `module.` of
//! data-parallel ones, and `model.` of Lightning if the file's names have it. A training checkpoint gives either the averages or the
//! trained parameters.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::pytorch::{PyTorchFile, TensorRef};
use crate::tensorfile::TensorFile;
use crate::{Error, Result};

/// One of a training checkpoint's two sets of parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParamKind {
    /// The running averages, if the file has them: the model to sample from.
    Averaged,
    /// The trained parameters.
    Trained,
}

/// The key of the parameters in a training checkpoint.
pub const TRAINED: &str = "params";
/// The key of their averages.
pub const AVERAGED: &str = "ema_params1";
/// Prefixes that PyTorch's wrappers of modules leave.
const WRAPPERS: [&str; 2] = ["_orig_mod.", "module."];
/// The prefix of a model that a Lightning module holds, and a key of its checkpoints.
const LIGHTNING: (&str, &str) = ("model.", "pytorch-lightning_version");
/// Longest index of shards in bytes.
const MAX_INDEX: u64 = 64 << 20;

/// A set of named tensors in one or more files. Each is copied only when it is requested.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    store: Store,
    names: BTreeMap<String, At>,
    notes: Vec<String>,
}

#[derive(Debug)]
enum Store {
    Safetensors(Vec<TensorFile>),
    PyTorch(Arc<PyTorchFile>),
}

#[derive(Debug)]
enum At {
    Safetensors { file: usize, name: String },
    PyTorch(TensorRef),
}

impl Weights {
    /// Opens a safetensors file, an index of shards (`*.index.json`), a PyTorch checkpoint, or a folder: its latest
    /// `checkpoint_N`, its `model.safetensors`, its index, or its `pytorch_model.bin`.
    ///
    /// # Errors
    /// If there is none, or it is damaged or refused.
    pub fn open(path: &Path, which: ParamKind) -> Result<Self> {
        let path = &find(path)?;
        if path.extension().is_some_and(|e| e == "json") {
            return Self::sharded(path, which);
        }
        match PyTorchFile::is_pytorch(path)? {
            true => Self::of_pytorch(Arc::new(PyTorchFile::open(path)?), which),
            false => Self::of_safetensors(path, vec![TensorFile::open(path)?], which),
        }
    }

    /// The parameters in a PyTorch checkpoint that is already open.
    ///
    /// # Errors
    /// If there are none.
    pub fn of_pytorch(file: Arc<PyTorchFile>, which: ParamKind) -> Result<Self> {
        let path = file.path().to_owned();
        let bad = |reason: String| Error::Checkpoint { path: path.clone(), reason };
        let top = file.value();
        let keys = match which {
            ParamKind::Averaged => [AVERAGED, TRAINED],
            ParamKind::Trained => [TRAINED, TRAINED],
        };
        let filled = |key: &&str| top.get(key).filter(|v| v.items().is_some_and(|items| !items.is_empty()));
        let dict = keys.iter().find_map(filled).or_else(|| top.get("state_dict")).unwrap_or(top);
        let mut names = BTreeMap::new();
        for (key, value) in
            dict.items().ok_or_else(|| bad(format!("it holds {}, no dict of parameters", dict.kind_name())))?
        {
            let name = key.as_str().ok_or_else(|| bad("a parameter's name is no text".into()))?;
            let tensor = value.as_tensor().ok_or_else(|| {
                bad(format!("`{}` is {} where a parameter should be", name.escape_default(), value.kind_name()))
            })?;
            insert(&mut names, name, At::PyTorch(tensor.clone())).map_err(bad)?;
        }
        let lightning = top.get(LIGHTNING.1).is_some();
        Ok(Self::new(path, names, Store::PyTorch(Arc::clone(&file)), lightning))
    }

    fn new(path: PathBuf, names: BTreeMap<String, At>, store: Store, lightning: bool) -> Self {
        let mut weights = Self { path, store, names, notes: Vec::new() };
        weights.unwrap_lightning(lightning);
        let doubles = weights.names.keys().filter(|name| weights.kind(name) == Some(Kind::Double)).count();
        if doubles > 0 {
            let of = weights.names.len();
            weights.note(&format!("{doubles} of {of} tensors are float64 and are rounded to fp32"));
        }
        weights
    }

    /// Takes the prefix `model.` off, if all names have it. Of a Lightning checkpoint where only some have it, the others belong to
    /// losses and metrics and are left out.
    fn unwrap_lightning(&mut self, lightning: bool) {
        let prefix = LIGHTNING.0;
        let others: Vec<String> = self.names.keys().filter(|name| !name.starts_with(prefix)).cloned().collect();
        if others.len() == self.names.len() || !(others.is_empty() || lightning) {
            return;
        }
        if let Some(first) = others.first() {
            let n = others.len();
            self.note(&format!(
                "{n} tensors of the Lightning module outside of its `model` were left out, such as {first}"
            ));
        }
        let names = std::mem::take(&mut self.names);
        let unwrapped =
            names.into_iter().filter_map(|(name, at)| Some((unwrapped(name.strip_prefix(prefix)?).to_owned(), at)));
        self.names = unwrapped.collect();
    }

    fn note(&mut self, note: &str) {
        self.notes.push(format!("{}: {note}", self.path.display()));
    }

    /// Remarks on how the file was read, for the user: what was converted or left out.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    fn of_safetensors(path: &Path, files: Vec<TensorFile>, which: ParamKind) -> Result<Self> {
        let all = || files.iter().enumerate().flat_map(|(i, f)| f.names().map(move |n| (i, n)));
        // Names of a whole training checkpoint as safetensors begin with the checkpoint's keys.
        let under = |key: &str| Some(format!("{key}/")).filter(|p| all().any(|(_, n)| n.starts_with(p.as_str())));
        let averaged = if which == ParamKind::Averaged { under(AVERAGED) } else { None };
        let prefix = averaged.or_else(|| under(TRAINED)).unwrap_or_default();
        let mut names = BTreeMap::new();
        for (file, full) in all() {
            if let Some(name) = full.strip_prefix(&prefix) {
                insert(&mut names, name, At::Safetensors { file, name: full.to_owned() })
                    .map_err(|reason| Error::Corrupt { path: path.to_owned(), reason })?;
            }
        }
        Ok(Self::new(path.to_owned(), names, Store::Safetensors(files), false))
    }

    fn sharded(path: &Path, which: ParamKind) -> Result<Self> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let bad = |reason: String| Error::Corrupt { path: path.to_owned(), reason };
        let length = std::fs::metadata(path).map_err(Error::io("read", path))?.len();
        if length > MAX_INDEX {
            return Err(bad(format!("an index of {length} bytes is longer than any model needs")));
        }
        let text = std::fs::read(path).map_err(Error::io("read", path))?;
        let index: Index = serde_json::from_slice(&text).map_err(|e| bad(format!("it is no index of shards ({e})")))?;
        let mut shards: Vec<&String> = index.weight_map.values().collect();
        shards.sort_unstable();
        shards.dedup();
        let mut files = Vec::with_capacity(shards.len());
        for shard in &shards {
            // The name comes from a file, and must not lead out of the folder.
            if Path::new(shard).file_name().is_none_or(|n| n != shard.as_str()) {
                return Err(bad(format!("the shard `{}` lies outside of its folder", shard.escape_default())));
            }
            files.push(TensorFile::open(path.with_file_name(shard))?);
        }
        for (name, shard) in &index.weight_map {
            let file = shards.binary_search(&shard).ok().map(|i| &files[i]);
            if file.and_then(|f| f.shape(name)).is_none() {
                return Err(bad(format!("{shard} should hold {name}, but has no such tensor")));
            }
        }
        for file in &files {
            if let Some(name) = file.names().find(|n| !index.weight_map.contains_key(*n)) {
                return Err(bad(format!("{} holds {name}, which the index does not mention", file.path().display())));
            }
        }
        Self::of_safetensors(path, files, which)
    }

    /// The file; of a folder, the one that was found in it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// The shape of a tensor, without reading it.
    pub fn shape(&self, name: &str) -> Option<Vec<i64>> {
        match (self.names.get(name)?, &self.store) {
            (At::PyTorch(t), _) => Some(t.shape().to_vec()),
            (At::Safetensors { file, name }, Store::Safetensors(files)) => files[*file].shape(name),
            (At::Safetensors { .. }, Store::PyTorch(_)) => None,
        }
    }

    /// The reason why these cannot be the weights of a configuration with this number of `parameters`, if they hold less than half
    /// of it. Call this before anything is allocated, so that a damaged size does not request terabytes. Smaller differences are
    /// reported name by name when parameters are loaded.
    pub fn fall_short_of(&self, parameters: i64) -> Option<String> {
        let held = self.numel();
        let reason = || {
            format!(
                "it describes {parameters} parameters, but {} holds only {held} numbers; both must be of the same model",
                self.path.display()
            )
        };
        (parameters > held.saturating_mul(2)).then(reason)
    }

    /// Number of elements of all tensors, without reading any.
    pub fn numel(&self) -> i64 {
        let numbers = |name| self.shape(name).map_or(0, |shape| shape.iter().fold(1i64, |n, &d| n.saturating_mul(d)));
        self.names().map(numbers).fold(0, i64::saturating_add)
    }

    /// The kind of a tensor's elements, without reading it.
    pub fn kind(&self, name: &str) -> Option<Kind> {
        match (self.names.get(name)?, &self.store) {
            (At::PyTorch(t), _) => Some(t.kind()),
            (At::Safetensors { file, name }, Store::Safetensors(files)) => files[*file].kind(name),
            (At::Safetensors { .. }, Store::PyTorch(_)) => None,
        }
    }

    /// One tensor, copied to `device`.
    ///
    /// # Errors
    /// If there is no tensor of that name, or its bytes are damaged.
    pub fn get(&self, name: &str, device: Device) -> Result<Tensor> {
        match (self.names.get(name), &self.store) {
            (Some(At::PyTorch(t)), Store::PyTorch(file)) => file.tensor(t, device),
            (Some(At::Safetensors { file, name }), Store::Safetensors(files)) => files[*file].get(name, device),
            _ => Err(Error::Config(format!("{} has no tensor {name}", self.path.display()))),
        }
    }
}

/// A parameter's name without the prefixes of PyTorch's wrappers.
pub fn unwrapped(name: &str) -> &str {
    let mut name = name;
    while let Some(inner) = WRAPPERS.iter().find_map(|w| name.strip_prefix(w)) {
        name = inner;
    }
    name
}

fn insert(names: &mut BTreeMap<String, At>, name: &str, at: At) -> std::result::Result<(), String> {
    match names.insert(unwrapped(name).to_owned(), at) {
        None => Ok(()),
        Some(_) => Err(format!("two parameters are named {}", unwrapped(name).escape_default())),
    }
}

/// The newest `checkpoint_N` in a folder.
///
/// # Errors
/// If the folder cannot be read.
pub fn latest_checkpoint(folder: &Path) -> Result<Option<PathBuf>> {
    let mut latest: Option<(u64, PathBuf)> = None;
    for entry in std::fs::read_dir(folder).map_err(Error::io("read", folder))? {
        let path = entry.map_err(Error::io("read", folder))?.path();
        let number = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix("checkpoint_"));
        if let Some(number) = number.and_then(|n| n.strip_suffix(".pt").unwrap_or(n).parse().ok())
            && path.is_file()
            && latest.as_ref().is_none_or(|(n, _)| number > *n)
        {
            latest = Some((number, path));
        }
    }
    Ok(latest.map(|(_, path)| path))
}

/// The file of weights that a path stands for: itself, or the one in the folder.
///
/// # Errors
/// If a folder has none.
pub fn find(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    if let Some(latest) = latest_checkpoint(path)? {
        return Ok(latest);
    }
    let usual = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"];
    if let Some(found) = usual.iter().map(|name| path.join(name)).find(|p| p.is_file()) {
        return Ok(found);
    }
    refuse_jax(path)?;
    Err(Error::Config(format!("{} holds neither a checkpoint_N nor any of {}", path.display(), usual.join(", "))))
}

/// Files that mark the folders of Orbax, JAX's library for checkpoints.
const ORBAX: [&str; 3] = ["_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"];

/// Refuses a folder that is a JAX checkpoint or contains one.
fn refuse_jax(path: &Path) -> Result<()> {
    let marker = |folder: &Path| ORBAX.iter().map(|name| folder.join(name)).find(|file| file.is_file());
    let below = std::fs::read_dir(path).map_err(Error::io("read", path))?.flatten().map(|entry| entry.path());
    match marker(path).or_else(|| below.filter(|p| p.is_dir()).find_map(|folder| marker(&folder))) {
        None => Ok(()),
        Some(marker) => Err(Error::Checkpoint {
            path: path.to_owned(),
            reason: format!(
                "{} belongs to a JAX checkpoint (Orbax), which is not read here; take the PyTorch checkpoint of the same model: \
                 the ELF authors publish theirs under the same id with -torch behind it, such as \
                 embedded-language-flows/ELF-B-owt-torch",
                marker.display()
            ),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pytorch::{self, Value};
    use crate::{Fans, Init, ParamBuilder, ParamSet, tensorfile};
    use std::collections::HashMap;

    fn numbers(n: i64) -> Tensor {
        Tensor::arange(n, (Kind::Float, Device::Cpu))
    }

    fn set() -> ParamSet {
        let mut b = ParamBuilder::unset(Device::Cpu);
        b.matrix("w", [2, 3], Init::Constant(0.0), Fans { fan_in: 3, fan_out: 2 }).unwrap();
        b.tensor("b", &[2], Init::Constant(0.0)).unwrap();
        b.finish()
    }

    #[test]
    fn averages_come_first_and_wrappers_are_taken_off() {
        let folder = tempfile::tempdir().unwrap();
        let dict = |plus: f64, wrap: &str| {
            let entry = |name: &str, t: Tensor| (Value::Str(format!("{wrap}{name}")), Value::Tensor(t + plus));
            Value::Dict(vec![entry("w", numbers(6).view([2, 3])), entry("b", numbers(2).to_kind(Kind::BFloat16))])
        };
        for (n, plus) in [(9, 0.0), (10, 5.0)] {
            let top = vec![(AVERAGED, dict(plus, "_orig_mod.module.")), (TRAINED, dict(plus + 1.0, "module."))];
            let top = top.into_iter().map(|(k, v)| (Value::Str(k.into()), v)).collect();
            pytorch::write(&folder.path().join(format!("checkpoint_{n}")), &Value::Dict(top)).unwrap();
        }
        for (which, first) in [(ParamKind::Averaged, 5.0), (ParamKind::Trained, 6.0)] {
            let weights = Weights::open(folder.path(), which).unwrap();
            assert!(weights.path().ends_with("checkpoint_10"), "10 is later than 9");
            assert_eq!(weights.names().collect::<Vec<_>>(), ["b", "w"]);
            let set = set();
            set.load_from(&weights).unwrap();
            assert_eq!(set.get("w").unwrap().tensor.double_value(&[0, 0]), first);
            assert_eq!(set.get("b").unwrap().tensor.double_value(&[1]), first + 1.0);
        }
    }

    /// A Lightning checkpoint with these tensors.
    fn lightning(path: &Path, tensors: &[(&str, Tensor)]) {
        let text = |text: &str| Value::Str(text.to_owned());
        let state = tensors.iter().map(|(name, t)| (text(name), Value::Tensor(t.shallow_clone()))).collect();
        let top = vec![
            (text("epoch"), Value::Int(3)),
            (text(LIGHTNING.1), text("2.4.0")),
            (text("state_dict"), Value::OrderedDict { items: state, attributes: Vec::new() }),
            (text("callbacks"), Value::Dict(Vec::new())),
        ];
        pytorch::write(path, &Value::Dict(top)).unwrap();
    }

    #[test]
    fn lightning_checkpoints_and_float64_are_read_with_a_note() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("last.ckpt");
        let (w, b) = (numbers(6).view([2, 3]), numbers(2));
        let load = || {
            let weights = Weights::open(&path, ParamKind::Averaged).unwrap();
            let set = set();
            set.load_from(&weights).unwrap();
            assert!(set.get("w").unwrap().tensor.equal(&w) && set.get("b").unwrap().tensor.equal(&b));
            weights.notes().join("\n")
        };
        lightning(&path, &[("model.w", w.copy()), ("model.b", b.copy())]);
        assert_eq!(load(), "");
        lightning(
            &path,
            &[("model._orig_mod.w", w.copy()), ("model._orig_mod.b", b.copy()), ("loss.weight", b.copy())],
        );
        let message = Weights::open(&path, ParamKind::Averaged).unwrap();
        assert_eq!(message.names().collect::<Vec<_>>(), ["b", "w"]);
        assert!(load().contains("1 tensors of the Lightning module") && load().contains("loss.weight"));
        lightning(&path, &[("model.w", w.to_kind(Kind::Double)), ("model.b", b.copy())]);
        assert!(load().contains("1 of 2 tensors are float64"), "{}", load());
        // The same names in another container, and names of which only some have the prefix.
        tensorfile::write(&path, [("model.w", &w), ("model.b", &b)], HashMap::new()).unwrap();
        assert_eq!(load(), "");
        tensorfile::write(&path, [("model.w", &w), ("b", &b)], HashMap::new()).unwrap();
        let kept = Weights::open(&path, ParamKind::Averaged).unwrap();
        assert_eq!(kept.names().collect::<Vec<_>>(), ["b", "model.w"]);
    }

    #[test]
    fn stand_ins_and_old_pickles_are_named_with_their_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let old = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.";
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
        for (name, bytes, parts) in [
            ("pytorch_model.bin", &old[..], ["PyTorch before 1.6", "python -c"]),
            (
                "pickle.pt",
                b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}.",
                ["a pickle without a zip file", "torch.save"],
            ),
            ("model.safetensors", pointer, ["Git LFS pointer", "git lfs pull"]),
            ("checkpoint_7", pointer, ["Git LFS pointer", "git lfs pull"]),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let message = Weights::open(&path, ParamKind::Averaged).unwrap_err().to_string();
            for part in parts {
                assert!(message.contains(part) && message.contains(name), "{message}");
            }
        }
    }

    #[test]
    fn a_checkpoint_of_jax_is_called_so() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = folder.path().join("checkpoint_95085");
        std::fs::create_dir_all(checkpoint.join("ocdbt.process_0/d")).unwrap();
        let neither = Weights::open(folder.path(), ParamKind::Averaged).unwrap_err().to_string();
        assert!(neither.contains("neither") && !neither.contains("JAX"), "{neither}");
        std::fs::write(checkpoint.join("manifest.ocdbt"), b"x").unwrap();
        for path in [folder.path(), &checkpoint] {
            let message = Weights::open(path, ParamKind::Averaged).unwrap_err().to_string();
            assert!(message.contains("JAX") && message.contains("ELF-B-owt-torch"), "{message}");
        }
    }

    #[test]
    fn shards_are_joined_and_held_against_their_index() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (w, b) = (numbers(6).view([2, 3]), numbers(2));
        tensorfile::write(&at("model-00001-of-00002.safetensors"), [("w", &w)], HashMap::new()).unwrap();
        tensorfile::write(&at("model-00002-of-00002.safetensors"), [("b", &b)], HashMap::new()).unwrap();
        let index = |map: &str| {
            std::fs::write(at("model.safetensors.index.json"), format!("{{\"metadata\":{{}},\"weight_map\":{map}}}"))
                .unwrap()
        };
        index(r#"{"w":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}"#);
        let set = set();
        set.load_from(&Weights::open(folder.path(), ParamKind::Averaged).unwrap()).unwrap();
        assert!(set.get("w").unwrap().tensor.equal(&w) && set.get("b").unwrap().tensor.equal(&b));
        for (map, part) in [
            (r#"{"w":"model-00002-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}"#, "should hold w"),
            (r#"{"w":"model-00001-of-00002.safetensors"}"#, ""),
            (r#"{"w":"../model-00001-of-00002.safetensors"}"#, "outside"),
            (r#"{"w":7}"#, "no index"),
        ] {
            index(map);
            let opened = Weights::open(folder.path(), ParamKind::Averaged);
            match part {
                "" => {
                    assert!(set.load_from(&opened.unwrap()).unwrap_err().to_string().contains("b: the model has [2]"))
                }
                part => assert!(opened.unwrap_err().to_string().contains(part)),
            }
        }
    }
}
