//! libtorch, the library that all computing runs on: what makes a folder usable, where to look for
//! one, and the set-up that links the workspace to it.

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};

use crate::gpu::Gpus;
use crate::python::Python;
use crate::workspace::Workspace;
use crate::{compiler, machine};

pub mod fetch;
pub mod link;

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
    /// What is missing or wrong, in a form that completes "cannot be used: ...".
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
/// (`RECORD`) states. An archive of libtorch alone has no such list, and nothing is said of it.
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

/// Whether set-up may keep the libtorch that the workspace is linked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetUp {
    /// Keep it if it is still usable.
    Once,
    /// Look for one again.
    Again,
}

/// Links the workspace to a libtorch: the one linked already, the one that `LIBTORCH` names, that
/// of an installed Python torch, or the one in the user cache, which is filled if need be.
///
/// # Errors
/// If none is there and none can be fetched, each with its remedy.
pub fn setup(workspace: &Workspace, how: SetUp) -> Result<Libtorch> {
    let linked = link::read(&workspace.root);
    let places = Places {
        named: env::var_os("LIBTORCH").filter(|path| !path.is_empty()).map(PathBuf::from),
        linked: linked.as_ref().map(|link| link.libtorch.clone()),
        keep_linked: how == SetUp::Once,
    };
    let found = places.choose(|| python_torch(&Python::find().ok()?))?;
    if let (Some(libtorch), Some(link)) = (&found, &linked)
        && link.is_for(&libtorch.root)
    {
        return Ok(libtorch.clone());
    }
    // After the quick path, for whoever has built once has a compiler; before a long download.
    compiler::check()?;
    let libtorch = match found {
        Some(libtorch) => libtorch,
        None => fetch::cached()?,
    };
    if let Some(missing) = missing_libraries(&libtorch).first() {
        bail!("{} cannot be loaded: {missing}. {LOADER_REMEDY}", libtorch.root.display());
    }
    if let Some((problem, remedy)) = Gpus::here().and_then(|gpus| gpus.obstacle(&libtorch)) {
        println!("note: this machine's GPU will not be used, for {problem}. Remedy: {remedy}");
    }
    let file = link::write(&workspace.root, &libtorch.root)?;
    println!("wrote {}", workspace.short(&file).display());
    Ok(libtorch)
}

/// What to do where the system cannot load libtorch.
pub const LOADER_REMEDY: &str = "It needs a Linux with glibc 2.28 or later and all NVIDIA packages that its own version asks \
     for; `python3 -m pip install torch==2.11.0` followed by `cargo xtask setup --again` gets a \
     complete one";

/// Folders that may hold a libtorch.
struct Places {
    /// What the variable `LIBTORCH` says. Cargo sets it from the link, so that a value equal to
    /// the linked folder is nobody's wish.
    named: Option<PathBuf>,
    /// What the workspace is linked to.
    linked: Option<PathBuf>,
    /// Whether the linked one is taken without a look elsewhere.
    keep_linked: bool,
}

impl Places {
    /// The first usable one, each refusal reported; `None` if it has to be taken from the cache.
    ///
    /// # Errors
    /// If `LIBTORCH` was set by hand to something unusable: to take another one silently would not
    /// be what was asked for.
    fn choose(&self, python: impl FnOnce() -> Option<PathBuf>) -> Result<Option<Libtorch>> {
        if let Some(named) = &self.named
            && self.linked.as_ref() != Some(named)
        {
            let named = std::path::absolute(named).context("LIBTORCH is no path")?;
            return Libtorch::inspect(&named).map(Some).map_err(|problem| {
                anyhow!(
                    "the variable LIBTORCH names {}, which cannot be used: {problem}. Unset it, or \
                     let it name a libtorch {VERSION}",
                    named.display()
                )
            });
        }
        if self.keep_linked
            && let Some(linked) = &self.linked
        {
            match Libtorch::inspect(linked) {
                Ok(libtorch) => return Ok(Some(libtorch)),
                Err(problem) => refuse("the linked libtorch", linked, &problem),
            }
        }
        if let Some(python) = python() {
            match Libtorch::inspect(&python) {
                Ok(libtorch) => return Ok(Some(libtorch)),
                Err(problem) => refuse("Python's torch", &python, &problem),
            }
        }
        Ok(None)
    }
}

fn refuse(what: &str, root: &Path, problem: &anyhow::Error) {
    println!("{what} in {} cannot be used: {problem}", root.display());
}

/// The folder of the torch package that `python` would import; torch itself is not imported, for
/// that takes seconds.
fn python_torch(python: &Python) -> Option<PathBuf> {
    const FIND: &str = "import importlib.util as u; s = u.find_spec('torch'); \
                        print(list(s.submodule_search_locations)[0] if s else '')";
    let found = python.print(FIND).ok()?;
    (!found.is_empty()).then(|| PathBuf::from(found))
}

/// Shared libraries that the loader would look for in vain, in its own words. Empty as well where
/// the system has no `ldd` to ask.
pub fn missing_libraries(libtorch: &Libtorch) -> Vec<String> {
    let library = libtorch.libraries().join("libtorch_cpu.so");
    machine::unresolved_libraries(&library)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that looks like a site-packages with a torch of the given version.
    fn packages(version: &str) -> tempfile::TempDir {
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

    #[test]
    fn the_linked_one_is_kept_unless_a_new_search_is_asked_for() {
        let (linked, python) = (packages("2.11.0"), packages("2.11.0+cpu"));
        let linked = linked.path().join("torch");
        let python = python.path().join("torch");
        for named in [None, Some(linked.clone())] {
            let mut places = Places { named, linked: Some(linked.clone()), keep_linked: true };
            let kept = places.choose(|| panic!("no need to ask Python")).unwrap().unwrap();
            assert_eq!(kept.root, linked);
            places.keep_linked = false;
            let found = places.choose(|| Some(python.clone())).unwrap().unwrap();
            assert_eq!(found.root, python);
        }
    }

    #[test]
    fn a_named_one_comes_first_and_must_be_usable() {
        let (linked, named) = (packages("2.11.0"), packages("2.11.0+cpu"));
        let mut places = Places {
            named: Some(named.path().join("torch")),
            linked: Some(linked.path().join("torch")),
            keep_linked: true,
        };
        let found = places.choose(|| None).unwrap().unwrap();
        assert_eq!(found.root, named.path().join("torch"));
        places.named = Some(named.path().join("elsewhere"));
        let message = places.choose(|| None).unwrap_err().to_string();
        assert!(message.contains("LIBTORCH") && message.contains("elsewhere"), "{message}");
    }

    #[test]
    fn unusable_ones_are_passed_over() {
        let (linked, python) = (packages("2.10.0"), packages("2.12.0"));
        let places = Places { named: None, linked: Some(linked.path().join("torch")), keep_linked: true };
        assert_eq!(places.choose(|| Some(python.path().join("torch"))).unwrap(), None);
        assert_eq!(places.choose(|| None).unwrap(), None);
    }

    #[cfg(unix)]
    #[test]
    fn python_is_asked_for_the_folder_without_an_import() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("python3");
        let answer = |text: &str| {
            fs::write(&program, format!("#!/bin/sh\n{text}\n")).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
            python_torch(&Python::at(&program))
        };
        assert_eq!(answer("echo '/site packages/torch'"), Some("/site packages/torch".into()));
        assert_eq!(answer("echo"), None);
        assert_eq!(answer("echo /x; exit 1"), None);
    }
}
