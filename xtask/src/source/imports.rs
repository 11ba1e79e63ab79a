//! Imports between the files of one crate, and the circles that they form.
//!
//! A name counts as imported from the file that defines it: `crate::Error` leads through the `pub use` of `lib.rs` to
//! `error.rs`. A re-export, a `mod` declaration and code for tests alone import nothing. Paths inside macro calls are not seen.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use syn::visit::Visit;

use super::{Role, SourceFile, is_for_tests};

/// Groups of files that import one another, directly or through others; each with its files in order.
pub fn circles(files: &[SourceFile]) -> Vec<Vec<PathBuf>> {
    let targets: BTreeSet<&Path> = files.iter().map(|file| file.target.as_path()).collect();
    targets.into_iter().flat_map(|target| circles_of(&edges(files, target))).collect()
}

/// For each file of a target, those that it imports from.
fn edges<'a>(files: &'a [SourceFile], target: &Path) -> BTreeMap<&'a Path, BTreeSet<&'a Path>> {
    let files: Vec<_> = files.iter().filter(|file| file.target == target && file.role != Role::Test).collect();
    let mut modules = Modules::default();
    for file in &files {
        modules.collect(&file.path, file.module.clone(), &file.syntax.items);
    }
    let mut edges: BTreeMap<&Path, BTreeSet<&Path>> =
        files.iter().map(|file| (file.path.as_path(), BTreeSet::new())).collect();
    for (name, module) in &modules.0 {
        for path in &module.uses {
            if let Some(from) = modules.resolve(name, path, DEPTH)
                && let Some(from) = modules.0.get(from.module())
                && from.file != module.file
                && let Some(imports) = edges.get_mut(module.file)
            {
                imports.insert(from.file);
            }
        }
    }
    edges
}

/// Re-exports are followed this far.
const DEPTH: usize = 16;

/// The module path of a module: its names from the root of the target.
type ModulePath = Vec<String>;

/// All modules of a target.
#[derive(Default)]
struct Modules<'a>(BTreeMap<ModulePath, Module<'a>>);

/// What a module declares and uses.
struct Module<'a> {
    file: &'a Path,
    /// Items that it defines.
    items: BTreeSet<String>,
    /// Names that it imports or re-exports, with their paths.
    names: BTreeMap<String, Vec<String>>,
    /// Modules all of whose names it imports or re-exports.
    globs: Vec<Vec<String>>,
    /// Paths that it uses, re-exports not counted.
    uses: Vec<Vec<String>>,
}

/// What a path leads to.
enum Found {
    /// A module.
    Module(ModulePath),
    /// An item that this module defines.
    Item(ModulePath),
}

impl Found {
    fn module(&self) -> &ModulePath {
        match self {
            Self::Module(path) | Self::Item(path) => path,
        }
    }
}

impl<'a> Modules<'a> {
    /// Adds a module with those that are written within it.
    fn collect(&mut self, file: &'a Path, name: ModulePath, items: &'a [syn::Item]) {
        let mut module =
            Module { file, items: BTreeSet::new(), names: BTreeMap::new(), globs: Vec::new(), uses: Vec::new() };
        for item in items.iter().filter(|item| !is_for_tests(attributes(item))) {
            match item {
                syn::Item::Mod(inner) => {
                    if let Some((_, items)) = &inner.content {
                        self.collect(file, [name.as_slice(), &[inner.ident.to_string()]].concat(), items);
                    }
                }
                syn::Item::Use(item) => {
                    let exported = !matches!(item.vis, syn::Visibility::Inherited);
                    module.import(&item.tree, &mut Vec::new(), exported);
                }
                item => {
                    module.items.extend(defined(item));
                    module.visit_item(item);
                }
            }
        }
        self.0.insert(name, module);
    }

