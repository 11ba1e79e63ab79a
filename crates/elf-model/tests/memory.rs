//! Whether a step keeps as much memory as the formulas give, by the C library's count of memory in use. One test and one process:
//! what other tests hold would be counted too.

#![cfg(all(target_os = "linux", target_env = "gnu"))]

use std::ffi::c_int;

use elf_core::{Network, Precision, PrecisionPolicy, TrunkInput};
use elf_model::{Elf, ElfConfig, Preset};
use tch::{Device, Kind, Tensor};

/// What glibc says of its heap.
#[repr(C)]
struct Mallinfo {
    arena: c_int,
    ordblks: c_int,
    smblks: c_int,
    hblks: c_int,
    hblkhd: c_int,
    usmblks: c_int,
    fsmblks: c_int,
    uordblks: c_int,
    fordblks: c_int,
    keepcost: c_int,
}

unsafe extern "C" {
    safe fn mallinfo() -> Mallinfo;
}

/// Bytes in use, modulo 2^32: in blocks of the heap and in those that were mapped for themselves.
fn in_use() -> c_int {
    let info = mallinfo();
    info.uordblks.wrapping_add(info.hblkhd)
}

/// Bytes that are in use after a forward pass with gradients and were not before.
fn kept(net: &Elf, rows: i64, text: i64) -> f64 {
    let z = Tensor::ones([rows, text, net.config().text_encoder_dim], (Kind::Float, Device::Cpu));
    let t = Tensor::full([rows], 0.5, (Kind::Float, Device::Cpu));
    let pass = || net.trunk(&TrunkInput::new(&z, &t)).unwrap();
    // Copies in low precision and what libtorch keeps for itself are there from the first pass on.
    drop(pass());
    let before = in_use();
    let hidden = pass();
    let bytes = in_use().wrapping_sub(before);
    drop(hidden);
    f64::from(bytes)
}

/// Whether libtorch takes its memory from the C library that counts it: another allocator may be in use.
fn is_counted() -> bool {
    let before = in_use();
    let held = Tensor::zeros([1 << 20], (Kind::Float, Device::Cpu));
    let found = in_use().wrapping_sub(before);
    drop(held);
    found >= 4 << 20
}

#[test]
fn a_pass_keeps_what_the_formulas_say() {
    if !is_counted() {
        eprintln!("another allocator than the C library's: nothing can be measured");
        return;
    }
    let rows = 2;
    for (depth, text, heads) in [(2, 200, 4), (4, 200, 4), (4, 200, 16), (2, 700, 4)] {
        let config = ElfConfig { hidden_size: 256, depth, num_heads: heads, ..Preset::B.config(64, 100) };
        for policy in [PrecisionPolicy::F32, PrecisionPolicy::with_blocks(Precision::Bf16)] {
            let mut net = Elf::new(config.clone(), policy, 1, Device::Cpu).unwrap();
            net.params().set_requires_grad(true);
            let near = |what: &str, found: f64, formula: u64| {
                let ratio = found / formula as f64;
                assert!((0.75..1.33).contains(&ratio), "{depth} {text} {heads} {policy:?}: {what} {found} {formula}");
            };
            let (b, s) = (rows as u64, text as u64);
            let whole = kept(&net, rows, text);
            near("kept", whole, config.activation_bytes(b, s, policy, true));
            net.set_recompute(true);
            let short = kept(&net, rows, text);
            // In the backward pass one block at a time is added to the kept memory.
            let most = short + whole / depth as f64;
            near("recomputed", most, config.activation_bytes_recomputed(b, s, policy, true));
            assert!(short < 0.25 * whole, "{short} {whole}");
        }
    }
}
