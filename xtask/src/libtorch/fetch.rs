//! A libtorch in the user cache, fetched with the `pip` client: the package index is whichever one
//! the user has configured, and pip checks each file against the hash given here.

use std::env;
use std::fs::{self, File, TryLockError};
use std::io::IsTerminal as _;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};

use super::folder::{Libtorch, VERSION};
use crate::python::Python;
use crate::{machine, steps};

/// One file of the package index.
#[derive(Debug)]
pub struct Wheel {
    /// Name and version, as pip wants them.
    pub requirement: &'static str,
    /// The platform that makes pip take this file, independent of the Python that runs it.
    pub platform: &'static str,
    /// The file's name.
    pub file: &'static str,
    /// The file's hash, which pip checks.
    pub sha256: &'static str,
    /// Its size, to be told of before the download.
    pub megabytes: u32,
}

/// The runtime of CUDA, in the version that `torch` names.
pub const CUDA_RUNTIME: Wheel = Wheel {
    requirement: "nvidia-cuda-runtime==13.0.96",
    platform: "manylinux2014_x86_64",
    file: "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
    sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
    megabytes: 2,
};

/// The packages that the CPU part of `torch` needs, in the versions that it names through its requirement
/// `cuda-toolkit==13.0.2`; small, and so the first, so that a network failure shows soon.
const CUDA_WHEELS: [Wheel; 2] = [
    CUDA_RUNTIME,
    Wheel {
        requirement: "nvidia-cuda-cupti==13.0.85",
        platform: "manylinux_2_25_x86_64",
        file: "nvidia_cuda_cupti-13.0.85-py3-none-manylinux_2_25_x86_64.whl",
        sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
        megabytes: 11,
    },
];

/// `torch` for one minor version of Python 3. The libraries are the same; its Python part is for that version.
const fn torch(minor: u32) -> Wheel {
    let (file, sha256) = match minor {
        10 => (
            "torch-2.11.0-cp310-cp310-manylinux_2_28_x86_64.whl",
            "1b32ceda909818a03b112006709b02be1877240c31750a8d9c6b7bf5f2d8a6e5",
        ),
        11 => (
            "torch-2.11.0-cp311-cp311-manylinux_2_28_x86_64.whl",
            "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
        ),
        13 => (
            "torch-2.11.0-cp313-cp313-manylinux_2_28_x86_64.whl",
            "cc89b9b173d9adfab59fd227f0ab5e5516d9a52b658ae41d64e59d2e55a418db",
        ),
        14 => (
            "torch-2.11.0-cp314-cp314-manylinux_2_28_x86_64.whl",
            "4dc8b3809469b6c30b411bb8c4cad3828efd26236153d9beb6a3ec500f211a60",
        ),
        _ => (
            "torch-2.11.0-cp312-cp312-manylinux_2_28_x86_64.whl",
            "0f68f4ac6d95d12e896c3b7a912b5871619542ec54d3649cf48cc1edd4dd2756",
        ),
    };
    Wheel { requirement: "torch==2.11.0", platform: "manylinux_2_28_x86_64", file, sha256, megabytes: 531 }
}

/// The minor versions of Python 3 that there is a `torch` for.
pub const PYTHONS: RangeInclusive<u32> = 10..=14;

/// All files for one minor version of Python 3, or for any if there is none for it.
fn wheels(minor: u32) -> [Wheel; 3] {
    let [runtime, cupti] = CUDA_WHEELS;
    [runtime, cupti, torch(minor)]
}

/// The beginning of the names of folders for unpacking.
const UNPACKING: &str = "libtorch-unpack-";

/// Space for the downloads and what they unpack to, in bytes.
pub const SPACE: u64 = 2_200_000_000;

/// The libtorch in the user cache, fetched first if it is not there.
///
/// # Errors
/// If it cannot be fetched, with the reason and the remedy.
pub fn cached() -> Result<Libtorch> {
    fetched(&format!("libtorch-{VERSION}"))
}

