//! Figures of the source: lines, public items and dependencies of each package, and what is longest.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use crate::source::lines::{self, Lines};
use crate::source::{self, Package, functions, imports};
use crate::workspace::Workspace;

/// How many of the longest are listed.
const LISTED: usize = 12;

/// Settings of `cargo xtask metrics`.
#[derive(Debug, Args)]
pub struct Options {
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
    /// The working tree to read, e.g. that of an earlier revision. Default: this one.
    #[arg(long, value_name = "FOLDER")]
    tree: Option<PathBuf>,
}

/// All figures.
#[derive(Debug, Serialize)]
struct Metrics {
    packages: Vec<PackageMetrics>,
    total: Lines,
    longest_files: Vec<Place>,
    longest_functions: Vec<Place>,
    longest_argument_lists: Vec<Place>,
    /// Files that import one another.
    circles: Vec<Vec<PathBuf>>,
}

/// The figures of one package.
#[derive(Debug, Serialize)]
struct PackageMetrics {
    name: String,
    files: usize,
    lines: Lines,
    /// Items of its library that are declared `pub`.
    public_items: usize,
    /// Packages of the workspace that it is built with.
    own_dependencies: Vec<String>,
    /// Other packages that it is built with.
    other_dependencies: Vec<String>,
    /// Packages for its tests and its build script.
    further_dependencies: Vec<String>,
}

/// A count and where it was found.
#[derive(Debug, Serialize)]
struct Place {
    count: usize,
    place: String,
}

/// Prints the figures.
///
/// # Errors
/// If the source cannot be read.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let root = options.tree.as_ref().unwrap_or(&workspace.root);
    let metrics = measure(&source::read(workspace.cargo(), root)?);
    if options.json {
        println!("{}", serde_json::to_string_pretty(&metrics)?);
    } else {
        print!("{}", metrics.text());
    }
    Ok(())
}

fn measure(packages: &[Package]) -> Metrics {
    let mut total = Lines::default();
    let (mut files, mut lengths, mut arguments, mut circles) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for package in packages {
        circles.extend(imports::circles(&package.files));
        for file in &package.files {
            let path = file.path.display();
            files.push(Place { count: file.text.lines().count(), place: path.to_string() });
            for function in functions::functions(file) {
                let place = || format!("{path}:{} {}", function.line, function.name);
                lengths.push(Place { count: function.lines, place: place() });
                arguments.push(Place { count: function.arguments, place: place() });
            }
        }
    }
    let packages: Vec<_> = packages.iter().map(PackageMetrics::of).collect();
    packages.iter().for_each(|package| total += package.lines);
    Metrics {
        packages,
        total,
        longest_files: longest(files),
        longest_functions: longest(lengths),
        longest_argument_lists: longest(arguments),
        circles,
    }
}

fn longest(mut places: Vec<Place>) -> Vec<Place> {
    places.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.place.cmp(&b.place)));
    places.truncate(LISTED);
    places
}

impl PackageMetrics {
    fn of(package: &Package) -> Self {
        let mut lines = Lines::default();
        package.files.iter().for_each(|file| lines += lines::count(file));
        let names = |wanted: fn(&source::Dependency) -> bool| -> Vec<String> {
            let of_kind = package.dependencies.iter().filter(|dependency| wanted(dependency));
            of_kind.map(|dependency| dependency.name.clone()).collect()
        };
        Self {
            name: package.name.clone(),
            files: package.files.len(),
            lines,
            public_items: package.files.iter().map(functions::public_items).sum(),
            own_dependencies: names(|dependency| dependency.is_normal() && dependency.path.is_some()),
            other_dependencies: names(|dependency| dependency.is_normal() && dependency.path.is_none()),
            further_dependencies: names(|dependency| !dependency.is_normal()),
        }
    }
}

impl Metrics {
    fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        let heads = ["files", "source", "tests", "comments", "blank", "public", "own", "others", "further"];
        write!(text, "{:12}", "package")?;
        heads.iter().try_for_each(|head| write!(text, " {head:>8}"))?;
        writeln!(text)?;
        let mut row = |name: &str, lines: &Lines, [files, public, own, other, further]: [usize; 5]| {
            write!(text, "{name:12}")?;
            let cells = [files, lines.source, lines.tests, lines.comments, lines.blank, public, own, other, further];
            cells.iter().try_for_each(|cell| write!(text, " {cell:>8}"))?;
            writeln!(text)
        };
        let mut sums = [0; 5];
        for package in &self.packages {
            let counts = [
                package.files,
                package.public_items,
                package.own_dependencies.len(),
                package.other_dependencies.len(),
                package.further_dependencies.len(),
            ];
            row(&package.name, &package.lines, counts)?;
            sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        row("total", &self.total, sums)?;
        writeln!(
            text,
            "\nsource, tests, comments, blank: lines. public: items of the library declared `pub`, fields not counted. own, others: \
             packages that\nit is built with, of the workspace and not. further: packages for its tests and its build script."
        )?;
        let lists = [
            ("lines of a file", &self.longest_files),
            ("lines of a function", &self.longest_functions),
            ("arguments of a function, `self` not counted", &self.longest_argument_lists),
        ];
        for (title, list) in lists {
            writeln!(text, "\n{title}")?;
            list.iter().try_for_each(|Place { count, place }| writeln!(text, "{count:>6}  {place}"))?;
        }
        writeln!(text, "\nfiles that import one another: {}", if self.circles.is_empty() { "none" } else { "" })?;
        for circle in &self.circles {
            let files: Vec<String> = circle.iter().map(|path| path.display().to_string()).collect();
            writeln!(text, "    {}", files.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::parsed;

    #[test]
    fn figures_of_a_package_are_added_up() {
        let file = |name: &str, text: &str| parsed(name, &[], text);
        let dependency = |name: &str, kind: Option<&str>, path: Option<&str>| source::Dependency {
            name: name.to_owned(),
            kind: kind.map(str::to_owned),
            path: path.map(PathBuf::from),
        };
        let package = Package {
            name: "p".to_owned(),
            dependencies: vec![
                dependency("own", None, Some("own")),
                dependency("other", None, None),
                dependency("own-tests", Some("dev"), Some("tests")),
            ],
            files: vec![file("a.rs", "/// A.\npub fn a(x: u8, y: u8) {}\n"), file("b.rs", "fn b() {\n\n}\n")],
        };
        let metrics = measure(&[package]);
        assert_eq!(metrics.total, Lines { source: 3, tests: 0, comments: 1, blank: 1 });
        assert_eq!(metrics.longest_functions[0].place, "b.rs:1 b");
        assert_eq!((metrics.longest_argument_lists[0].count, metrics.longest_files[0].count), (2, 3));
        let text = metrics.text();
        let row: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row, ["p", "2", "3", "0", "1", "1", "1", "1", "1", "1"]);
        assert!(text.contains("import one another: none"));
    }
}