    /// What `path` in the module `at` leads to; none for what other crates define.
    fn resolve(&self, at: &ModulePath, path: &[String], depth: usize) -> Option<Found> {
        let (first, rest) = path.split_first()?;
        let depth = depth.checked_sub(1)?;
        match first.as_str() {
            "crate" => self.descend(Vec::new(), rest, depth),
            "self" => self.descend(at.clone(), rest, depth),
            "super" => {
                let parent = at.split_last().map(|(_, parent)| parent.to_vec())?;
                // `super::super` goes on from the parent.
                let up = rest.first().is_some_and(|next| next == "super");
                if up { self.resolve(&parent, rest, depth) } else { self.descend(parent, rest, depth) }
            }
            _ => self.descend(at.clone(), path, depth).filter(|_| self.knows(at, first)),
        }
    }

    fn knows(&self, at: &ModulePath, name: &String) -> bool {
        self.0.contains_key(&[at.as_slice(), std::slice::from_ref(name)].concat())
            || self.0.get(at).is_some_and(|module| module.names.contains_key(name) || module.items.contains(name))
    }

    /// What `path` leads to from the module `at`, whose names it may use.
    fn descend(&self, at: ModulePath, path: &[String], depth: usize) -> Option<Found> {
        let Some((name, rest)) = path.split_first() else { return Some(Found::Module(at)) };
        let child = [at.as_slice(), std::slice::from_ref(name)].concat();
        if self.0.contains_key(&child) {
            return self.descend(child, rest, depth);
        }
        let module = self.0.get(&at)?;
        if module.items.contains(name) {
            return Some(Found::Item(at));
        }
        if let Some(path) = module.names.get(name) {
            return match self.resolve(&at, path, depth)? {
                Found::Module(module) => self.descend(module, rest, depth),
                item => Some(item),
            };
        }
        module.globs.iter().find_map(|glob| match self.resolve(&at, glob, depth)? {
            Found::Module(module) => self.descend(module, path, depth.checked_sub(1)?),
            Found::Item(_) => None,
        })
    }
}

impl Module<'_> {
    /// Adds the names of a `use`; `path` is what stands before `tree`.
    fn import(&mut self, tree: &syn::UseTree, path: &mut Vec<String>, exported: bool) {
        let depth = path.len();
        match tree {
            syn::UseTree::Path(tree) => {
                path.push(tree.ident.to_string());
                self.import(&tree.tree, path, exported);
            }
            syn::UseTree::Name(tree) => self.name(path, &tree.ident.to_string(), None, exported),
            syn::UseTree::Rename(tree) => {
                self.name(path, &tree.ident.to_string(), Some(tree.rename.to_string()), exported);
            }
            syn::UseTree::Group(tree) => {
                for tree in &tree.items {
                    self.import(tree, path, exported);
                }
            }
            syn::UseTree::Glob(_) => {
                self.globs.push(path.clone());
                if !exported {
                    self.uses.push(path.clone());
                }
            }
        }
        path.truncate(depth);
    }

    fn name(&mut self, path: &[String], name: &str, renamed: Option<String>, exported: bool) {
        let mut whole = path.to_vec();
        if name != "self" {
            whole.push(name.to_owned());
        }
        if !exported {
            self.uses.push(whole.clone());
        }
        if let Some(name) = renamed.or_else(|| whole.last().cloned()) {
            self.names.insert(name, whole);
        }
    }
}

/// Paths in items, which may begin with a child module's name.
impl<'a> Visit<'a> for Module<'_> {
    fn visit_path(&mut self, path: &'a syn::Path) {
        if path.segments.len() > 1 {
            self.uses.push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        }
        syn::visit::visit_path(self, path);
    }

    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        // Written in a function, so that its names serve there alone.
        let mut inner = Module {
            file: self.file,
            items: BTreeSet::new(),
            names: BTreeMap::new(),
            globs: Vec::new(),
            uses: Vec::new(),
        };
        inner.import(&item.tree, &mut Vec::new(), false);
        self.uses.append(&mut inner.uses);
    }
}

