//! A checkpoint of ELF-B's size, in the released code's layout: loading takes little more memory than the file's size.
//!
//! The file is loaded by a process of its own, so that the memory for making it does not count. The time is printed (`cargo test --release -p elf-tests --test full_size_checkpoint -- --nocapture`), not asserted.

use elf_core::pytorch::{Value, write};
use elf_core::{Network, PrecisionPolicy};
use elf_model::{Elf, Preset};
use tch::{Device, Tensor};

/// Resident bytes: now (`VmRSS`), and at the most so far (`VmHWM`).
#[cfg(target_os = "linux")]
fn resident(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

/// The variable that names the file for that process.
const FILE: &str = "ELF_TEST_LOAD";

#[cfg(target_os = "linux")]
#[test]
fn loading_takes_little_more_memory_than_the_file_is_long() {
    if let Some(path) = std::env::var_os(FILE) {
        return load(std::path::Path::new(&path));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint_1");
    let net = Elf::new(Preset::B.config(512, 32100), PrecisionPolicy::F32, 0, Device::Cpu).unwrap();
    let item = |(name, p): (&str, &elf_core::Param)| (Value::Str(name.into()), Value::Tensor(p.tensor.shallow_clone()));
    let params = Value::OrderedDict { items: net.params().iter().map(item).collect(), attributes: Vec::new() };
    let text = |s: &str| Value::<Tensor>::Str(s.into());
    write(&path, &Value::Dict(vec![(text("params"), params), (text("step"), Value::Int(1))])).unwrap();

    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "loading_takes_little_more_memory_than_the_file_is_long", "--nocapture"])
        .env(FILE, &path)
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    println!("{out}");
    assert!(child.status.success() && out.contains("loaded in"), "{out}{err}");
}

#[cfg(target_os = "linux")]
fn load(path: &std::path::Path) {
    let bytes = std::fs::metadata(path).unwrap().len();
    let before = resident("VmRSS");
    let started = std::time::Instant::now();
    let net = Elf::load(path, PrecisionPolicy::F32, Device::Cpu).unwrap();
    let seconds = started.elapsed().as_secs_f64();
    let grown = resident("VmHWM").saturating_sub(before);
    println!(
        "{} parameters, {bytes} bytes: loaded in {seconds:.2} s, at most {:.2} times the file's size in memory",
        net.params().numel(),
        grown as f64 / bytes as f64
    );
    assert!(grown >= bytes / 2, "{grown} bytes cannot hold the parameters: the measurement is wrong");
    assert!(grown as f64 <= 1.2 * bytes as f64, "{grown} bytes of memory for a file of {bytes}");
}
