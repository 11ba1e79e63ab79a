//! Writing checkpoints that `torch.load` reads, also with `weights_only=True`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use tch::Tensor;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::Value;
use super::tensor_ref::storage_class;
use crate::device::host_bytes;
use crate::{Error, Result};

/// Writes a tree of tensors and plain values: aside, synced, renamed. Every tensor is stored contiguous, under its own storage.
///
/// # Errors
/// If a tensor is of a kind that is not written, or the file cannot be written; whatever was at `path` is still there then.
pub fn write(path: &Path, value: &Value<Tensor>) -> Result<()> {
    let mut pickle = Pickle { bytes: vec![0x80, 2], tensors: Vec::new() };
    pickle.value(value)?;
    pickle.bytes.push(b'.');
    // The name of the folder in the zip file is free; torch.save takes the file's.
    let stem = path.file_stem().and_then(|s| s.to_str()).filter(|s| !s.is_empty()).unwrap_or("archive");
    elf_files::write_with(path, |aside| pack(aside, stem, &pickle)).map_err(Error::io("write", path))
}

fn pack(aside: &Path, stem: &str, pickle: &Pickle) -> std::io::Result<()> {
    let mut zip = ZipWriter::new(BufWriter::new(File::create(aside)?));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).with_alignment(64);
    let (mut names, mut contents) = (crc32fast::Hasher::new(), crc32fast::Hasher::new());
    let mut entry = |name: &str, bytes: &[u8]| -> std::io::Result<()> {
        names.update(name.as_bytes());
        contents.update(bytes);
        let large = bytes.len() as u64 >= u64::from(u32::MAX);
        zip.start_file(format!("{stem}/{name}"), options.large_file(large)).map_err(std::io::Error::other)?;
        zip.write_all(bytes)
    };
    entry("data.pkl", &pickle.bytes)?;
    entry(".format_version", b"1")?;
    entry(".storage_alignment", b"64")?;
    entry("byteorder", b"little")?;
    for (i, tensor) in pickle.tensors.iter().enumerate() {
        // One at a time: the file may be larger than what memory is left.
        entry(&format!("data/{i}"), &host_bytes(tensor).map_err(std::io::Error::other)?)?;
    }
    entry("version", b"3\n")?;
    // Forty digits that tell one content from another; PyTorch writes them last and only ever logs them.
    let id = format!("{:020}{:020}", names.finalize(), contents.finalize());
    let mut entry = |name: &str, bytes: &[u8]| -> std::io::Result<()> {
        zip.start_file(format!("{stem}/{name}"), options).map_err(std::io::Error::other)?;
        zip.write_all(bytes)
    };
    entry(".data/serialization_id", id.as_bytes())?;
    zip.finish().map_err(std::io::Error::other)?.flush()
}

/// A pickle of protocol 2, without a memo.
struct Pickle {
    bytes: Vec<u8>,
    tensors: Vec<Tensor>,
}

impl Pickle {
    fn global(&mut self, module: &str, name: &str) {
        self.bytes.extend_from_slice(format!("c{module}\n{name}\n").as_bytes());
    }

    fn text(&mut self, text: &str) -> Result<()> {
        let n = u32::try_from(text.len()).map_err(|_| Error::Config("a text is too long for a checkpoint".into()))?;
        self.bytes.push(b'X');
        self.bytes.extend_from_slice(&n.to_le_bytes());
        self.bytes.extend_from_slice(text.as_bytes());
        Ok(())
    }

    fn int(&mut self, i: i64) {
        match (u8::try_from(i), i32::try_from(i)) {
            (Ok(small), _) => self.bytes.extend_from_slice(&[b'K', small]),
            (_, Ok(i)) => {
                self.bytes.push(b'J');
                self.bytes.extend_from_slice(&i.to_le_bytes());
            }
            _ => {
                self.bytes.extend_from_slice(&[0x8a, 8]);
                self.bytes.extend_from_slice(&i.to_le_bytes());
            }
        }
    }

    fn ints(&mut self, ints: &[i64]) {
        self.bytes.push(b'(');
        for &i in ints {
            self.int(i);
        }
        self.bytes.push(b't');
    }

    fn items(&mut self, items: &[(Value<Tensor>, Value<Tensor>)]) -> Result<()> {
        if items.is_empty() {
            return Ok(());
        }
        self.bytes.push(b'(');
        for (key, value) in items {
            self.value(key)?;
            self.value(value)?;
        }
        self.bytes.push(b'u');
        Ok(())
    }

    fn members(&mut self, members: &[Value<Tensor>]) -> Result<()> {
        members.iter().try_for_each(|m| self.value(m))
    }

    fn value(&mut self, value: &Value<Tensor>) -> Result<()> {
        match value {
            Value::None => self.bytes.push(b'N'),
            Value::Bool(b) => self.bytes.push(if *b { 0x88 } else { 0x89 }),
            Value::Int(i) => self.int(*i),
            Value::Float(x) => {
                self.bytes.push(b'G');
                self.bytes.extend_from_slice(&x.to_be_bytes());
            }
            Value::Str(text) => self.text(text)?,
            Value::Bytes(_) => {
                // In protocol 2 bytes are a call of _codecs.encode, which careful readers refuse, as ours does.
                return Err(Error::Config("bytes cannot be written into a checkpoint".into()));
            }
            Value::List(members) => {
                self.bytes.extend_from_slice(b"](");
                self.members(members)?;
                self.bytes.push(b'e');
            }
            Value::Tuple(members) => {
                self.bytes.push(b'(');
                self.members(members)?;
                self.bytes.push(b't');
            }
            Value::Dict(items) => {
                self.bytes.push(b'}');
                self.items(items)?;
            }
            Value::OrderedDict { items, attributes } => {
                self.global("collections", "OrderedDict");
                self.bytes.extend_from_slice(b")R");
                self.items(items)?;
                if !attributes.is_empty() {
                    self.bytes.push(b'}');
                    self.items(attributes)?;
                    self.bytes.push(b'b');
                }
            }
            Value::Tensor(tensor) => self.tensor(tensor)?,
        }
        Ok(())
    }

    fn tensor(&mut self, tensor: &Tensor) -> Result<()> {
        let kind = tensor.kind();
        let class = storage_class(kind)
            .ok_or_else(|| Error::Config(format!("tensors of kind {kind:?} cannot be written into a checkpoint")))?;
        let shape = tensor.size();
        let mut stride = vec![1; shape.len()];
        for i in (1..shape.len()).rev() {
            stride[i - 1] = stride[i] * shape[i].max(1);
        }
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.bytes.extend_from_slice(b"((");
        self.text("storage")?;
        self.global("torch", class);
        self.text(&self.tensors.len().to_string())?;
        self.text("cpu")?;
        self.int(tensor.numel() as i64);
        self.bytes.extend_from_slice(b"tQ");
        self.int(0);
        self.ints(&shape);
        self.ints(&stride);
        self.bytes.push(0x89);
        self.global("collections", "OrderedDict");
        self.bytes.extend_from_slice(b")RtR");
        self.tensors.push(tensor.shallow_clone());
        Ok(())
    }
}