/// The name that an item defines.
fn defined(item: &syn::Item) -> Option<String> {
    let name = match item {
        syn::Item::Const(item) => &item.ident,
        syn::Item::Enum(item) => &item.ident,
        syn::Item::Fn(item) => &item.sig.ident,
        syn::Item::Macro(item) => item.ident.as_ref()?,
        syn::Item::Static(item) => &item.ident,
        syn::Item::Struct(item) => &item.ident,
        syn::Item::Trait(item) => &item.ident,
        syn::Item::TraitAlias(item) => &item.ident,
        syn::Item::Type(item) => &item.ident,
        syn::Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(name.to_string())
}

fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Files that reach one another along the edges.
fn circles_of(edges: &BTreeMap<&Path, BTreeSet<&Path>>) -> Vec<Vec<PathBuf>> {
    let reached = |start: &Path| -> BTreeSet<&Path> {
        let mut seen = BTreeSet::new();
        let mut open: Vec<&Path> = edges.get(start).into_iter().flatten().copied().collect();
        while let Some(at) = open.pop() {
            if seen.insert(at) {
                open.extend(edges.get(at).into_iter().flatten());
            }
        }
        seen
    };
    let reached: BTreeMap<&Path, BTreeSet<&Path>> = edges.keys().map(|&file| (file, reached(file))).collect();
    let mut circles = BTreeSet::new();
    for (&file, from) in &reached {
        let circle: Vec<PathBuf> =
            from.iter().filter(|other| reached[*other].contains(file)).map(|&other| other.to_owned()).collect();
        if circle.len() > 1 {
            circles.insert(circle);
        }
    }
    circles.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::parsed;

    fn found(files: &[(&str, &[&str], &str)]) -> Vec<Vec<PathBuf>> {
        let files: Vec<_> = files.iter().map(|(path, module, text)| parsed(path, module, text)).collect();
        circles(&files)
    }

    #[test]
    fn two_files_that_import_each_other_are_a_circle() {
        let lib = ("lib.rs", &[] as &[&str], "pub mod a;\nmod b;\nmod c;\npub use a::A;\n");
        let a = ("a.rs", &["a"] as &[&str], "use crate::b::{self, B};\npub struct A;\n");
        let b = ("b.rs", &["b"] as &[&str], "use crate::c::C as D;\npub struct B;\n");
        let pair = |text| found(&[lib, a, b, ("c.rs", &["c"], text)]);
        // Through a re-export, a path in a function, a parent module and a glob.
        for text in [
            "use crate::A;\npub struct C;",
            "pub struct C;\nfn f() -> u8 {\n    super::a::A::new()\n}",
            "pub struct C;\nfn f() {\n    use super::A;\n}",
            "use crate::a::*;\npub struct C;",
        ] {
            assert_eq!(pair(text), [["a.rs", "b.rs", "c.rs"].map(PathBuf::from)], "{text}");
        }
        for text in [
            "use other::A;\npub struct C;",
            "pub use crate::A;\npub struct C;",
            "pub struct C;\n#[cfg(test)]\nmod tests {\n    use crate::A;\n}",
        ] {
            assert!(pair(text).is_empty(), "{text}");
        }
    }

    #[test]
    fn a_file_and_its_child_can_be_a_circle() {
        let parent = |text| ("p/mod.rs", &["p"] as &[&str], text);
        let child = |text| ("p/q.rs", &["p", "q"] as &[&str], text);
        let uses = "mod q;\npub struct P;\nfn f() {\n    q::g();\n}";
        assert_eq!(found(&[parent(uses), child("use super::P;\npub fn g() {}")]).len(), 1);
        assert!(found(&[parent(uses), child("pub fn g() {}")]).is_empty());
        assert!(
            found(&[parent("mod q;\npub use q::g;\npub struct P;"), child("use super::P;\npub fn g() {}")]).is_empty()
        );
    }
}
