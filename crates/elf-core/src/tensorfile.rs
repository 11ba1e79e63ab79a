//! Files of named tensors in the safetensors format.
//!
//! Reading maps the file and compares header, shapes and offsets with its length before anything is allocated. Writing goes to a
//! temporary file in the same folder, which is synced and renamed: a reader never sees half a file, and a full disk leaves the old
//! file in place.
//!
//! A matrix may be stored as 8-bit integers with a scale for each row, `NAME` and `NAME.row_scale` ([`rounded_to_int8`]). It is read as
//! fp32.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use tch::{Device, Kind, Tensor};

use crate::device::host_bytes;
use crate::{Error, Result};

/// Bytes of the header's length, which precedes the header.
const HEADER_SIZE: usize = 8;

/// What follows the name of a matrix that is stored as 8-bit integers in the name of its rows' scales.
const SCALE: &str = ".row_scale";

/// A safetensors file, mapped into memory.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    map: Mmap,
    tensors: BTreeMap<String, Stored>,
    /// The scales of the rows of 8-bit matrices, by the names of these.
    scales: BTreeMap<String, Stored>,
    metadata: HashMap<String, String>,
}

/// A tensor's type and place in the file.
#[derive(Debug)]
struct Stored {
    kind: Kind,
    shape: Vec<i64>,
    bytes: Range<usize>,
}

impl TensorFile {
    /// Opens and checks a file.
    ///
    /// # Errors
    /// If it cannot be read, is not a safetensors file, or its header contradicts its length.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let file = File::open(&path).map_err(Error::io("read", &path))?;
        // SAFETY: the map is read-only. If another process truncates the file meanwhile, reading it faults, as for any
        // mapped file; our own writers rename whole files into place and never change one.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("read", &path))?;
        if elf_files::is_lfs_pointer(&map) {
            return Err(Error::LfsPointer { path });
        }
        let corrupt = |reason: String| Error::Corrupt { path: path.clone(), reason };
        let (header_len, header) = SafeTensors::read_metadata(&map).map_err(|e| corrupt(e.to_string()))?;
        let data = HEADER_SIZE + header_len;
        let mut tensors = BTreeMap::new();
        for (name, info) in header.tensors() {
            let kind = kind_of(info.dtype)
                .ok_or_else(|| corrupt(format!("{name} has the kind {:?}, which is not supported", info.dtype)))?;
            let shape = info.shape.iter().map(|&n| n as i64).collect();
            let bytes = data + info.data_offsets.0..data + info.data_offsets.1;
            if map.get(bytes.clone()).is_none() {
                return Err(corrupt(format!("{name} lies beyond its end")));
            }
            tensors.insert(name, Stored { kind, shape, bytes });
        }
        let mut scales = BTreeMap::new();
        for name in tensors
            .iter()
            .filter(|(_, stored)| stored.kind == Kind::Int8)
            .map(|(name, _)| name.clone())
            .collect::<Vec<_>>()
        {
            let scale = tensors.remove(&format!("{name}{SCALE}"));
            let fits = |scale: &Stored| scale.kind == Kind::Float && scale.shape == tensors[&name].shape[..1];
            match scale.filter(|scale| tensors[&name].shape.len() == 2 && fits(scale)) {
                Some(scale) => scales.insert(name, scale),
                None => {
                    return Err(corrupt(format!(
                        "{name} holds 8-bit integers without a scale for each row of a matrix"
                    )));
                }
            };
        }
        let metadata = header.metadata().clone().unwrap_or_default();
        Ok(Self { path, map, tensors, scales, metadata })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The strings stored with the tensors.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// The shape of a tensor, without reading it.
    pub fn shape(&self, name: &str) -> Option<Vec<i64>> {
        Some(self.tensors.get(name)?.shape.clone())
    }

    /// The kind of a tensor's elements, without reading it.
    pub fn kind(&self, name: &str) -> Option<Kind> {
        Some(match self.tensors.get(name)?.kind {
            Kind::Int8 => Kind::Float,
            kind => kind,
        })
    }

