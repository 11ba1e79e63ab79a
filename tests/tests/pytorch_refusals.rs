//! Damaged and hostile PyTorch checkpoints: each is refused by name, without a panic, and without running
//! anything from the file.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use elf_core::PrecisionPolicy;
use elf_core::pytorch::{PyTorchFile, TensorRef};
use elf_core::weights::{ParamKind, Weights};
use elf_model::Elf;
use elf_tests::parity_path;
use elf_train::ReleasedCheckpoint;
use proptest::prelude::*;
use tch::Device;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

fn official() -> Vec<u8> {
    let file = elf_core::weights::latest_checkpoint(&parity_path("official_checkpoint")).unwrap().unwrap();
    std::fs::read(file).unwrap()
}

/// The entries of a zip file.
fn unpacked(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = ZipArchive::new(std::io::Cursor::new(bytes)).unwrap();
    (0..archive.len())
        .map(|i| {
            let mut entry = archive.by_index(i).unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.name().to_owned(), content)
        })
        .collect()
}

/// A zip file of these entries, with their checksums.
fn packed(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut zip = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, content) in entries {
        zip.start_file(name, SimpleFileOptions::default().compression_method(CompressionMethod::Stored)).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn with_pickle(pickle: &[u8]) -> Vec<u8> {
    packed(&[("x/data.pkl".into(), pickle.to_vec()), ("x/data/0".into(), vec![0; 16])])
}

fn written(folder: &Path, bytes: &[u8]) -> PathBuf {
    let path = folder.join("x.pt");
    std::fs::write(&path, bytes).unwrap();
    path
}

/// Opens a file and reads all of it.
fn read(bytes: &[u8]) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path(), bytes);
    let file = PyTorchFile::open(path).map_err(|e| e.to_string())?;
    file.value()
        .map_tensors(&mut |_: &str, t: &TensorRef| file.tensor(t, Device::Cpu).map(drop))
        .map(drop)
        .map_err(|e| e.to_string())
}

