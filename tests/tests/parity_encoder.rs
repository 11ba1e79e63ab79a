//! The T5 encoder against hidden states computed by Hugging Face's implementation.

use anyhow::{Context, Result, ensure};
use elf_core::Precision;
use elf_core::tensorfile::TensorFile;
use elf_encoder::{EncoderMask, T5Encoder, TextEncoder};
use elf_tests::parity_path;
use tch::{Device, Kind, Tensor};

/// Absolute tolerance in fp32: that of the reference between two machines.
const TOLERANCE: f64 = 1e-5;

fn check(folder: &str) -> Result<()> {
    let folder = parity_path(folder);
    let encoder = T5Encoder::load(&folder, Device::Cpu, Precision::F32)?;
    let file = TensorFile::open(folder.join("cases.safetensors"))?;
    let get = |name: &str| file.get(name, Device::Cpu).with_context(|| format!("{name} of {}", folder.display()));
    let ids = get("input_ids")?;
    let (columns, pairs) = (get("mask_2d")?, get("mask_3d")?);
    let cases = [
        ("no_mask", EncoderMask::None),
        ("mask_2d", EncoderMask::Columns(&columns)),
        ("mask_3d", EncoderMask::Pairs(&pairs)),
    ];
    for (name, mask) in cases {
        let expected = get(&format!("hidden.{name}"))?;
        let found = encoder.encode(&ids, mask)?;
        ensure!(
            found.size() == expected.size() && found.kind() == Kind::Float,
            "{name}: {found:?} instead of {expected:?}"
        );
        let worst = (&found - &expected).abs().max().double_value(&[]);
        println!("{}: {name}: largest difference {worst:.1e}", folder.display());
        ensure!(worst <= TOLERANCE, "{name}: differs by {worst:e}");
    }
    // The masks change the result; otherwise the comparison above would show little.
    let apart = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
    ensure!(apart(&get("hidden.no_mask")?, &get("hidden.mask_3d")?) > 100.0 * TOLERANCE);
    Ok(())
}

#[test]
fn parity_t5_relu() -> Result<()> {
    check("t5_relu")
}

#[test]
fn parity_t5_gated_gelu() -> Result<()> {
    check("t5_gated_gelu")
}
