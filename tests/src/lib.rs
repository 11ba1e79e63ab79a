//! Shared parts of the parity tests: the folder of reference numbers, their reading, and comparisons.
//!
//! The root is `ELF_PARITY_DIR`, or the copy in this package. Every size comes from the files there, never from a literal,
//! so that the same tests run on reference numbers of other shapes.

pub mod blocks;
pub mod checks;
pub mod comparisons;
pub mod recorded;
pub mod small;

use std::collections::HashMap;
use std::path::PathBuf;

use elf_core::pytorch::{TensorRef, Value};
use elf_core::tensorfile::TensorFile;
use serde::de::DeserializeOwned;
use tch::{Device, Kind, Tensor};

/// The folder of reference numbers. A relative `ELF_PARITY_DIR` is taken from the repository's root, too, since cargo runs
/// tests in their package's folder.
pub fn parity_dir() -> PathBuf {
    let package = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    match std::env::var_os("ELF_PARITY_DIR").map(PathBuf::from) {
        None => package.join("parity"),
        Some(dir) if dir.is_dir() => dir,
        Some(dir) => package.join("..").join(dir),
    }
}

/// A file's path under the root.
pub fn parity_path(name: &str) -> PathBuf {
    parity_dir().join(name)
}

/// A JSON file under the root.
///
/// # Panics
/// If it is missing or of another form: the test that needs it fails.
pub fn parity_json<T: DeserializeOwned>(name: &str) -> T {
    let path = parity_path(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Named tensors from a safetensors file under the root.
#[derive(Debug)]
pub struct Reference {
    file: String,
    tensors: HashMap<String, Tensor>,
}

impl Reference {
    /// Reads a file.
    ///
    /// # Panics
    /// If it is missing or damaged.
    pub fn open(name: &str) -> Self {
        Self::on(name, Device::Cpu)
    }

    /// Reads a file to a device.
    ///
    /// # Panics
    /// If it is missing or damaged.
    pub fn on(name: &str, device: Device) -> Self {
        let tensors =
            TensorFile::open(parity_path(name)).and_then(|f| f.read_all(device)).unwrap_or_else(|e| panic!("{e}"));
        Self { file: name.to_owned(), tensors: tensors.into_iter().collect() }
    }

    /// One tensor.
    ///
    /// # Panics
    /// If it is not there.
    pub fn get(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("{} has no {name}", self.file))
    }

    /// One tensor, if there.
    pub fn find(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// All names under `prefix`, without it, and their tensors.
    pub fn under(&self, prefix: &str) -> HashMap<&str, &Tensor> {
        self.tensors.iter().filter_map(|(name, t)| Some((name.strip_prefix(prefix)?, t))).collect()
    }
}

/// The largest absolute difference, in fp64; infinite if anything is not a number.
pub fn max_difference(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.size(), want.size(), "shapes differ");
    if want.numel() == 0 {
        return 0.0;
    }
    let [got, want] = [got, want].map(|x| x.to_device(Device::Cpu).to_kind(Kind::Double));
    let difference = (got - want).abs().max().double_value(&[]);
    if difference.is_nan() { f64::INFINITY } else { difference }
}

/// The largest element, at least 1e-6.
pub fn largest(x: &Tensor) -> f64 {
    let largest = if x.numel() == 0 { 0.0 } else { x.to_kind(Kind::Double).abs().max().double_value(&[]) };
    largest.max(1e-6)
}

/// Asserts that two tensors differ by at most `tolerance` in every element.
///
/// # Panics
/// If they differ by more.
#[track_caller]
pub fn assert_close(what: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    let difference = max_difference(got, want);
    assert!(difference <= tolerance, "{what}: differs by {difference:e}, allowed {tolerance:e}");
}

/// Asserts that the difference is at most `tolerance` of the reference's largest element.
///
/// # Panics
/// If they differ by more.
#[track_caller]
pub fn assert_close_relative(what: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    let scale = largest(want);
    let difference = max_difference(got, want);
    assert!(
        difference <= tolerance * scale,
        "{what}: differs by {difference:e} where the largest is {scale:e}, allowed a share of {tolerance:e}"
    );
}

/// Every leaf of a tree in words: its path, and its dtype and shape or its value.
pub fn leaves(value: &Value<TensorRef>) -> Vec<String> {
    fn walk(path: &str, value: &Value<TensorRef>, out: &mut Vec<String>) {
        out.push(match value {
            Value::Tensor(t) => format!("{path}: {:?} {:?}", t.kind(), t.shape()),
            Value::Int(_) | Value::Float(_) | Value::Bool(_) | Value::Str(_) | Value::None => {
                format!("{path}: {value:?}")
            }
            other => format!("{path}: {}", other.kind_name()),
        });
        for (i, member) in value.members().unwrap_or_default().iter().enumerate() {
            walk(&format!("{path}/{i}"), member, out);
        }
        let attributes: &[_] = if let Value::OrderedDict { attributes, .. } = value { attributes } else { &[] };
        for (key, member) in value.items().unwrap_or_default().iter().chain(attributes) {
            walk(&format!("{path}/{key:?}"), member, out);
        }
    }
    let mut out = Vec::new();
    walk("", value, &mut out);
    out
}
