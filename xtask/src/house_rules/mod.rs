//! The rules of the house, as tests that read the source: which package may depend on which, no printing and no environment in
//! libraries, no circle of imports, and lengths of files, functions and argument lists.
//!
//! `xtask/house-exceptions.txt` lists the exceptions, each with its reason. The list is to shrink: an exception that is no longer
//! needed fails the test, and its size may not grow.

mod effects;

use std::collections::BTreeMap;
use std::path::Path;

use crate::source::{Dependency, Package, Role, functions, imports, read};
use crate::workspace::Workspace;

/// Lines of a file.
const FILE_LINES: usize = 500;
/// Lines of a function.
const FUNCTION_LINES: usize = 60;
/// Arguments of a function, `self` not counted.
const ARGUMENTS: usize = 5;

/// The packages of the workspace, and the packages of the workspace that each may be built with.
const ARROWS: &[(&str, &[&str])] = &[
    ("elf-files", &[]),
    ("elf-kernels", &[]),
    ("elf-c10d", &[]),
    ("elf-core", &["elf-files", "elf-kernels"]),
    ("elf-data", &["elf-files"]),
    ("elf-eval", &["elf-files"]),
    ("elf-hub", &["elf-files"]),
    ("elf-encoder", &["elf-core", "elf-files", "elf-kernels"]),
    ("elf-model", &["elf-core", "elf-kernels"]),
    ("elf-flow", &["elf-core"]),
    ("elf-gpt2", &["elf-core", "elf-eval", "elf-files", "elf-kernels"]),
    ("elf-train", &["elf-c10d", "elf-core", "elf-files", "elf-flow", "elf-kernels"]),
    ("elf-lm", LIBRARIES),
    ("elf-cli", PROGRAM),
    ("elf-flows", &["elf-lm"]),
    ("elf-tests", LIBRARIES),
    ("xtask", &["elf-eval", "elf-files"]),
];

/// All libraries.
const LIBRARIES: &[&str] = match PROGRAM.split_last() {
    Some((_, libraries)) => libraries,
    None => &[],
};

/// What the program is built with: all libraries, and the checks against the reference numbers, which it makes on GPUs.
const PROGRAM: &[&str] = &[
    "elf-lm",
    "elf-train",
    "elf-gpt2",
    "elf-encoder",
    "elf-model",
    "elf-flow",
    "elf-data",
    "elf-eval",
    "elf-hub",
    "elf-core",
    "elf-kernels",
    "elf-c10d",
    "elf-files",
    "elf-tests",
];

/// Packages that do not link libtorch.
const WITHOUT_LIBTORCH: [&str; 5] = ["elf-data", "elf-eval", "elf-files", "elf-hub", "xtask"];
/// The bindings to libtorch.
const LIBTORCH: [&str; 2] = ["tch", "torch-sys"];
/// Packages for programs, and the packages that may use them.
const FOR_PROGRAMS: [&str; 3] = ["anyhow", "clap", "indicatif"];
const PROGRAMS: [&str; 3] = ["elf-cli", "elf-tests", "xtask"];
/// The program whose users may close or fill its standard output.
const PRINTS_BY_ITS_OWN: &str = "elf-cli";

/// The list of exceptions, relative to the workspace.
const EXCEPTIONS: &str = "xtask/house-exceptions.txt";

/// The packages that a package must not be built with, and is.
fn forbidden_dependencies(package: &Package) -> Vec<String> {
    let name = package.name.as_str();
    // Programs outside of the house, as a user would write them.
    if name.ends_with("-example") {
        return Vec::new();
    }
    let Some((_, allowed)) = ARROWS.iter().find(|(known, _)| *known == name) else {
        return vec!["(not in the list of packages)".to_owned()];
    };
    let is_fine = |dependency: &Dependency| {
        let other = dependency.name.as_str();
        if dependency.path.is_some() {
            allowed.contains(&other)
        } else if LIBTORCH.contains(&other) {
            !WITHOUT_LIBTORCH.contains(&name)
        } else {
            !FOR_PROGRAMS.contains(&other) || PROGRAMS.contains(&name)
        }
    };
    let normal = package.dependencies.iter().filter(|dependency| dependency.is_normal());
    normal.filter(|dependency| !is_fine(dependency)).map(|dependency| dependency.name.clone()).collect()
}

/// Everything that breaks a rule, as in the list of exceptions: the rule and the place, and its size.
fn violations(packages: &[Package]) -> BTreeMap<(String, String), usize> {
    let mut found = BTreeMap::new();
    for package in packages {
        for dependency in forbidden_dependencies(package) {
            found.insert(("dependency".to_owned(), format!("{} {dependency}", package.name)), 1);
        }
        for circle in imports::circles(&package.files) {
            let files: Vec<String> = circle.iter().map(|path| path.display().to_string()).collect();
            found.insert(("circle".to_owned(), files.join(" ")), circle.len());
        }
        for file in &package.files {
            let path = file.path.display().to_string();
            let mut add = |rule: &str, place: String, size: usize, limit: usize| {
                if size > limit {
                    let largest = found.entry((rule.to_owned(), place)).or_insert(0);
                    *largest = size.max(*largest);
                }
            };
            add("file-lines", path.clone(), file.text.lines().count(), FILE_LINES);
            for function in functions::functions(file) {
                add("function-lines", format!("{path} {}", function.name), function.lines, FUNCTION_LINES);
                add("arguments", format!("{path} {}", function.name), function.arguments, ARGUMENTS);
            }
            for (rule, count) in effects::count(file) {
                let applies = match file.role {
                    Role::Test => false,
                    // The standard library's macros panic where a stream cannot be written; the program prints by its own.
                    _ if package.name == PRINTS_BY_ITS_OWN => rule == "printing",
                    Role::Library => !PROGRAMS.contains(&package.name.as_str()),
                    Role::Program => false,
                };
                if applies {
                    add(rule, path.clone(), count, 0);
                }
            }
        }
    }
    found
}

/// The exceptions: a line `rule | place | size | reason` each.
fn exceptions(root: &Path) -> BTreeMap<(String, String), usize> {
    let text = std::fs::read_to_string(root.join(EXCEPTIONS)).unwrap();
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let read = |line: &str| {
        let cells: Vec<&str> = line.split(" | ").map(str::trim).collect();
        let [rule, place, size, reason] = cells[..] else { panic!("{line}: not `rule | place | size | reason`") };
        assert!(reason.len() > 10, "{line}: without a reason");
        ((rule.to_owned(), place.to_owned()), size.parse().unwrap_or_else(|_| panic!("{line}: {size} is no number")))
    };
    lines.map(read).collect()
}

#[test]
fn the_source_keeps_the_rules_of_the_house() {
    let workspace = Workspace::find().unwrap();
    let packages = read(workspace.cargo(), &workspace.root).unwrap();
    let (found, allowed) = (violations(&packages), exceptions(&workspace.root));
    let mut broken = Vec::new();
    for ((rule, place), size) in &found {
        match allowed.get(&(rule.clone(), place.clone())) {
            Some(allowed) if size <= allowed => {}
            Some(allowed) => broken.push(format!("{rule} | {place} | {size} | was {allowed} in {EXCEPTIONS}")),
            None => broken.push(format!("{rule} | {place} | {size} | breaks the rule")),
        }
    }
    for key in allowed.keys().filter(|key| !found.contains_key(*key)) {
        broken.push(format!("{} | {} | keeps the rule: remove it from {EXCEPTIONS}", key.0, key.1));
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
