//! Set-up: the choice of a libtorch, and the link between the workspace and it.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};

use super::folder::{Libtorch, VERSION, missing_libraries};
use super::{fetch, link};
use crate::compiler;
use crate::gpu::Gpus;
use crate::python::Python;
use crate::workspace::Workspace;

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
/// If there is none and none can be fetched, each with its remedy.
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
    // After the quick path, since a workspace that was built before has a compiler; before a long download.
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

/// The remedy if the system cannot load libtorch.
pub const LOADER_REMEDY: &str = "It needs a Linux with glibc 2.28 or later and all NVIDIA packages that its own version asks \
     for; `python3 -m pip install torch==2.11.0` followed by `cargo xtask setup --again` gets a \
     complete one";

/// Folders that may hold a libtorch.
struct Places {
    /// The value of the variable `LIBTORCH`. Cargo sets it from the link, so that the linked folder as its value is no
    /// user's choice.
    named: Option<PathBuf>,
    /// The folder that the workspace is linked to.
    linked: Option<PathBuf>,
    /// Whether the linked one is taken without a search.
    keep_linked: bool,
}

impl Places {
    /// The first usable one, each refusal reported; `None` if it has to be taken from the cache.
    ///
    /// # Errors
    /// If `LIBTORCH` was set by hand to something unusable: another one would not be the user's choice.
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

fn refuse(what: &str, root: &std::path::Path, problem: &anyhow::Error) {
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::libtorch::folder::pretended::packages;

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
