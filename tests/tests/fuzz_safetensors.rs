//! Safetensors files and their indices with bytes, numbers and names changed: each is refused or
//! read, without a panic, and without more memory than the files have bytes.

use std::collections::HashMap;
use std::path::Path;
use std::sync::OnceLock;

use elf_core::tensorfile::{self, TensorFile};
use elf_core::weights::{ParamKind, Weights};
use elf_core::{Error, PrecisionPolicy};
use elf_model::Elf;
use elf_tests::parity_path;
use proptest::prelude::*;
use tch::Device;

const INDEX: &str = "model.safetensors.index.json";
const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// A real model in two shards: contents of the files, the index last.
fn files() -> &'static [(&'static str, Vec<u8>); 3] {
    static MADE: OnceLock<[(&str, Vec<u8>); 3]> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let all = TensorFile::open(parity_path("model.safetensors")).unwrap().read_all(Device::Cpu).unwrap();
        let halves = all.split_at(all.len() / 2);
        let mut map = serde_json::Map::new();
        for (shard, half) in SHARDS.iter().zip([halves.0, halves.1]) {
            let tensors = half.iter().map(|(name, t)| (name.as_str(), t));
            tensorfile::write(&folder.path().join(shard), tensors, HashMap::new()).unwrap();
            map.extend(half.iter().map(|(name, _)| (name.clone(), (*shard).into())));
        }
        let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string();
        let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
        [(SHARDS[0], read(SHARDS[0])), (SHARDS[1], read(SHARDS[1])), (INDEX, index.into_bytes())]
    })
}

#[derive(Debug, Clone)]
enum Change {
    /// One byte at any place.
    Byte(prop::sample::Index, u8),
    /// One of the numbers in the text, and its replacement.
    Number(prop::sample::Index, &'static str),
    /// Text inserted at any place.
    Insert(prop::sample::Index, &'static str),
    /// The end, cut off.
    Cut(prop::sample::Index),
    /// The length of the header, which a safetensors file begins with.
    Header(u64),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<prop::sample::Index>;
    let numbers =
        ["-1", "0", "18446744073709551615", "9223372036854775807", "4294967296", "1e99", "\"1\"", "null", "[]"];
    let texts = ["{", "}", "[", "]", "\"", ",", "\"../x\":", "\u{fffd}", "null", "\\u0000", "F64", "\"__metadata__\":"];
    let lengths = [0, 1, 7, 8, 9, 1 << 20, 1 << 32, 1 << 62, u64::MAX, u64::MAX - 7];
    prop_oneof![
        4 => (at(), any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        4 => (at(), prop::sample::select(numbers.to_vec())).prop_map(|(at, n)| Change::Number(at, n)),
        3 => (at(), prop::sample::select(texts.to_vec())).prop_map(|(at, text)| Change::Insert(at, text)),
        1 => at().prop_map(Change::Cut),
        1 => prop::sample::select(lengths.to_vec()).prop_map(Change::Header),
    ]
}

/// The part of a file that is text: a whole index, or the header of a shard.
fn text_of(name: &str, bytes: &[u8]) -> std::ops::Range<usize> {
    match (name == INDEX, bytes.first_chunk::<8>()) {
        (true, _) => 0..bytes.len(),
        (false, Some(length)) => {
            let end = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX).saturating_add(8);
            8..end.clamp(8, bytes.len().max(8))
        }
        (false, None) => 0..bytes.len(),
    }
}

fn apply(name: &str, bytes: &mut Vec<u8>, change: &Change) {
    let text = text_of(name, bytes);
    if text.end > bytes.len() || text.is_empty() {
        return;
    }
    let place = |at: &prop::sample::Index| text.start + at.index(text.len());
    match change {
        Change::Byte(at, byte) => bytes[place(at)] = *byte,
        Change::Insert(at, new) => drop(bytes.splice(place(at)..place(at), new.bytes())),
        Change::Cut(at) => bytes.truncate(at.index(bytes.len())),
        Change::Header(length) if name != INDEX => bytes[..8].copy_from_slice(&length.to_le_bytes()),
        Change::Header(_) => {}
        Change::Number(at, new) => {
            let from = place(at);
            let Some(first) = (from..text.end).find(|&i| bytes[i].is_ascii_digit()) else { return };
            let last = (first..text.end).find(|&i| !bytes[i].is_ascii_digit()).unwrap_or(text.end);
            let before = bytes.len();
            bytes.splice(first..last, new.bytes());
            // The header's length is right in half of the cases, so that the reader finds other faults as well.
            if name != INDEX && from.is_multiple_of(2) {
                let length = (text.len() + bytes.len() - before) as u64;
                bytes[..8].copy_from_slice(&length.to_le_bytes());
            }
        }
    }
}

/// Opens the folder, reads all tensors that it lists, and makes a network of them.
fn read(folder: &Path) -> Result<(), Error> {
    let weights = Weights::open(folder, ParamKind::Averaged)?;
    let bytes: u64 = SHARDS.iter().filter_map(|s| std::fs::metadata(folder.join(s)).ok()).map(|m| m.len()).sum();
    assert!(weights.numel() as u64 <= bytes, "more numbers than bytes are believed to be there");
    for name in weights.names() {
        drop(weights.get(name, Device::Cpu)?);
    }
    Elf::of_weights(&weights, PrecisionPolicy::F32, Device::Cpu).map(drop)
}

fn write(folder: &Path, files: &[(&str, Vec<u8>)]) {
    for (name, bytes) in files {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
}

#[test]
fn the_files_are_whole_before_they_are_changed() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), files());
    read(folder.path()).unwrap();
}

/// Cases of each property: a few hundred, or PROPTEST_CASES.
fn cases() -> ProptestConfig {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => config,
        None => ProptestConfig { cases: 200, ..config },
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn fuzz_an_index_and_its_shards(which in 0..3usize, changes in prop::collection::vec(change(), 1..4)) {
        let folder = tempfile::tempdir().unwrap();
        let mut changed = files().clone();
        let (name, bytes) = &mut changed[which];
        changes.iter().for_each(|c| apply(name, bytes, c));
        write(folder.path(), &changed);
        if let Err(error) = read(folder.path()) {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
