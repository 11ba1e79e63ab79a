//! The zip file around the pickle.

use std::collections::HashMap;
use std::fs::File;
use std::io::Cursor;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use tch::{Device, Tensor};
use zip::{CompressionMethod, ZipArchive};

use super::machine;
use super::{TensorRef, Value};
use crate::{Error, Result};

/// Longest pickle. That of the largest released model has less than half a megabyte.
const MAX_PICKLE: u64 = 32 << 20;
/// Largest sum of the sizes of tensors that share storages, as a multiple of the file's length.
const MAX_SHARING: u64 = 8;

/// The bytes of one entry of the zip file.
#[derive(Debug, Clone)]
struct Entry {
    range: Range<usize>,
    crc: u32,
}

/// A checkpoint as `torch.save` writes it, mapped into memory. A tensor is copied only when it is requested.
#[derive(Debug)]
pub struct PyTorchFile {
    path: PathBuf,
    map: Mmap,
    storages: HashMap<String, Entry>,
    value: Value<TensorRef>,
}

impl PyTorchFile {
    /// Whether a file begins as a zip file does.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn is_zip(path: &Path) -> Result<bool> {
        Ok(beginning(path)?.starts_with(b"PK"))
    }

    /// Whether a file begins as `torch.save` writes it: as a zip file, or as a pickle of before PyTorch 1.6, which [`Self::open`]
    /// refuses with the remedy.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn is_pytorch(path: &Path) -> Result<bool> {
        let start = beginning(path)?;
        Ok(start.starts_with(b"PK") || is_pickle(&start))
    }

    /// Opens a checkpoint and reads its tree; no tensor is copied yet.
    ///
    /// # Errors
    /// If it cannot be read, is damaged, or holds anything but tensors and plain containers.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let file = File::open(&path).map_err(Error::io("read", &path))?;
        // SAFETY: the map is read-only. If another process truncates the file meanwhile, reading it faults, as for any
        // mapped file; our own writers rename whole files into place and never change one.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("read", &path))?;
        if elf_files::is_lfs_pointer(&map) {
            return Err(Error::LfsPointer { path });
        }
        let (storages, value) = match is_pickle(&map) {
            true => Err(old_pickle(&map, &path)),
            false => read(&map),
        }
        .map_err(|reason| Error::Checkpoint { path: path.clone(), reason })?;
        Ok(Self { path, map, storages, value })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its tree of values.
    pub fn value(&self) -> &Value<TensorRef> {
        &self.value
    }

    /// Copies a tensor of this file to `device`.
    ///
    /// # Errors
    /// If its bytes are damaged or libtorch fails (out of memory).
    pub fn tensor(&self, at: &TensorRef, device: Device) -> Result<Tensor> {
        let bad = |reason: String| Error::Checkpoint { path: self.path.clone(), reason };
        let entry = self.storages.get(&at.storage).ok_or_else(|| bad(missing(at)))?;
        let bytes = &self.map[entry.range.clone()];
        if crc32fast::hash(bytes) != entry.crc {
            return Err(bad(format!(
                "the bytes of its storage `{}` are damaged (wrong checksum); fetch it again",
                at.storage
            )));
        }
        let width = at.kind.elt_size_in_bytes();
        let (first, extent) = (at.offset as usize * width, at.extent() as usize * width);
        let tensor = if at.numel() == 0 {
            Tensor::f_empty(&at.shape, (at.kind, Device::Cpu))?
        } else if at.is_contiguous() {
            Tensor::f_from_data_size(&bytes[first..first + extent], &at.shape, at.kind)?
        } else {
            let flat = Tensor::f_from_data_size(&bytes[first..first + extent], &[at.extent()], at.kind)?;
            flat.f_as_strided(&at.shape, &at.stride, 0)?.f_contiguous()?
        };
        self.forget(&entry.range);
        Ok(tensor.f_to_device(device)?)
    }

    /// Lets the system drop pages that have been copied, so that a load does not hold file and tensors at once.
    fn forget(&self, range: &Range<usize>) {
        #[cfg(unix)]
        {
            // SAFETY: the map is shared, read-only and backed by the file: dropped pages are read from it again when used.
            let _ = unsafe {
                self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
            };
        }
        let _ = range;
    }
}

/// The first nine bytes of a file.
fn beginning(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read;
    let mut start = Vec::new();
    File::open(path).and_then(|f| f.take(9).read_to_end(&mut start)).map_err(Error::io("read", path))?;
    Ok(start)
}

/// Whether a file begins with a pickle of protocol 2 to 5. A safetensors file has its header's first brace in the ninth byte.
fn is_pickle(bytes: &[u8]) -> bool {
    matches!(bytes, [0x80, 2..=5, ..]) && bytes.get(8) != Some(&b'{')
}

