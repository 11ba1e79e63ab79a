//! A checkpoint of ELF-B's size, in the released code's layout: loading takes little more memory than the file is long.
//!
//! One test in this file, so that nothing else in the process asks for memory meanwhile. How long it takes is printed
//! (`cargo test --release -p elf-tests --test full_size_checkpoint -- --nocapture`), not asserted.

use elf_core::pytorch::{Value, write};
use elf_core::{Network, PrecisionPolicy};
use elf_model::{Elf, Preset};
use tch::{Device, Tensor};

/// Resident bytes now (`VmRSS`) and at the most since the last reset (`VmHWM`).
#[cfg(target_os = "linux")]
fn resident(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

#[cfg(target_os = "linux")]
#[test]
fn loading_takes_little_more_memory_than_the_file_is_long() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint_1");
    {
        let net = Elf::new(Preset::B.config(512, 32100), PrecisionPolicy::F32, 0, Device::Cpu).unwrap();
        let params = || -> Value<Tensor> {
            let item = |(name, p): (&str, &elf_core::Param)| {
                (Value::Str(name.into()), Value::Tensor(p.tensor.shallow_clone()))
            };
            Value::OrderedDict { items: net.params().iter().map(item).collect(), attributes: Vec::new() }
        };
        let text = |s: &str| Value::Str(s.into());
        let tree = Value::Dict(vec![(text("params"), params()), (text("step"), Value::Int(1))]);
        write(&path, &tree).unwrap();
    }
    let bytes = std::fs::metadata(&path).unwrap().len();
    let before = resident("VmRSS");
    // Makes the kernel forget the peak so far.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let started = std::time::Instant::now();
    let net = Elf::load(&path, PrecisionPolicy::F32, Device::Cpu).unwrap();
    let seconds = started.elapsed().as_secs_f64();
    let grown = resident("VmHWM").saturating_sub(before);
    println!(
        "{} parameters, {bytes} bytes: loaded in {seconds:.2} s, {:.2} times the file's size in memory at the most",
        net.params().numel(),
        grown as f64 / bytes as f64
    );
    assert!(grown as f64 <= 1.2 * bytes as f64, "{grown} bytes of memory for a file of {bytes}");
    let param = net.params().get("unembed_kernel").unwrap();
    assert!(param.tensor.isfinite().all().int64_value(&[]) == 1);
}
