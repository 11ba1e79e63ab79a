//! A folder with a libtorch: its version, and the files that make it usable.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::machine;

/// The version that the crate `tch`, as pinned in the workspace, is made for.
pub const VERSION: &str = "2.11.0";

/// A folder with a libtorch that the workspace can be built against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Libtorch {
    /// The folder that holds `lib` and `include`.
    pub root: PathBuf,
    /// The whole version, e.g. `2.11.0+cu130`.
    pub version: String,
    /// The CUDA version that it was built for, e.g. `13.0`; none in a build for CPUs.
    pub cuda: Option<String>,
}

impl fmt::Display for Libtorch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.version, self.root.display())
    }
}

impl Libtorch {
    /// Looks at a folder: the version, the headers and libraries that a build needs, and whether
    /// the libraries have the sizes that the package's own list states.
    ///
    /// # Errors
    /// The reason why it cannot be used, in a form that completes "cannot be used: ...".
    pub fn inspect(root: &Path) -> Result<Self> {
        let (version, cuda) = version(root)?;
        let release = version.split('+').next().unwrap_or_default();
        if release != VERSION {
            bail!("it is version {version}, and {VERSION} is needed");
        }
        for needed in NEEDED {
            if !root.join(needed).is_file() {
                bail!("it has no {needed}");
            }
        }
        if let Some(damage) = damaged_library(root) {
            bail!("{damage}");
        }
        Ok(Self { root: root.to_owned(), version, cuda })
    }

    /// The folder of the shared libraries.
    pub fn libraries(&self) -> PathBuf {
        self.root.join("lib")
    }
}

/// Files without which nothing compiles or links.
const NEEDED: [&str; 5] = [
    "lib/libtorch_cpu.so",
    "lib/libtorch.so",
    "lib/libc10.so",
    "include/ATen/ATen.h",
    "include/torch/csrc/api/include/torch/torch.h",
];

/// The version and the CUDA version: from `version.py` in a Python package, from `build-version`
/// in an archive of libtorch alone.
fn version(root: &Path) -> Result<(String, Option<String>)> {
    if let Ok(text) = fs::read_to_string(root.join("version.py")) {
        let version = python_string(&text, "__version__").context("its version.py has no version")?;
        return Ok((version, python_string(&text, "cuda")));
    }
    if let Ok(text) = fs::read_to_string(root.join("build-version")) {
        let version = text.trim().to_owned();
        let cuda = version.split_once("+cu").and_then(|(_, digits)| {
            let (major, minor) = digits.split_at_checked(digits.len().checked_sub(1)?)?;
            Some(format!("{major}.{minor}"))
        });
        return Ok((version, cuda));
    }
    if !root.is_dir() {
        bail!("there is no such folder");
    }
    bail!("it has neither version.py nor build-version");
}

/// The value of `name = 'value'` or `name: type = 'value'` in Python source.
fn python_string(source: &str, name: &str) -> Option<String> {
    source.lines().find_map(|line| {
        let rest = line.strip_prefix(name)?;
        if !rest.starts_with([' ', ':', '=']) {
            return None;
        }
        let value = rest.split_once('=')?.1.trim();
        let quote = value.chars().next().filter(|c| "'\"".contains(*c))?;
        value.strip_prefix(quote)?.strip_suffix(quote).map(str::to_owned)
    })
}

/// The first shared library whose size is not the one that the Python package's list of files
/// (`RECORD`) states. An archive of libtorch alone has no such list, and its files are not compared.
fn damaged_library(root: &Path) -> Option<String> {
    let packages = root.parent()?;
    let lists = fs::read_dir(packages).ok()?.flatten().filter(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.ends_with(".dist-info")
            && ["torch-", "nvidia_cuda_runtime-", "nvidia_cuda_cupti-"].iter().any(|package| name.starts_with(package))
    });
    for list in lists {
        let Ok(record) = fs::read_to_string(list.path().join("RECORD")) else {
            continue;
        };
        for (path, stated) in record.lines().filter_map(recorded_library) {
            let found = fs::metadata(packages.join(path)).map(|file| file.len());
            match found {
                Ok(found) if found == stated => {}
                Ok(found) => {
                    return Some(format!("{path} has {found} bytes, and {stated} are right"));
                }
                Err(_) => return Some(format!("{path} is missing")),
            }
        }
    }
    None
}

/// The path and size of a shared library from a line `path,hash,size`.
fn recorded_library(line: &str) -> Option<(&str, u64)> {
    let mut fields = line.rsplitn(3, ',');
    let size = fields.next()?.parse().ok()?;
    let path = fields.nth(1)?;
    let library = path.contains("/lib/") && (path.ends_with(".so") || path.contains(".so."));
    library.then_some((path, size))
}

/// Shared libraries that the loader would not find, in its own words. Empty as well if the system has no `ldd`.
pub fn missing_libraries(libtorch: &Libtorch) -> Vec<String> {
    let library = libtorch.libraries().join("libtorch_cpu.so");
    machine::unresolved_libraries(&library)
}

/// Folders for tests.
#[cfg(test)]
pub mod pretended {
    use super::*;

    /// A folder that looks like a site-packages with a torch of the given version.
    pub fn packages(version: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("torch");
        for file in NEEDED {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "content").unwrap();
        }
        let text = format!("__version__ = '{version}'\ncuda: Optional[str] = '13.0'\nhip = None\n");
        fs::write(root.join("version.py"), text).unwrap();
        let info = folder.path().join(format!("torch-{version}.dist-info"));
        fs::create_dir(&info).unwrap();
        fs::write(
            info.join("RECORD"),
            "torch/lib/libtorch_cpu.so,sha256=x,7\ntorch/nn.py,sha256=y,99\n\"a,b.py\",sha256=z,1\n\
             torch.dist-info/RECORD,,\n",
        )
        .unwrap();
        folder
    }
}

#[cfg(test)]
mod tests {
    use super::pretended::packages;
    use super::*;

    #[test]
    fn a_right_folder_is_recognised() {
        let folder = packages("2.11.0+cu130");
        let found = Libtorch::inspect(&folder.path().join("torch")).unwrap();
        assert_eq!(found.version, "2.11.0+cu130");
        assert_eq!(found.cuda.as_deref(), Some("13.0"));
    }

    #[test]
    fn an_archive_without_python_is_recognised() {
        let folder = packages("2.11.0");
        let root = folder.path().join("torch");
        fs::remove_file(root.join("version.py")).unwrap();
        for (text, cuda) in [("2.11.0+cpu\n", None), ("2.11.0+cu126\n", Some("12.6"))] {
            fs::write(root.join("build-version"), text).unwrap();
            assert_eq!(Libtorch::inspect(&root).unwrap().cuda.as_deref(), cuda);
        }
    }

    #[test]
    fn each_defect_is_named() {
        let problem =
            |folder: &tempfile::TempDir| Libtorch::inspect(&folder.path().join("torch")).unwrap_err().to_string();
        for near in ["2.1.0", "2.11.0a0+git", "2.11.01", "12.11.0"] {
            assert!(problem(&packages(near)).contains(near));
        }
        let folder = packages("2.11.0");
        fs::write(folder.path().join("torch/lib/libtorch_cpu.so"), "cut").unwrap();
        assert!(problem(&folder).contains("libtorch_cpu.so has 3 bytes, and 7 are right"));
        fs::remove_file(folder.path().join("torch/include/ATen/ATen.h")).unwrap();
        assert!(problem(&folder).contains("ATen.h"));
        fs::remove_dir_all(folder.path().join("torch")).unwrap();
        assert!(problem(&folder).contains("no such folder"));
    }
}
