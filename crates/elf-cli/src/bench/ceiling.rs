//! What the machine can do at the most, measured with the very library that computes everything else.

use std::time::{Duration, Instant};

use anyhow::Result;
use elf_core::{Noise, Seeded, device};
use tch::{Device, Kind, Tensor};

/// Rows, inner and columns of the matrix product that counts as the ceiling: a feed-forward layer of width 768 over 4096
/// positions on a CPU, and the largest square that is quick enough on a GPU.
fn product_shape(device: Device) -> [i64; 3] {
    match device {
        Device::Cpu => [4096, 768, 3072],
        _ => [8192, 8192, 8192],
    }
}

/// Bytes that one copy moves: far beyond any cache.
const COPY_BYTES: i64 = 256 << 20;

/// Each ceiling is the best of what fits into this time; other programs can only take away, from a GPU hardly ever.
fn at_least(device: Device) -> Duration {
    Duration::from_millis(if elf_kernels::takes_gpu_path(device) { 100 } else { 800 })
}

/// Operations a second of a large matrix product in `kind`.
pub fn matmul_flops(kind: Kind, device: Device) -> Result<f64> {
    let [rows, inner, columns] = product_shape(device);
    // A GPU multiplies numbers without a pattern more slowly: they draw more power.
    let random = |rows, columns| -> Result<Tensor> {
        Ok(Seeded::new(vec![0], device).normal("factor", &[1, rows, columns])?.f_get(0)?.f_to_kind(kind)?)
    };
    let (a, b) = (random(rows, inner)?, random(columns, inner)?.f_transpose(0, 1)?);
    let best = best_seconds(device, || Ok(a.f_matmul(&b)?))?;
    Ok((2 * rows * inner * columns) as f64 / best)
}

/// Bytes a second that a large copy reads and writes.
pub fn copy_bytes(device: Device) -> Result<f64> {
    let from = Tensor::f_zeros([COPY_BYTES], (Kind::Uint8, device))?;
    let mut to = from.f_empty_like()?;
    let best = best_seconds(device, || Ok(to.f_copy_(&from)?))?;
    Ok(2.0 * COPY_BYTES as f64 / best)
}

/// The shortest of several runs.
fn best_seconds<R>(on: Device, mut f: impl FnMut() -> Result<R>) -> Result<f64> {
    f()?;
    device::wait(on);
    let (begun, mut best) = (Instant::now(), f64::INFINITY);
    while begun.elapsed() < at_least(on) {
        let at = Instant::now();
        f()?;
        device::wait(on);
        best = best.min(at.elapsed().as_secs_f64());
    }
    Ok(best)
}
