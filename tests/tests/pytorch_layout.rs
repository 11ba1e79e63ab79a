//! The requirements of `torch.load(weights_only=True)` on a file, checked without PyTorch and without this project's reader: the zip
//! entry by entry, the pickle opcode by opcode. The same checks pass on the file that PyTorch itself wrote.

use std::collections::HashMap;

use elf_core::Network;
use elf_core::pytorch::{self, PyTorchFile, TensorRef};
use elf_tests::parity_path;
use elf_tests::small::network;
use elf_train::released_form_of_parameters;
use tch::Device;

/// Name and content of an entry.
type Entry<'a> = (String, &'a [u8]);

fn u16_at(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()))
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

/// CRC-32 as zip files have it, bit by bit.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

/// The entries by the central directory, each compared with its local header.
fn entries(file: &[u8]) -> Vec<Entry<'_>> {
    // No comment: the end of the directory is the end of the file.
    let end = file.len() - 22;
    assert_eq!(&file[end..end + 4], b"PK\x05\x06");
    let (count, mut at) = (u16_at(file, end + 10), u32_at(file, end + 16));
    assert!(count < 0xffff && at < 0xffff_ffff, "a small file needs no zip64 in its directory");
    let mut found = Vec::new();
    for _ in 0..count {
        assert_eq!(&file[at..at + 4], b"PK\x01\x02");
        let (method, sum) = (u16_at(file, at + 10), u32_at(file, at + 16));
        let (packed, size) = (u32_at(file, at + 20), u32_at(file, at + 24));
        let (name_len, extra_len, comment_len) = (u16_at(file, at + 28), u16_at(file, at + 30), u16_at(file, at + 32));
        let local = u32_at(file, at + 42);
        let name = std::str::from_utf8(&file[at + 46..at + 46 + name_len]).unwrap().to_owned();
        assert_eq!((method, packed), (0, size), "{name} is stored as it is");
        assert_eq!(&file[local..local + 4], b"PK\x03\x04");
        assert_eq!(&file[local + 30..local + 30 + u16_at(file, local + 26)], name.as_bytes());
        let start = local + 30 + u16_at(file, local + 26) + u16_at(file, local + 28);
        let content = &file[start..start + size];
        assert_eq!(crc(content) as usize, sum, "{name}");
        assert!(
            size == 0 || start.is_multiple_of(64),
            "{name} begins at {start}: PyTorch maps storages at multiples of 64"
        );
        found.push((name, content));
        at += 46 + name_len + extra_len + comment_len;
    }
    // PyTorch repeats the directory's end in 64 bits: a record and its place.
    let repeated = if file[at..].starts_with(b"PK\x06\x06") { 56 + 20 } else { 0 };
    assert_eq!(at + repeated, end, "nothing else between the directory and its end");
    found
}

/// A storage that a pickle asks for.
#[derive(Debug, PartialEq, Eq)]
struct Storage {
    class: String,
    key: String,
    numbers: usize,
}

/// A pickle, read opcode by opcode.
struct Pickle<'a> {
    rest: &'a [u8],
}

impl<'a> Pickle<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or("it ends in the middle")?;
        self.rest = rest;
        Ok(taken)
    }

    fn line(&mut self) -> Result<String, String> {
        let end = self.rest.iter().position(|&byte| byte == b'\n').ok_or("it ends in the middle")?;
        let line = self.take(end)?.to_vec();
        self.take(1)?;
        String::from_utf8(line).map_err(|_| "no text".to_owned())
    }

    /// The value that an opcode carries itself, if it carries one; a global must be among those that PyTorch allows.
    fn value(&mut self, code: u8) -> Result<Option<String>, String> {
        Ok(Some(match code {
            b'c' => {
                let global = format!("{} {}", self.line()?, self.line()?);
                if !is_allowed(&global) {
                    return Err(format!("it asks for {global}"));
                }
                global
            }
            b'X' => {
                let n = u32_at(self.take(4)?, 0);
                String::from_utf8(self.take(n)?.to_vec()).map_err(|e| e.to_string())?
            }
            b'K' => self.take(1)?[0].to_string(),
            b'M' => u16_at(self.take(2)?, 0).to_string(),
            b'J' => i32::from_le_bytes(self.take(4)?.try_into().map_err(|_| "no number")?).to_string(),
            0x8a => {
                let n = usize::from(self.take(1)?[0]);
                format!("{:?}", self.take(n)?)
            }
            b'G' => format!("{:?}", self.take(8)?),
            _ => return Ok(None),
        }))
    }
}

fn is_allowed(global: &str) -> bool {
    let classes = ["Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool"];
    ["torch._utils _rebuild_tensor_v2", "collections OrderedDict"].contains(&global)
        || classes.iter().any(|class| global == format!("torch {class}Storage"))
}

