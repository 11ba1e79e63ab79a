//! A package that settles on a machine with a GPU, in minutes, what no other machine can tell: the program, reference numbers,
//! and a script that runs the stages of `elf bench` one after the other. The same package is rehearsed on a CPU.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;

use crate::libtorch::{Libtorch, SetUp, setup};
use crate::steps;
use crate::workspace::Workspace;

const SCRIPT: &str = include_str!("run.sh");

/// Bytes of a package at the most.
const LARGEST: u64 = 60 << 20;

/// Time of a rehearsal at the most.
const REHEARSAL: Duration = Duration::from_secs(120);

/// The reference numbers that `elf bench --only parity` reads.
const REFERENCE: [&str; 12] = [
    "forward.safetensors",
    "model.safetensors",
    "model_no_sc_tokens.safetensors",
    "samplers.json",
    "samplers.safetensors",
    "t5_gated_gelu",
    "t5_relu",
    "train.json",
    "train_adamw_uncond.safetensors",
    "train_muon_accum.safetensors",
    "train_muon_cond.safetensors",
    "train_muon_uncond.safetensors",
];

#[derive(Debug, Args)]
pub struct Options {
    /// Where to pack. Default: `gpu-check` in the folder of what cargo builds.
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// Run the package here, in tiny sizes, a CPU taking the way for GPUs.
    #[arg(long)]
    rehearse: bool,
}

/// Builds the program, packs it, and rehearses the package if asked to.
///
/// # Errors
/// If the program does not build, the package is too large, or a stage of the rehearsal fails.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let libtorch = setup(workspace, SetUp::Once)?;
    let program = workspace.build(&libtorch, "elf")?;
    let folder = options.output.clone().unwrap_or_else(|| workspace.target().join("gpu-check"));
    let bytes = pack(workspace, &libtorch, &program, &folder)?;
    println!("{} ({:.1} MiB); on the other machine: sh run.sh", folder.display(), bytes as f64 / f64::from(1 << 20));
    if options.rehearse {
        let begun = Instant::now();
        rehearse(&folder, &libtorch)?;
        let time = begun.elapsed();
        println!("rehearsed in {}", steps::clock(time));
        ensure!(time <= REHEARSAL, "the rehearsal took {}", steps::clock(time));
    }
    Ok(())
}

/// Packs the program and what it needs; returns the bytes of the package.
fn pack(workspace: &Workspace, libtorch: &Libtorch, program: &Path, folder: &Path) -> Result<u64> {
    if folder.join("run.sh").is_file() {
        fs::remove_dir_all(folder)?;
    }
    let reference = folder.join("parity");
    fs::create_dir_all(&reference).with_context(|| format!("{} cannot be made", folder.display()))?;
    fs::write(folder.join("run.sh"), SCRIPT)?;
    for name in REFERENCE {
        copy(&workspace.root.join("tests/parity").join(name), &reference.join(name))?;
    }
    let elf = folder.join("elf");
    steps::run(Command::new("strip").arg("-o").arg(&elf).arg(program))?;
    let mut bytes = fs::read(&elf)?;
    blank(&mut bytes, &[&workspace.root, &libtorch.root, &cargo_home()]);
    fs::write(&elf, bytes)?;
    steps::run(Command::new("gzip").arg("-9").arg(&elf))?;
    let bytes = size(folder)?;
    ensure!(bytes <= LARGEST, "the package has {bytes} bytes, {LARGEST} at the most");
    Ok(bytes)
}

/// Where cargo keeps sources, which panics name.
fn cargo_home() -> PathBuf {
    let home = || dirs::home_dir().unwrap_or_default().join(".cargo");
    std::env::var_os("CARGO_HOME").map_or_else(home, PathBuf::from)
}

/// Replaces paths of this machine by as many slashes: the run path, and the places of sources.
fn blank(bytes: &mut [u8], paths: &[&Path]) {
    for path in paths.iter().filter_map(|path| path.to_str()).filter(|path| path.len() > 1) {
        let path = path.as_bytes();
        let mut at = 0;
        while let Some(found) = bytes[at..].windows(path.len()).position(|window| window == path) {
            at += found;
            bytes[at..at + path.len()].fill(b'/');
        }
    }
}

/// Copies a file or a folder.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if !from.is_dir() {
        return fs::copy(from, to).map(drop).with_context(|| format!("{} cannot be copied", from.display()));
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let name = entry?.file_name();
        copy(&from.join(&name), &to.join(&name))?;
    }
    Ok(())
}

fn size(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() { size(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}

/// Runs the package on this CPU.
fn rehearse(folder: &Path, libtorch: &Libtorch) -> Result<()> {
    let results = folder.join("results");
    let mut command = Command::new("sh");
    command.arg(folder.join("run.sh")).arg(&results);
    steps::run(command.env("ELF_GPU_CHECK", "rehearsal").env("ELF_TORCH", &libtorch.root))?;
    let text = fs::read_to_string(results.join("gpu-check.json")).context("the script left no results")?;
    let all: Value = serde_json::from_str(&text).context("the results are no JSON")?;
    let stages = all["stages"].as_object().context("the results have no stages")?;
    for (name, stage) in stages {
        if stage["state"] != "ok" || !stage["result"].is_object() {
            bail!("stage {name}: {}", stage["state"]);
        }
    }
    ensure!(stages.len() == 10, "{} stages ran", stages.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libtorch::link;

    #[test]
    fn paths_are_blanked_and_nothing_else() {
        let mut bytes = b"at /work/a/b.rs and /work/a and /work/b".to_vec();
        blank(&mut bytes, &[Path::new("/work/a"), Path::new("/")]);
        assert_eq!(bytes, b"at ////////b.rs and /////// and /work/b");
    }

    /// The whole package, where the program is built; elsewhere there is nothing to rehearse.
    #[test]
    fn the_package_is_rehearsed_and_names_no_path_of_this_machine() {
        let workspace = Workspace::find().unwrap();
        let program = workspace.target().join("release/elf");
        let linked = link::read(&workspace.root).and_then(|link| Libtorch::inspect(&link.libtorch).ok());
        let (Some(libtorch), true) = (linked, program.is_file()) else { return };
        let folder = tempfile::tempdir().unwrap();
        let package = folder.path().join("package");
        pack(&workspace, &libtorch, &program, &package).unwrap();
        let unpacked = Command::new("gzip").arg("-dc").arg(package.join("elf.gz")).output().unwrap().stdout;
        for path in [&workspace.root, &libtorch.root] {
            let path = path.to_str().unwrap();
            assert!(!unpacked.windows(path.len()).any(|window| window == path.as_bytes()), "{path}");
            assert!(!SCRIPT.contains(path));
        }
        rehearse(&package, &libtorch).unwrap();
    }
}