    /// One tensor, copied to `device`.
    ///
    /// # Errors
    /// If there is no tensor of that name.
    pub fn get(&self, name: &str, device: Device) -> Result<Tensor> {
        let stored = self.tensors.get(name).ok_or_else(|| self.corrupt(format!("it has no tensor {name}")))?;
        self.read(name, stored, device)
    }

    /// All tensors, by name, copied to `device`.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn read_all(&self, device: Device) -> Result<Vec<(String, Tensor)>> {
        self.tensors.iter().map(|(name, stored)| Ok((name.clone(), self.read(name, stored, device)?))).collect()
    }

    fn read(&self, name: &str, stored: &Stored, device: Device) -> Result<Tensor> {
        let on_host = |Stored { kind, shape, bytes }: &Stored| {
            let tensor = Tensor::f_from_data_size(&self.map[bytes.clone()], shape, *kind);
            tensor.map_err(|e| self.corrupt(format!("{name}: {e}")))
        };
        let tensor = on_host(stored)?;
        let tensor = match self.scales.get(name) {
            None => tensor,
            Some(scale) => tensor.f_to_kind(Kind::Float)?.f_mul(&on_host(scale)?.f_unsqueeze(1)?)?,
        };
        Ok(tensor.f_to_device(device)?)
    }

    fn corrupt(&self, reason: String) -> Error {
        Error::Corrupt { path: self.path.clone(), reason }
    }
}

fn kind_of(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F16 => Kind::Half,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        Dtype::U8 => Kind::Uint8,
        Dtype::I8 => Kind::Int8,
        Dtype::BOOL => Kind::Bool,
        _ => return None,
    })
}

fn dtype_of(kind: Kind) -> Option<Dtype> {
    Some(match kind {
        Kind::Float => Dtype::F32,
        Kind::Double => Dtype::F64,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Half => Dtype::F16,
        Kind::Int64 => Dtype::I64,
        Kind::Int => Dtype::I32,
        Kind::Uint8 => Dtype::U8,
        Kind::Int8 => Dtype::I8,
        Kind::Bool => Dtype::BOOL,
        _ => return None,
    })
}

/// A matrix `[R, C]` as 8-bit integers and the scale of each row `[R]`, fp32: 127 stands for the largest number of a row, so that no
/// number is off by more than 1/254 of that. To be stored under its name and that of [`scale_name`].
///
/// # Errors
/// If it is no matrix.
pub fn rounded_to_int8(matrix: &Tensor) -> Result<(Tensor, Tensor)> {
    let (_, columns) = matrix.size2()?;
    let matrix = matrix.f_to_kind(Kind::Float)?;
    let largest = match columns {
        0 => Tensor::f_zeros([matrix.size()[0]], (Kind::Float, matrix.device()))?,
        _ => matrix.f_abs()?.f_amax(1, false)?,
    };
    // A row of zeros has any scale.
    let scale = (largest / 127.0).f_clamp_min(f64::from(f32::MIN_POSITIVE))?;
    let rounded = matrix.f_div(&scale.f_unsqueeze(1)?)?.f_round()?.f_clamp(-127, 127)?.f_to_kind(Kind::Int8)?;
    Ok((rounded, scale))
}

/// The name of the scales of a matrix that is stored as 8-bit integers.
pub fn scale_name(name: &str) -> String {
    format!("{name}{SCALE}")
}

/// Writes tensors and metadata strings to a temporary file, syncs and renames it.
///
/// # Errors
/// If the file cannot be written; then `path` is unchanged.
pub fn write<'t>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'t str, &'t Tensor)>,
    metadata: HashMap<String, String>,
) -> Result<()> {
    let tensors: Vec<(&str, StoredTensor)> =
        tensors.into_iter().map(|(name, t)| Ok((name, StoredTensor::new(t)?))).collect::<Result<_>>()?;
    let metadata = (!metadata.is_empty()).then_some(metadata);
    let fill = |file: &Path| safetensors::serialize_to_file(tensors, metadata, file).map_err(std::io::Error::other);
    elf_files::write_with(path, fill).map_err(Error::io("write", path))
}

