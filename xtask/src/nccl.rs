//! The library that makes process groups of NCCL, for training on several GPUs. It is built apart from the program, because
//! it needs headers that a build for CPUs does not.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::libtorch::{Libtorch, SetUp, setup};
use crate::steps;
use crate::workspace::Workspace;

/// Headers that are needed, and the packages that have them in the versions of libtorch.
const HEADERS: [(&str, &str); 4] = [
    ("nccl.h", "nvidia-nccl-cu13==2.28.9"),
    ("cuda_runtime_api.h", "nvidia-cuda-runtime==13.0.96"),
    ("crt/host_config.h", "nvidia-cuda-crt==13.0.88"),
    ("nv/target", "nvidia-cuda-cccl==13.0.85"),
];

#[derive(Debug, Args)]
pub struct Options {
    /// A folder of headers, in addition to those of an installed Python torch. May be repeated.
    #[arg(long, value_name = "FOLDER")]
    include: Vec<PathBuf>,
    /// Where to write the library. Default: next to the program, where `elf` looks for it.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Compiles `crates/elf-c10d/cpp/nccl.cpp`.
///
/// # Errors
/// If a header is missing, with the package that has it, or the compiler fails.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let libtorch = setup(workspace, SetUp::Once)?;
    let mut folders = options.include.clone();
    folders.extend(installed_headers(&libtorch));
    missing(&folders)?;
    let sources = workspace.root.join("crates/elf-c10d/cpp");
    let output = match &options.output {
        Some(path) => path.clone(),
        None => workspace.target().join("release/libelf_nccl.so"),
    };
    if let Some(folder) = output.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    }
    let compiler = env::var("CXX").ok().filter(|text| !text.trim().is_empty()).unwrap_or_else(|| "c++".into());
    let mut words = compiler.split_whitespace();
    let mut command = Command::new(words.next().context("CXX is empty")?);
    command.args(words).args("-std=c++17 -O2 -fPIC -shared -w".split(' '));
    // As torch-sys compiles its own bridge.
    command.args(["-D_GLIBCXX_USE_CXX11_ABI=1", "-DGLOG_USE_GLOG_EXPORT", "-DUSE_DISTRIBUTED", "-DUSE_C10D_NCCL"]);
    let include = libtorch.root.join("include");
    for folder in [include.clone(), include.join("torch/csrc/api/include")].iter().chain(&folders) {
        command.arg("-I").arg(folder);
    }
    // Declarations in place of CUDA's own headers, for types that are only named.
    command.arg("-idirafter").arg(sources.join("cuda_declarations"));
    command.arg(sources.join("nccl.cpp")).arg("-o").arg(&output).arg("-L").arg(libtorch.libraries());
    command.args(["-ltorch_cuda", "-lc10_cuda", "-ltorch_cpu", "-lc10"]);
    // The libraries that libtorch_cuda needs are found when it is loaded, on the machine with GPUs.
    command.arg("-Wl,--allow-shlib-undefined").arg(format!("-Wl,-rpath,{}", libtorch.libraries().display()));
    steps::run(&mut command).context("the NCCL library cannot be compiled")?;
    println!("{}", output.display());
    Ok(())
}

/// Folders in which pip installs headers: next to torch's own.
fn installed_headers(libtorch: &Libtorch) -> Vec<PathBuf> {
    let Some(packages) = libtorch.root.parent() else { return Vec::new() };
    ["nvidia/nccl/include", "nvidia/cu13/include"].iter().map(|f| packages.join(f)).filter(|f| f.is_dir()).collect()
}

fn missing(folders: &[PathBuf]) -> Result<()> {
    let has = |header: &str| folders.iter().any(|f: &PathBuf| Path::new(f).join(header).is_file());
    let lacking: Vec<_> = HEADERS.iter().filter(|(header, _)| !has(header)).collect();
    if lacking.is_empty() {
        return Ok(());
    }
    let headers = lacking.iter().map(|(header, _)| *header).collect::<Vec<_>>().join(", ");
    let packages = lacking.iter().map(|(_, package)| *package).collect::<Vec<_>>().join(" ");
    bail!(
        "{headers} cannot be found. Unpack the packages that have them (`pip download --no-deps {packages}`, then \
         `python3 -m zipfile -e FILE FOLDER` for each) and name their folders `nvidia/.../include` with --include"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_headers_come_with_their_packages() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("nccl.h"), "").unwrap();
        let message = missing(&[folder.path().to_owned()]).unwrap_err().to_string();
        assert!(!message.contains("nvidia-nccl") && message.contains("nvidia-cuda-crt==13"), "{message}");
        for part in ["crt", "nv"] {
            std::fs::create_dir(folder.path().join(part)).unwrap();
        }
        for (header, _) in HEADERS {
            std::fs::write(folder.path().join(header), "").unwrap();
        }
        missing(&[folder.path().to_owned()]).unwrap();
    }
}
