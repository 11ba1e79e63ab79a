//! Hashes of parameters.

use elf_core::ParamSet;
use elf_core::device::host_bytes;
use tch::Kind;

use crate::Result;

/// The BLAKE3 hash, hexadecimal, of all parameters: names, shapes and values in fp32, in the set's order. Equal networks of one
/// program version have equal fingerprints, from whichever files they were read.
///
/// # Errors
/// If a parameter cannot be read from its device.
pub fn fingerprint(params: &ParamSet) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for (name, p) in params.iter() {
        hasher.update(name.as_bytes());
        hasher.update(format!("{:?}", p.tensor.size()).as_bytes());
        hasher.update(&host_bytes(&p.tensor.f_to_kind(Kind::Float)?)?);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use elf_core::{Init, ParamBuilder};
    use tch::Device;

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
