//! The kernels for GPUs, compiled ahead of time to see what the compiler makes of them. Programs compile them anew at run time.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::libtorch::{CUDA_RUNTIME, Wheel};
use crate::workspace::Workspace;

/// What nvcc is made of, in the version whose code drivers of CUDA 13.0 take.
const WHEELS: [Wheel; 5] = [
    Wheel {
        requirement: "nvidia-cuda-cccl==13.0.85",
        platform: "manylinux2014_x86_64",
        file: "nvidia_cuda_cccl-13.0.85-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        sha256: "e0da7ad981f3a8aff08241b5bfc1af868742a63e2762f53a5171c492ef242649",
        megabytes: 3,
    },
    Wheel {
        requirement: "nvidia-cuda-crt==13.0.88",
        platform: "manylinux2014_x86_64",
        file: "nvidia_cuda_crt-13.0.88-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        sha256: "2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4",
        megabytes: 1,
    },
    CUDA_RUNTIME,
    Wheel {
        requirement: "nvidia-cuda-nvcc==13.0.88",
        platform: "manylinux2014_x86_64",
        file: "nvidia_cuda_nvcc-13.0.88-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        sha256: "56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03",
        megabytes: 37,
    },
    Wheel {
        requirement: "nvidia-nvvm==13.0.88",
        platform: "manylinux2010_x86_64",
        file: "nvidia_nvvm-13.0.88-py3-none-manylinux2010_x86_64.manylinux_2_12_x86_64.whl",
        sha256: "c5f41ffeb6466944a026dfa5317d7d85355c119bbec279205d22f1869d1054e0",
        megabytes: 62,
    },
];

/// A100, H100 and H200, B200.
const ARCHITECTURES: [&str; 3] = ["sm_80", "sm_90", "sm_100"];

#[derive(Debug, Args)]
pub struct Options {
    /// Compile for this architecture, e.g. sm_120. May be repeated. Default: sm_80, sm_90 and sm_100.
    #[arg(long = "arch", value_name = "ARCHITECTURE")]
    architectures: Vec<String>,
}

/// What the assembler says of one kernel.
#[derive(Debug, Default, PartialEq, Eq)]
struct Kernel {
    name: String,
    registers: u32,
    stack: u32,
    spilled: u32,
}

/// Compiles `crates/elf-kernels/cuda/kernels.cuh` with an nvcc that is fetched first if it is not there, and prints a table of
/// its kernels.
///
/// # Errors
/// If nvcc cannot be fetched or refuses the source, or a kernel spills registers.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let nvcc = nvcc()?;
    let source = workspace.root.join("crates/elf-kernels/cuda/kernels.cuh");
    let target = workspace.target().join("cuda-kernels");
    fs::create_dir_all(&target).with_context(|| format!("{} cannot be made", target.display()))?;
    let chosen = options.architectures.iter().map(String::as_str);
    let chosen: Vec<&str> = if options.architectures.is_empty() { ARCHITECTURES.to_vec() } else { chosen.collect() };
    let mut spilling = Vec::new();
    for architecture in chosen {
        let file = target.join(format!("{architecture}.cubin"));
        let mut command = Command::new(&nvcc);
        command.args("-x cu -std=c++17 -cubin -Xptxas -v".split(' ')).arg(format!("-arch={architecture}"));
        let output = command.arg("-o").arg(&file).arg(&source).output().context("nvcc cannot be started")?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            bail!("the kernels do not compile for {architecture}:\n{said}");
        }
        let kernels = parsed(&said)?;
        println!("{architecture}: {} kernels, {}", kernels.len(), file.display());
        println!("  {:36} {:>9} {:>11} {:>13}", "kernel", "registers", "stack bytes", "spilled bytes");
        for kernel in kernels {
            println!("  {:36} {:9} {:11} {:13}", kernel.name, kernel.registers, kernel.stack, kernel.spilled);
            if kernel.spilled > 0 {
                spilling.push(format!("{} for {architecture}", kernel.name));
            }
        }
    }
    if !spilling.is_empty() {
        bail!("registers are spilled by {}", spilling.join(", "));
    }
    Ok(())
}

/// The compiler in the user's cache.
fn nvcc() -> Result<PathBuf> {
    let home = crate::libtorch::fetched_wheels("nvcc-13.0", &WHEELS)?.join("nvidia/cu13");
    // Archives of this kind do not keep what may be run.
    for folder in ["bin", "nvvm/bin"] {
        for entry in fs::read_dir(home.join(folder)).with_context(|| format!("{} is damaged", home.display()))? {
            let path = entry?.path();
            if path.is_file() {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
                    .with_context(|| format!("{} cannot be made runnable", path.display()))?;
            }
        }
    }
    Ok(home.join("bin/nvcc"))
}

/// The kernels that `ptxas -v` tells of.
fn parsed(said: &str) -> Result<Vec<Kernel>> {
    let number_before = |line: &str, what: &str| -> Option<u32> {
        line.split(what).next()?.split_whitespace().next_back()?.parse().ok()
    };
    let mut kernels: Vec<Kernel> = Vec::new();
    for line in said.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let name = rest.split('\'').next().unwrap_or(rest).to_owned();
            kernels.push(Kernel { name, ..Kernel::default() });
        }
        let Some(kernel) = kernels.last_mut() else { continue };
        if line.contains("bytes stack frame") {
            let numbers = [" bytes stack frame", " bytes spill stores", " bytes spill loads"];
            let [stack, stores, loads] = numbers.map(|what| number_before(line, what));
            kernel.stack = stack.with_context(|| format!("ptxas says `{line}`"))?;
            kernel.spilled = stores.zip(loads).map(|(a, b)| a + b).with_context(|| format!("ptxas says `{line}`"))?;
        }
        if line.contains("Used ") {
            kernel.registers = number_before(line, " registers").with_context(|| format!("ptxas says `{line}`"))?;
        }
    }
    match kernels.iter().all(|kernel| kernel.registers > 0) && !kernels.is_empty() {
        true => Ok(kernels),
        false => bail!("ptxas does not tell of registers:\n{said}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_and_spills_are_read() {
        let said = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'elf_a' for 'sm_90'\n\
            ptxas info    : Function properties for elf_a\n    \
            32 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads\n\
            ptxas info    : Used 30 registers, used 0 barriers, 32 bytes cumulative stack size\n\
            ptxas info    : Compiling entry function 'elf_b' for 'sm_90'\n    \
            0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
            ptxas info    : Used 48 registers, used 1 barriers\n";
        let kernel = |name: &str, registers, stack, spilled| Kernel { name: name.into(), registers, stack, spilled };
        assert_eq!(parsed(said).unwrap(), [kernel("elf_a", 30, 32, 12), kernel("elf_b", 48, 0, 0)]);
        assert!(parsed("nvcc fatal").is_err());
    }
}