/// A libtorch in the user cache with the Python part of `torch` for a minor version of Python 3, fetched first if it is
/// not there.
///
/// # Errors
/// As [`cached`].
pub fn for_python(minor: u32) -> Result<Libtorch> {
    fetched(&format!("torch-{VERSION}-python3.{minor}"))
}

/// The libtorch in a folder of the user cache, fetched for the Python that fetches it if it is not there.
fn fetched(name: &str) -> Result<Libtorch> {
    let cache = folder()?;
    let home = cache.join(name);
    let downloads = cache.join(format!("{name}.download"));
    fs::create_dir_all(&cache).with_context(|| cannot_write(&cache))?;
    let _lock = lock(&cache.join(format!("{name}.lock")))?;
    if home.exists() {
        match Libtorch::inspect(&home.join("torch")) {
            Ok(libtorch) => return Ok(libtorch),
            Err(problem) => println!("{} is damaged: {problem}", home.display()),
        }
    }
    if !cfg!(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu")) {
        bail!(
            "libtorch can be fetched for Linux with glibc on x86_64 alone; install PyTorch {VERSION} \
             for python3, or set LIBTORCH to a folder with libtorch {VERSION}, and run `cargo xtask \
             setup` again"
        );
    }
    let python = Python::find()?;
    python.pip_version()?;
    if let Some(free) = machine::free_space(&cache)
        && free < SPACE
    {
        bail!(
            "{} has {:.1} GB free, and fetching libtorch takes {:.1} GB: make room, or let \
             ELF_CACHE_DIR name a folder on a larger disk",
            cache.display(),
            free as f64 / 1e9,
            SPACE as f64 / 1e9
        );
    }
    println!("fetching libtorch {VERSION} with pip into {}, once for this user", cache.display());
    clear(&cache, &home).with_context(|| cannot_write(&cache))?;
    let wheels = wheels(python.minor()?);
    for wheel in &wheels {
        download(&python, wheel, &downloads)?;
    }
    println!("unpacking");
    let libtorch = unpack(&python, &wheels, &downloads, &home)?;
    fs::remove_dir_all(&downloads).with_context(|| cannot_write(&downloads))?;
    Ok(libtorch)
}

/// The content of some packages, side by side in a folder of the user cache, fetched first if it is not there.
///
/// # Errors
/// If it cannot be fetched, with the reason.
pub fn fetched_wheels(name: &str, wheels: &[Wheel]) -> Result<PathBuf> {
    let cache = folder()?;
    let home = cache.join(name);
    let downloads = cache.join(format!("{name}.download"));
    fs::create_dir_all(&cache).with_context(|| cannot_write(&cache))?;
    let _lock = lock(&cache.join(format!("{name}.lock")))?;
    if home.exists() {
        return Ok(home);
    }
    let python = Python::find()?;
    python.pip_version()?;
    for wheel in wheels {
        download(&python, wheel, &downloads)?;
    }
    let aside = tempfile::Builder::new().prefix(UNPACKING).tempdir_in(&cache).with_context(|| cannot_write(&cache))?;
    let all = aside.path().join("all");
    unzip(&python, wheels, &downloads, &all)?;
    fs::rename(&all, &home).with_context(|| cannot_write(&home))?;
    fs::remove_dir_all(&downloads).with_context(|| cannot_write(&downloads))?;
    Ok(home)
}

/// The folder of downloads: `ELF_CACHE_DIR`, or `elf` in the user's cache folder.
///
/// # Errors
/// If the user has none.
pub fn folder() -> Result<PathBuf> {
    let chosen = env::var_os("ELF_CACHE_DIR").filter(|path| !path.is_empty()).map(PathBuf::from);
    let folder = chosen
        .or_else(|| Some(dirs::cache_dir()?.join("elf")))
        .ok_or_else(|| anyhow!("no folder for caches is known: set ELF_CACHE_DIR to one"))?;
    std::path::absolute(folder).context("ELF_CACHE_DIR is no path")
}

