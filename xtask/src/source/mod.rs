//! The workspace's Rust source as data: packages with their dependencies, and the files of every build target as its
//! `mod` declarations name them. The figures of [`crate::metrics`] and the rules of `house_rules` are read from it.

pub mod functions;
pub mod imports;
pub mod lines;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// A package of the workspace.
pub struct Package {
    /// Its name in `Cargo.toml`.
    pub name: String,
    /// Packages that its `Cargo.toml` names.
    pub dependencies: Vec<Dependency>,
    /// Its Rust files, each once.
    pub files: Vec<SourceFile>,
}

/// A package that another one names in its `Cargo.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Dependency {
    /// Its name.
    pub name: String,
    /// `dev` or `build`; none for a dependency of the library or program itself.
    pub kind: Option<String>,
    /// Its folder, if it lies in this workspace.
    pub path: Option<PathBuf>,
}

impl Dependency {
    /// Whether the library or program itself is built with it.
    pub fn is_normal(&self) -> bool {
        self.kind.is_none()
    }
}

/// What a Rust file belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A library.
    Library,
    /// A program or a build script.
    Program,
    /// Tests, benches, examples, and all of a package that only tests others.
    Test,
}

/// A Rust file.
pub struct SourceFile {
    /// Its path, relative to the workspace.
    pub path: PathBuf,
    /// What it belongs to.
    pub role: Role,
    /// The names of its module from the root of its target: `[]` for `lib.rs`, `["config", "run"]` for `config/run.rs`.
    pub module: Vec<String>,
    /// The root file of its target, relative to the workspace.
    pub target: PathBuf,
    /// Its text.
    pub text: String,
    /// Its syntax tree.
    pub syntax: syn::File,
}

/// What `cargo metadata` says, as far as it is used here.
#[derive(Deserialize)]
struct Metadata {
    workspace_root: PathBuf,
    packages: Vec<MetadataPackage>,
}

#[derive(Deserialize)]
struct MetadataPackage {
    name: String,
    dependencies: Vec<Dependency>,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    src_path: PathBuf,
}

/// The package whose library serves only the tests that lie next to it.
const TESTING_PACKAGE: &str = "elf-tests";

/// Reads all packages of the workspace that `cargo`, a call of cargo without arguments, finds in the folder `root`.
///
/// # Errors
/// If cargo fails, or a file cannot be read or parsed.
pub fn read(mut cargo: Command, root: &Path) -> Result<Vec<Package>> {
    let arguments = ["metadata", "--no-deps", "--offline", "--format-version", "1"];
    let output = cargo.args(arguments).current_dir(root).output().context("cargo cannot be started")?;
    if !output.status.success() {
        bail!("cargo metadata failed in {}: {}", root.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("cargo metadata wrote another form")?;
    let mut packages = Vec::new();
    for package in metadata.packages {
        let mut walk = Walk { root: &metadata.workspace_root, seen: BTreeSet::new(), files: Vec::new() };
        for target in package.targets {
            let role = match target.kind.first().map(String::as_str) {
                _ if package.name == TESTING_PACKAGE => Role::Test,
                Some("bin" | "custom-build") => Role::Program,
                Some("test" | "bench" | "example") => Role::Test,
                _ => Role::Library,
            };
            walk.target(&target.src_path, role)?;
        }
        packages.push(Package { name: package.name, dependencies: package.dependencies, files: walk.files });
    }
    packages.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(packages)
}

/// The files that were found so far.
struct Walk<'a> {
    root: &'a Path,
    seen: BTreeSet<PathBuf>,
    files: Vec<SourceFile>,
}

/// The place of a file in the tree of modules.
struct Place {
    role: Role,
    module: Vec<String>,
    target: PathBuf,
    /// The folder of the files of its child modules.
    children: PathBuf,
}

impl Walk<'_> {
    fn target(&mut self, file: &Path, role: Role) -> Result<()> {
        let target = file.strip_prefix(self.root).unwrap_or(file).to_owned();
        let children = file.parent().unwrap_or(self.root).to_owned();
        self.file(file, Place { role, module: Vec::new(), target, children })
    }

    fn file(&mut self, path: &Path, place: Place) -> Result<()> {
        if !self.seen.insert(path.to_owned()) {
            return Ok(());
        }
        let text = fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
        let syntax = syn::parse_file(&text).with_context(|| format!("{} cannot be parsed", path.display()))?;
        let (folder, items) = (path.parent().unwrap_or(self.root), &syntax.items);
        self.modules(folder, items, &place)?;
        let Place { role, module, target, .. } = place;
        let path = path.strip_prefix(self.root).unwrap_or(path).to_owned();
        self.files.push(SourceFile { path, role, module, target, text, syntax });
        Ok(())
    }

    /// Follows the `mod` declarations among `items`; `folder` is that of the file they are written in.
    fn modules(&mut self, folder: &Path, items: &[syn::Item], place: &Place) -> Result<()> {
        for item in items {
            let syn::Item::Mod(item) = item else { continue };
            let name = item.ident.to_string();
            let role = if is_for_tests(&item.attrs) { Role::Test } else { place.role };
            let module = [place.module.as_slice(), std::slice::from_ref(&name)].concat();
            let mut inner = Place { role, module, target: place.target.clone(), children: place.children.join(&name) };
            if let Some((_, items)) = &item.content {
                self.modules(folder, items, &inner)?;
                continue;
            }
            let path = match path_attribute(&item.attrs) {
                Some(path) => {
                    let path = folder.join(path);
                    path.canonicalize().with_context(|| format!("{} cannot be found", path.display()))?
                }
                None => [place.children.join(format!("{name}.rs")), inner.children.join("mod.rs")]
                    .into_iter()
                    .find(|path| path.exists())
                    .with_context(|| format!("the module {name} of {} has no file", folder.display()))?,
            };
            if path.ends_with("mod.rs") {
                inner.children = path.parent().unwrap_or(folder).to_owned();
            }
            self.file(&path, inner)?;
        }
        Ok(())
    }
}

/// Whether an item is built for tests alone.
pub fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg") && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
    })
}

/// The value of `#[path = "..."]`.
fn path_attribute(attributes: &[syn::Attribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| match &attribute.meta {
        syn::Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
            syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) => Some(text.value()),
            _ => None,
        },
        _ => None,
    })
}

/// A file of the given text, for tests of what is read from files.
#[cfg(test)]
pub fn parsed(path: &str, module: &[&str], text: &str) -> SourceFile {
    SourceFile {
        path: path.into(),
        role: Role::Library,
        module: module.iter().map(|&name| name.to_owned()).collect(),
        target: "lib.rs".into(),
        text: text.to_owned(),
        syntax: syn::parse_file(text).unwrap(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Workspace;

    #[test]
    fn every_file_of_this_program_is_found_once() {
        let workspace = Workspace::find().unwrap();
        let packages = read(workspace.cargo(), &workspace.root).unwrap();
        let own = packages.iter().find(|package| package.name == "xtask").unwrap();
        let paths: BTreeSet<&Path> = own.files.iter().map(|file| file.path.as_path()).collect();
        assert_eq!(paths.len(), own.files.len());
        assert!(paths.contains(Path::new("xtask/src/main.rs")) && paths.contains(Path::new("xtask/src/source/mod.rs")));
        assert!(own.dependencies.iter().any(|dependency| dependency.name == "elf-files" && dependency.path.is_some()));
    }
}