/// The refusal of a pickle without a zip file around it.
fn old_pickle(bytes: &[u8], path: &Path) -> String {
    /// The beginning of the number by which `torch.load` recognises its former format.
    const MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20";
    let origin = if bytes.starts_with(MAGIC) { ", as PyTorch before 1.6 wrote them" } else { "" };
    format!(
        "it is a pickle without a zip file around it{origin}. Convert it once: python -c \"import torch; p = '{}'; \
         torch.save(torch.load(p, map_location='cpu', weights_only=True), p)\"",
        path.display()
    )
}

fn missing(at: &TensorRef) -> String {
    format!("it has no storage `{}`, which a tensor of shape {:?} needs; fetch it again", at.storage, at.shape)
}

/// The storages by key, and the tree, checked against one another.
fn read(bytes: &[u8]) -> Result<(HashMap<String, Entry>, Value<TensorRef>), String> {
    if !bytes.starts_with(b"PK") {
        return Err("it is not a zip file, as torch.save writes them".into());
    }
    let entries = entries(bytes)?;
    let prefix = {
        let mut pickles = entries.keys().filter_map(|name| name.strip_suffix("data.pkl"));
        match (pickles.next(), pickles.next()) {
            (Some(prefix), None) if prefix.is_empty() || prefix.ends_with('/') => prefix.to_owned(),
            (None, _) => return Err("it has no data.pkl: it is some other zip file".into()),
            _ => return Err("it has several data.pkl".into()),
        }
    };
    let part = |name: &str| entries.get(&format!("{prefix}{name}"));
    if let Some(order) = part("byteorder")
        && bytes[order.range.clone()].trim_ascii() != b"little"
    {
        return Err("its numbers are stored big-endian; save it again on an ordinary machine".into());
    }
    let pickle = part("data.pkl").ok_or("it has no data.pkl")?;
    let program = &bytes[pickle.range.clone()];
    if program.len() as u64 > MAX_PICKLE {
        return Err(format!("its pickle has {} bytes, more than any checkpoint needs", program.len()));
    }
    if crc32fast::hash(program) != pickle.crc {
        return Err("its data.pkl is damaged (wrong checksum); fetch it again".into());
    }
    let value = machine::read(program)?;
    let data = format!("{prefix}data/");
    let storages: HashMap<String, Entry> =
        entries.iter().filter_map(|(name, e)| Some((name.strip_prefix(&data)?.to_owned(), e.clone()))).collect();

    let mut total = 0u64;
    value.map_tensors(&mut |name: &str, at: &TensorRef| {
        let entry = storages.get(&at.storage).ok_or_else(|| missing(at))?;
        let promised = usize::try_from(at.stored).ok().and_then(|n| n.checked_mul(at.kind.elt_size_in_bytes()));
        if promised != Some(entry.range.len()) {
            return Err(format!(
                "the storage of {name} should hold {} numbers of kind {:?}, but has {} bytes; fetch it again",
                at.stored,
                at.kind,
                entry.range.len()
            ));
        }
        total = total.saturating_add(at.numel() as u64 * at.kind.elt_size_in_bytes() as u64);
        match total > MAX_SHARING.saturating_mul(bytes.len() as u64) {
            true => {
                Err(format!("its tensors share so much that they add up to more than {MAX_SHARING} times its length"))
            }
            false => Ok(()),
        }
    })?;
    Ok((storages, value))
}

/// All entries of the zip file, whose bytes must lie in it as they are.
fn entries(bytes: &[u8]) -> Result<HashMap<String, Entry>, String> {
    let broken = |e: zip::result::ZipError| format!("its zip directory is damaged or cut off ({e}); fetch it again");
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(broken)?;
    let mut entries = HashMap::new();
    for i in 0..archive.len() {
        let entry = archive.by_index_raw(i).map_err(broken)?;
        let name = entry.name().to_owned();
        // torch.save never compresses; refusing to unpack makes zip bombs harmless.
        if entry.compression() != CompressionMethod::Stored
            || entry.encrypted()
            || entry.size() != entry.compressed_size()
        {
            return Err(format!(
                "its entry `{}` is compressed or encrypted, which torch.save never does; nothing was unpacked",
                name.escape_default()
            ));
        }
        let start = entry.data_start().and_then(|s| usize::try_from(s).ok());
        let end = start.and_then(|s| s.checked_add(usize::try_from(entry.size()).ok()?));
        match (start, end) {
            (Some(start), Some(end)) if end <= bytes.len() => {
                entries.insert(name, Entry { range: start..end, crc: entry.crc32() });
            }
            _ => return Err(format!("its entry `{}` lies beyond its end; fetch it again", name.escape_default())),
        }
    }
    Ok(entries)
}
