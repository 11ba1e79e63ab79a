//! What tells one set of parameters from another.

use elf_core::{Error as CoreError, ParamSet};
use tch::{Device, Kind};

use crate::Result;

/// The BLAKE3 hash, hexadecimal, of all parameters: names, shapes and values in fp32, in the set's order. Equal networks of one
/// program version have equal fingerprints, whatever files they came from.
///
/// # Errors
/// If a parameter cannot be read from its device.
pub fn fingerprint(params: &ParamSet) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for (name, p) in params.iter() {
        hasher.update(name.as_bytes());
        hasher.update(format!("{:?}", p.tensor.size()).as_bytes());
        let values = p.tensor.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
        let count = values.numel();
        let mut bytes = vec![0u8; count * size_of::<f32>()];
        values.f_copy_data_u8(&mut bytes, count).map_err(CoreError::from)?;
        hasher.update(&bytes);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use elf_core::{Init, ParamBuilder};

    fn set(name: &str, shape: &[i64], value: f64) -> ParamSet {
        let mut b = ParamBuilder::seeded(0, Device::Cpu);
        b.tensor(name, shape, Init::Constant(value)).unwrap();
        b.finish()
    }

    #[test]
    fn names_shapes_and_values_count() {
        let one = fingerprint(&set("p", &[2, 3], 0.5)).unwrap();
        assert_eq!(one, fingerprint(&set("p", &[2, 3], 0.5)).unwrap());
        for other in [set("q", &[2, 3], 0.5), set("p", &[3, 2], 0.5), set("p", &[2, 3], 0.50001)] {
            assert_ne!(one, fingerprint(&other).unwrap());
        }
    }
}