/// The storages of a pickle, read as PyTorch's restricted unpickler does: only its opcodes, and only its globals.
fn storages(pickle: &[u8]) -> Result<Vec<Storage>, String> {
    let mut pickle = Pickle { rest: pickle };
    if pickle.take(2)? != [0x80, 2] {
        return Err("it does not begin as protocol 2".into());
    }
    // The last values, which hold everything that a storage's tuple is made of.
    let (mut recent, mut found): (Vec<String>, Vec<Storage>) = (Vec::new(), Vec::new());
    // Texts and globals that were put there; a storage uses no other values.
    let mut memo: HashMap<usize, String> = HashMap::new();
    let mut before = 0;
    loop {
        let code = pickle.take(1)?[0];
        let was_value = matches!(std::mem::replace(&mut before, code), b'c' | b'X');
        if let Some(value) = pickle.value(code)? {
            recent.push(value);
            continue;
        }
        match code {
            b'.' => return if pickle.rest.is_empty() { Ok(found) } else { Err("something follows its end".into()) },
            b'Q' => {
                // ('storage', class, key, device, numbers), in the tuple before.
                let [.., marker, class, key, device, numbers] = recent.as_slice() else {
                    return Err("no storage".into());
                };
                if (marker.as_str(), device.as_str()) != ("storage", "cpu") {
                    return Err(format!("{marker} on {device} where a storage on the cpu should be"));
                }
                let numbers = numbers.parse().map_err(|_| format!("{numbers} numbers"))?;
                found.push(Storage { class: class.clone(), key: key.clone(), numbers });
            }
            // MARK, TUPLE and its short forms, lists, dicts, items, REDUCE, BUILD, None, bools.
            b'(' | b't' | 0x85..=0x89 | b')' | b']' | b'a' | b'e' | b'}' | b's' | b'u' | b'R' | b'b' | b'N' => {}
            b'q' | b'r' => {
                let index = if code == b'q' { usize::from(pickle.take(1)?[0]) } else { u32_at(pickle.take(4)?, 0) };
                let value = if was_value { recent.last().cloned() } else { None };
                memo.insert(index, value.unwrap_or_default());
            }
            b'h' | b'j' => {
                let index = if code == b'h' { usize::from(pickle.take(1)?[0]) } else { u32_at(pickle.take(4)?, 0) };
                recent.push(memo.get(&index).cloned().ok_or("it fetches an entry that was never put")?);
            }
            other => return Err(format!("the opcode {other:#x} is not among those allowed")),
        }
    }
}

fn width(class: &str) -> usize {
    match class.trim_start_matches("torch ").trim_end_matches("Storage") {
        "Double" | "Long" => 8,
        "Float" | "Int" => 4,
        "Half" | "BFloat16" | "Short" => 2,
        _ => 1,
    }
}

/// All requirements on a whole file; returns the number of storages.
fn check(file: &[u8]) -> usize {
    let entries = entries(file);
    let folder = entries[0].0.strip_suffix("/data.pkl").expect("the pickle comes first").to_owned();
    let mut inner = HashMap::new();
    for (name, content) in &entries {
        let name = name.strip_prefix(&format!("{folder}/")).expect("all entries lie in one folder");
        assert!(inner.insert(name.to_owned(), *content).is_none(), "{name} is there twice");
    }
    assert_eq!((inner["byteorder"], inner["version"]), (&b"little"[..], &b"3\n"[..]));
    assert_eq!((inner[".format_version"], inner[".storage_alignment"]), (&b"1"[..], &b"64"[..]));
    let id = inner[".data/serialization_id"];
    assert!(id.len() == 40 && id.iter().all(u8::is_ascii_digit));
    assert_eq!(entries.last().unwrap().0, format!("{folder}/.data/serialization_id"));

    let wanted = storages(inner["data.pkl"]).unwrap();
    for storage in &wanted {
        let there = inner.get(&format!("data/{}", storage.key)).unwrap_or_else(|| panic!("no storage {}", storage.key));
        assert_eq!(there.len(), storage.numbers * width(&storage.class), "{storage:?}");
    }
    let stored = inner.keys().filter(|name| name.starts_with("data/")).count();
    let mut keys: Vec<&str> = wanted.iter().map(|s| s.key.as_str()).collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), stored, "every storage is asked for");
    stored
}

#[test]
fn parity_what_is_written_is_laid_out_as_pytorch_does() {
    let path = elf_core::weights::latest_checkpoint(&parity_path("official_checkpoint")).unwrap().unwrap();
    let official = std::fs::read(&path).unwrap();
    let stored = check(&official);

    let folder = tempfile::tempdir().unwrap();
    let ours = folder.path().join("checkpoint_9");
    let file = PyTorchFile::open(&path).unwrap();
    let tree = file.value().map_tensors(&mut |_: &str, t: &TensorRef| file.tensor(t, Device::Cpu)).unwrap();
    pytorch::write(&ours, &tree).unwrap();
    assert!(check(&std::fs::read(&ours).unwrap()) >= stored, "each tensor has its own storage");

    let net = network();
    let order = net.config().released_order().unwrap();
    pytorch::write(&ours, &released_form_of_parameters(&order, net.params().snapshot()).unwrap()).unwrap();
    assert_eq!(check(&std::fs::read(&ours).unwrap()), 2 * order.len());
}

#[test]
fn the_checks_can_fail() {
    for (pickle, part) in [
        (&b"\x80\x02cposix\nsystem\n."[..], "posix system"),
        (b"\x80\x04N.", "protocol 2"),
        (b"\x80\x02N.N", "follows"),
        (b"\x80\x02N", "middle"),
        (b"\x80\x02\x93.", "0x93"),
        (b"\x80\x02Q.", "no storage"),
    ] {
        let message = storages(pickle).unwrap_err();
        assert!(message.contains(part), "{message}");
    }
}