fn cannot_write(path: &Path) -> String {
    format!("{} cannot be written; let ELF_CACHE_DIR name a folder that can", path.display())
}

/// Makes set-ups that run at once, say in two clones, take turns: the second one finds the work done.
fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| cannot_write(path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            println!("another set-up is fetching libtorch; waiting for it");
            file.lock().with_context(|| format!("{} cannot be locked", path.display()))?;
        }
        // Some network file systems have no locks; then there is no waiting.
        Err(TryLockError::Error(_)) => {}
    }
    Ok(file)
}

/// Removes a damaged libtorch and the half-unpacked folder of a killed set-up. Downloads stay.
fn clear(cache: &Path, home: &Path) -> std::io::Result<()> {
    if home.exists() {
        fs::remove_dir_all(home)?;
    }
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNPACKING) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Fetches one file, or finds it complete in the folder from an earlier, interrupted set-up.
fn download(python: &Python, wheel: &Wheel, downloads: &Path) -> Result<()> {
    let scratch = downloads.join("scratch");
    let requirements = downloads.join("requirements.txt");
    fs::create_dir_all(&scratch)
        .and_then(|()| {
            let line = format!("{} --hash=sha256:{}\n", wheel.requirement, wheel.sha256);
            fs::write(&requirements, line)
        })
        .with_context(|| cannot_write(downloads))?;
    println!("{} ({} MB)", wheel.requirement, wheel.megabytes);
    let mut pip = python.command();
    pip.args(["-m", "pip", "download", "--only-binary=:all:", "--implementation", "cp"]);
    if let Some(tag) = wheel.file.split('-').nth(2).filter(|tag| tag.starts_with("cp")) {
        let version = tag.replacen("cp3", "3.", 1);
        pip.args(["--python-version", version.as_str(), "--abi", tag]);
    }
    pip.arg("--platform")
        .arg(wheel.platform)
        // pip's own cache would hold the file a second time, in older versions in memory as well.
        .args("--no-deps --require-hashes --no-cache-dir --no-input".split(' '))
        .args(["--disable-pip-version-check", "--dest"])
        .arg(downloads)
        .arg("--requirement")
        .arg(&requirements)
        // Temporary folders are often small; and nothing is installed, so that no environment is required.
        .env("TMPDIR", &scratch)
        .env("PIP_REQUIRE_VIRTUALENV", "false");
    if !std::io::stdout().is_terminal() {
        // Only the bar of a terminal is worth reading.
        pip.arg("--quiet");
    }
    steps::run(&mut pip).with_context(|| {
        format!(
            "{} cannot be fetched. If the network is at fault, run `cargo xtask setup` again: finished \
             downloads are kept. Without a network, set LIBTORCH to a folder with libtorch {VERSION}",
            wheel.requirement
        )
    })
}

/// Unpacks the files side by side, as pip would install them, for libtorch finds its neighbours by
/// relative paths; keeps what a build and a program need, and renames the whole into place.
fn unpack(python: &Python, wheels: &[Wheel], downloads: &Path, home: &Path) -> Result<Libtorch> {
    let cache = elf_files::folder_of(home);
    let aside = tempfile::Builder::new().prefix(UNPACKING).tempdir_in(cache).with_context(|| cannot_write(cache))?;
    let all = aside.path().join("all");
    let kept = aside.path().join("kept");
    unzip(python, wheels, downloads, &all)?;
    keep_needed(&all, &kept).with_context(|| cannot_write(&kept))?;
    Libtorch::inspect(&kept.join("torch")).map_err(|problem| anyhow!("what pip fetched cannot be used: {problem}"))?;
    fs::rename(&kept, home).with_context(|| cannot_write(home))?;
    Libtorch::inspect(&home.join("torch"))
}

/// Unpacks the files side by side.
fn unzip(python: &Python, wheels: &[Wheel], downloads: &Path, to: &Path) -> Result<()> {
    for wheel in wheels {
        let mut unzip = python.command();
        unzip.args(["-m", "zipfile", "-e"]).arg(downloads.join(wheel.file)).arg(to);
        steps::run(&mut unzip).with_context(|| {
            format!("{} cannot be unpacked. If it is damaged, delete {} and try again", wheel.file, downloads.display())
        })?;
    }
    Ok(())
}