/// A tensor as the safetensors library takes it: bytes on the CPU.
struct StoredTensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl StoredTensor {
    fn new(tensor: &Tensor) -> Result<Self> {
        let kind = tensor.kind();
        let dtype =
            dtype_of(kind).ok_or_else(|| Error::Config(format!("tensors of kind {kind:?} cannot be stored")))?;
        let shape = tensor.size().iter().map(|&n| n as usize).collect();
        Ok(Self { dtype, shape, bytes: host_bytes(tensor)? })
    }
}

impl safetensors::View for StoredTensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        (&self.bytes).into()
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(folder: &Path) -> PathBuf {
        let path = folder.join("x.safetensors");
        let a = Tensor::arange(6, (Kind::Float, Device::Cpu)).view([2, 3]);
        let b = (&a * 0.1).to_kind(Kind::BFloat16);
        let ids = Tensor::from_slice(&[1i64, -5]);
        write(&path, [("a", &a), ("b", &b), ("ids", &ids)], HashMap::from([("step".into(), "7".into())])).unwrap();
        path
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = TensorFile::open(sample(folder.path())).unwrap();
        assert_eq!(file.metadata()["step"], "7");
        assert_eq!(file.names().collect::<Vec<_>>(), ["a", "b", "ids"]);
        assert_eq!(file.shape("a").unwrap(), [2, 3]);
        let a = file.get("a", Device::Cpu).unwrap();
        assert!(a.equal(&Tensor::arange(6, (Kind::Float, Device::Cpu)).view([2, 3])));
        assert!(file.get("b", Device::Cpu).unwrap().equal(&(&a * 0.1).to_kind(Kind::BFloat16)));
        assert_eq!(Vec::<i64>::try_from(file.get("ids", Device::Cpu).unwrap()).unwrap(), [1, -5]);
        assert!(file.get("c", Device::Cpu).unwrap_err().to_string().contains("no tensor c"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left aside");
    }

    #[test]
    fn matrices_of_8_bits_are_read_as_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let matrix = Tensor::from_slice(&[0.5f32, -2.0, 1.0, 0.0, 0.0, 0.0, 1e-3, 2e-3, -4e-3]).view([3, 3]);
        let (rounded, scale) = rounded_to_int8(&matrix).unwrap();
        write(&path, [("a", &rounded), (scale_name("a").as_str(), &scale)], HashMap::new()).unwrap();
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.names().collect::<Vec<_>>(), ["a"]);
        assert_eq!((file.shape("a").unwrap(), file.kind("a").unwrap()), (vec![3, 3], Kind::Float));
        let read = file.get("a", Device::Cpu).unwrap();
        let most = matrix.abs().amax(1, true) / 254.0 + 1e-9;
        assert!(bool::try_from((&read - &matrix).abs().le_tensor(&most).all()).unwrap(), "{read}");
        assert!(read.equal(&file.read_all(Device::Cpu).unwrap()[0].1));
        for (name, scale) in [("b", &scale), (scale_name("a").as_str(), &scale.narrow(0, 0, 2))] {
            write(&path, [("a", &rounded), (name, scale)], HashMap::new()).unwrap();
            assert!(TensorFile::open(&path).unwrap_err().to_string().contains("without a scale"));
        }
    }

    #[test]
    fn a_missing_and_a_truncated_file_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = sample(folder.path());
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        let message = TensorFile::open(&path).unwrap_err().to_string();
        assert!(message.contains("x.safetensors") && message.contains("fetch or write it again"), "{message}");
        assert!(TensorFile::open(folder.path().join("none")).unwrap_err().to_string().contains("none"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn damaged_files_never_panic(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
            let folder = tempfile::tempdir().unwrap();
            let path = sample(folder.path());
            let mut bytes = std::fs::read(&path).unwrap();
            let n = bytes.len();
            bytes[at.index(n)] = byte;
            bytes.truncate(cut.index(n) + 1);
            std::fs::write(&path, &bytes).unwrap();
            if let Ok(file) = TensorFile::open(&path) {
                let _ = file.read_all(Device::Cpu);
            }
        }
    }
}