#[track_caller]
fn refused(bytes: &[u8], parts: &[&str]) {
    let message = read(bytes).unwrap_err();
    for part in ["x.pt"].iter().chain(parts) {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

/// A pickle of one tensor over the 16 bytes of storage 0.
fn one_tensor(class: &str, stored: u8, offset: u8, shape: &[u8], stride: &[u8]) -> Vec<u8> {
    let mut p = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storage".to_vec();
    p.extend_from_slice(format!("ctorch\n{class}\nX\x01\0\0\00X\x03\0\0\0cpu").as_bytes());
    p.extend_from_slice(&[b'K', stored, b't', b'Q', b'K', offset]);
    for sizes in [shape, stride] {
        p.push(b'(');
        sizes.iter().for_each(|&s| p.extend_from_slice(&[b'K', s]));
        p.push(b't');
    }
    p.extend_from_slice(b"\x89ccollections\nOrderedDict\n)RtR.");
    p
}

#[test]
fn code_in_a_pickle_is_refused_by_name_and_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("was-run");
    let command = format!("touch {}", trace.display());
    let mut pickle = b"\x80\x02cposix\nsystem\nX".to_vec();
    pickle.extend_from_slice(&(command.len() as u32).to_le_bytes());
    pickle.extend_from_slice(command.as_bytes());
    pickle.extend_from_slice(b"\x85R.");
    refused(&with_pickle(&pickle), &["`posix.system`", "nothing of it was run"]);
    assert!(!trace.exists());
    for (module, name) in [
        ("builtins", "eval"),
        ("os", "system"),
        ("torch", "load"),
        ("torch.serialization", "load"),
        ("collections", "Counter"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("torch", "ComplexFloatStorage"),
    ] {
        let mut pickle = b"\x80\x02c".to_vec();
        pickle.extend_from_slice(format!("{module}\n{name}\n.").as_bytes());
        refused(&with_pickle(&pickle), &[&format!("`{module}.{name}`")]);
        let mut pickle = b"\x80\x04".to_vec();
        for text in [module, name] {
            pickle.extend_from_slice(&[0x8c, text.len() as u8]);
            pickle.extend_from_slice(text.as_bytes());
        }
        pickle.extend_from_slice(b"\x93.");
        refused(&with_pickle(&pickle), &[&format!("`{module}.{name}`")]);
    }
    // A state that is set on anything but an OrderedDict would belong to an object.
    refused(&with_pickle(b"\x80\x02}}b."), &["BUILD"]);
}

#[test]
fn every_opcode_that_no_checkpoint_needs_is_refused_by_name() {
    let names = [
        (b'I', "INT"),
        (b'L', "LONG"),
        (0x8b, "LONG4"),
        (b'S', "STRING"),
        (b'T', "BINSTRING"),
        (b'U', "SHORT_BINSTRING"),
        (0x8e, "BINBYTES8"),
        (0x96, "BYTEARRAY8"),
        (0x97, "NEXT_BUFFER"),
        (0x98, "READONLY_BUFFER"),
        (b'V', "UNICODE"),
        (0x8d, "BINUNICODE8"),
        (b'F', "FLOAT"),
        (b'l', "LIST"),
        (b'd', "DICT"),
        (0x8f, "EMPTY_SET"),
        (0x90, "ADDITEMS"),
        (0x91, "FROZENSET"),
        (b'0', "POP"),
        (b'2', "DUP"),
        (b'1', "POP_MARK"),
        (b'g', "GET"),
        (b'p', "PUT"),
        (0x82, "EXT1"),
        (0x83, "EXT2"),
        (0x84, "EXT4"),
        (b'i', "INST"),
        (b'o', "OBJ"),
        (0x81, "NEWOBJ"),
        (0x92, "NEWOBJ_EX"),
        (b'P', "PERSID"),
    ];
    for (code, name) in names {
        let pickle = [0x80, 2, b'}', b'}', code, b'0', b'\n', b'.'];
        refused(&with_pickle(&pickle), &[&format!("opcode {name},")]);
    }
    // All bytes in the place of an opcode: a byte that is not refused by name is a known opcode or none.
    for code in 0..=255u8 {
        let _ = read(&with_pickle(&[0x80, 2, code]));
    }
    refused(&with_pickle(&[0x80, 2, 0xff]), &["0xff"]);
    refused(&with_pickle(&[0x80, 9, b'N', b'.']), &["protocol 9"]);
}

#[test]
fn tensors_must_lie_in_their_storage() {
    read(&with_pickle(&one_tensor("FloatStorage", 4, 0, &[2, 2], &[2, 1]))).unwrap();
    read(&with_pickle(&one_tensor("FloatStorage", 4, 0, &[2, 2], &[1, 2]))).unwrap();
    for (offset, shape, stride) in [
        (1, &[2, 2][..], &[2, 1][..]),
        (0, &[5], &[1]),
        (0, &[2], &[4]),
        (0, &[200, 200, 200], &[0, 0, 0]),
        (0, &[2], &[]),
    ] {
        let pickle = one_tensor("FloatStorage", 4, offset, shape, stride);
        refused(&with_pickle(&pickle), &["does not lie in its storage `0` of 4 numbers"]);
    }
    for (class, stored) in [("DoubleStorage", 4), ("HalfStorage", 4), ("FloatStorage", 200)] {
        let pickle = one_tensor(class, stored, 0, &[2], &[1]);
        refused(&with_pickle(&pickle), &["has 16 bytes"]);
    }
    let missing = packed(&[("x/data.pkl".into(), one_tensor("FloatStorage", 4, 0, &[2], &[1]))]);
    refused(&missing, &["no storage `0`"]);
}

#[test]
fn kinds_of_numbers_and_views_are_read_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let get = |class: &str, stored: u8, offset: u8, shape: &[u8], stride: &[u8]| {
        let bytes: Vec<u8> = (0..16).collect();
        let pickle = one_tensor(class, stored, offset, shape, stride);
        let path = written(folder.path(), &packed(&[("data.pkl".into(), pickle), ("data/0".into(), bytes)]));
        let file = PyTorchFile::open(path).unwrap();
        file.tensor(file.value().as_tensor().unwrap(), Device::Cpu).unwrap()
    };
    assert_eq!(Vec::<u8>::try_from(get("ByteStorage", 16, 3, &[3], &[4])).unwrap(), [3, 7, 11]);
    let turned = get("ByteStorage", 16, 0, &[2, 3], &[1, 2]).view([-1]);
    assert_eq!(Vec::<u8>::try_from(turned).unwrap(), [0, 2, 4, 1, 3, 5]);
    assert_eq!(Vec::<i64>::try_from(get("LongStorage", 2, 1, &[1], &[1])).unwrap(), [0x0f0e0d0c0b0a0908]);
    assert_eq!(Vec::<i32>::try_from(get("IntStorage", 4, 0, &[1], &[1])).unwrap(), [0x03020100]);
    let low = f64::from(f32::from_bits(0x0302_0000));
    assert_eq!(get("BFloat16Storage", 8, 1, &[1], &[1]).double_value(&[0]), low);
    assert_eq!(get("HalfStorage", 8, 0, &[0, 3], &[3, 1]).size(), [0, 3]);
}

#[test]
fn a_compressed_entry_is_not_unpacked() {
    // The directory says deflate and 4 GB; there is no decompressor to be fooled.
    let mut bytes = with_pickle(b"\x80\x02N.");
    read(&bytes).unwrap();
    let central = bytes.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    bytes[central + 10] = 8;
    bytes[central + 24..central + 28].copy_from_slice(&0xffff_fff0u32.to_le_bytes());
    refused(&bytes, &["x/data.pkl", "compressed"]);
}

#[test]
fn a_small_pickle_cannot_describe_a_huge_tree() {
    // Each level holds the previous one sixteen times.
    let mut pickle = b"\x80\x02]q\x00".to_vec();
    for level in 0..20u8 {
        pickle.extend_from_slice(b"](");
        (0..16).for_each(|_| pickle.extend_from_slice(&[b'h', level]));
        pickle.extend_from_slice(&[b'e', b'q', level + 1]);
    }
    pickle.push(b'.');
    refused(&with_pickle(&pickle), &["repeats values"]);
    // A list that holds itself.
    refused(&with_pickle(b"\x80\x02]q\x00h\x00a."), &["nested"]);
    let deep: Vec<u8> = [&b"\x80\x02"[..], &[b']'; 500], &[b'a'; 499], b"."].concat();
    refused(&with_pickle(&deep), &["nested"]);
    refused(&with_pickle(b"\x80\x02X\xff\xff\xff\xffabc."), &["ends in the middle"]);
}

#[test]
fn other_and_damaged_files_are_named() {
    refused(b"\x80\x02\x8a\nl\xfc\x9c\x46\xf9\x20", &["PyTorch before 1.6", "torch.save"]);
    refused(&packed(&[("word/document.xml".into(), vec![1])]), &["no data.pkl"]);
    let whole = official();
    for part in [0.1, 0.5, 0.99] {
        refused(&whole[..(whole.len() as f64 * part) as usize], &["cut off"]);
    }
    let big = packed(&[("x/data.pkl".into(), b"\x80\x02N.".to_vec()), ("x/byteorder".into(), b"big".to_vec())]);
    refused(&big, &["big-endian"]);
    // One bit of a storage changed.
    let mut flipped = whole;
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    if let Err(message) = read(&flipped) {
        assert!(message.contains("x.pt"), "{message}");
    }
}

/// Everything that reads a tree, given a damaged one: parameters by name, the optimiser's state, counts.
fn use_as_checkpoint(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = written(folder.path(), bytes);
    for which in [ParamKind::Averaged, ParamKind::Trained] {
        if let Ok(weights) = Weights::open(&path, which) {
            let _ = Elf::of_weights(&weights, PrecisionPolicy::F32, Device::Cpu);
        }
    }
    if let Ok(checkpoint) = ReleasedCheckpoint::open(&path) {
        let _ = (checkpoint.step(), checkpoint.epoch(), checkpoint.optimizer_steps(), checkpoint.optimizer_state());
    }
}

/// Cases of each property: a few hundred, or PROPTEST_CASES.
fn cases() -> ProptestConfig {
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => ProptestConfig::default(),
        None => ProptestConfig::with_cases(200),
    }
}

/// Places, and the bytes that are put there.
fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn fuzz_the_official_file(changes in changes(), near_the_end in any::<bool>(), cut in prop::option::of(any::<prop::sample::Index>())) {
        let mut bytes = official();
        let n = bytes.len();
        for (at, byte) in changes {
            // The directory is at the end, where a uniform draw hardly ever falls.
            let at = if near_the_end { n - 1 - at.index(n.min(30_000)) } else { at.index(n) };
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(n));
        }
        let _ = read(&bytes);
        use_as_checkpoint(&bytes);
    }

    #[test]
    fn fuzz_the_official_pickle(changes in changes(), cut in prop::option::of(any::<prop::sample::Index>())) {
        // Packed again with the right checksum, so that the damaged pickle reaches the interpreter.
        let mut entries = unpacked(&official());
        let pickle = &mut entries.iter_mut().find(|(name, _)| name.ends_with("data.pkl")).unwrap().1;
        let n = pickle.len();
        for (at, byte) in changes {
            pickle[at.index(n)] = byte;
        }
        if let Some(cut) = cut {
            pickle.truncate(cut.index(n));
        }
        let bytes = packed(&entries);
        let _ = read(&bytes);
        use_as_checkpoint(&bytes);
    }
}