/// Moves what is needed out of an unpacked set of Python packages: `torch` with its libraries, headers and Python part, the
/// lists of files, and the libraries of the other packages. Test programs stay behind.
fn keep_needed(all: &Path, kept: &Path) -> std::io::Result<()> {
    let tests = all.join("torch/test");
    if tests.exists() {
        fs::remove_dir_all(tests)?;
    }
    fs::create_dir_all(kept)?;
    for entry in fs::read_dir(all)? {
        let name = entry?.file_name();
        if name != "nvidia" {
            fs::rename(all.join(&name), kept.join(&name))?;
        }
    }
    for family in fs::read_dir(all.join("nvidia"))? {
        let family = family?.file_name();
        let from = all.join("nvidia").join(&family).join("lib");
        let to = kept.join("nvidia").join(&family).join("lib");
        if !from.is_dir() {
            continue;
        }
        fs::create_dir_all(&to)?;
        for library in fs::read_dir(from)? {
            let library = library?;
            if library.file_name().to_string_lossy().contains(".so") {
                fs::rename(library.path(), to.join(library.file_name()))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn only_what_is_needed_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (all, kept) = (folder.path().join("all"), folder.path().join("kept"));
        let needed = [
            "torch/lib/libtorch_cpu.so",
            "torch/include/ATen/ATen.h",
            "torch/version.py",
            "torch-2.11.0.dist-info/RECORD",
            "torch-2.11.0.dist-info/licenses/LICENSE",
            "torch/__init__.py",
            "torch/bin/torch_shm_manager",
            "nvidia/cu13/lib/libcudart.so.13",
        ];
        let unneeded = ["torch/test/one.py", "nvidia/cu13/lib/libx.a", "nvidia/cu13/include/x.h"];
        for file in needed.iter().chain(&unneeded) {
            fs::create_dir_all(all.join(file).parent().unwrap()).unwrap();
            fs::write(all.join(file), file).unwrap();
        }
        keep_needed(&all, &kept).unwrap();
        for file in needed {
            assert_eq!(fs::read_to_string(kept.join(file)).unwrap(), file);
        }
        for file in unneeded {
            assert!(!kept.join(file).exists(), "{file}");
        }
    }

    #[test]
    fn remains_are_cleared_and_downloads_kept() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let names = ["home", "libtorch-unpack-x", "home.download", "other"];
        for name in names {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("file"), "content").unwrap();
        }
        clear(folder.path(), &at("home")).unwrap();
        clear(folder.path(), &at("home")).unwrap();
        assert_eq!(names.map(|name| at(name).exists()), [false, false, true, true]);
    }

    #[test]
    fn the_list_is_of_the_version_that_is_built_against() {
        let mut files = BTreeSet::new();
        for minor in PYTHONS {
            for wheel in wheels(minor) {
                let (name, version) = wheel.requirement.split_once("==").unwrap();
                let start = format!("{}-{version}-", name.replace('-', "_"));
                assert!(wheel.file.starts_with(&start), "{}", wheel.file);
                assert!(wheel.file.contains(wheel.platform), "{}", wheel.file);
                assert_eq!(wheel.sha256.len(), 64);
                files.insert((wheel.file, wheel.sha256));
            }
            assert!(torch(minor).file.contains(&format!("-cp3{minor}-")));
            assert_eq!(torch(minor).requirement, format!("torch=={VERSION}"));
        }
        assert_eq!(files.len(), CUDA_WHEELS.len() + PYTHONS.count());
    }

    #[test]
    fn a_lock_is_handed_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = lock(&path).unwrap();
        let waiting = std::thread::spawn({
            let path = path.clone();
            move || lock(&path).map(|_| ())
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!waiting.is_finished());
        drop(first);
        waiting.join().unwrap().unwrap();
    }
}
