//! Tests, benches, and the checks of continuous integration. Everything is built in the release
//! profile, so that dependencies, the C++ bridge to libtorch above all, are compiled once for all.

use anyhow::Result;

use crate::libtorch::{SetUp, setup};
use crate::steps::{Steps, clock};
use crate::wheel;
use crate::workspace::Workspace;

/// All tests, those of the Python package included where it can be built, or those that the arguments for `cargo test` choose.
///
/// # Errors
/// If set-up or a test fails.
pub fn test(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let start = std::time::Instant::now();
    let libtorch = setup(workspace, SetUp::Once)?;
    let mut command = workspace.cargo_with(&libtorch);
    command.args(["test", "--release"]);
    if !chooses_packages(arguments) {
        command.arg("--workspace");
    }
    command.args(arguments);
    let mut steps = Steps::default();
    steps.run("tests", &mut command)?;
    // A choice of tests is a choice of Rust's.
    if arguments.is_empty() {
        wheel::run_in_tests(workspace, &libtorch, &mut steps)?;
    }
    println!("\nall tests passed in {}, builds included", clock(start.elapsed()));
    Ok(())
}

/// The beginning of the names of all tests that change files at random.
const FUZZ: &str = "fuzz_";
/// The packages with these tests.
const FUZZED: [&str; 2] = ["elf-tests", "elf-data"];

/// The fuzz tests of all readers, each with so many cases.
///
/// # Errors
/// If set-up or a reader fails; the file that made the reader fail is printed.
pub fn fuzz(workspace: &Workspace, cases: u32) -> Result<()> {
    let start = std::time::Instant::now();
    let libtorch = setup(workspace, SetUp::Once)?;
    let mut command = workspace.cargo_with(&libtorch);
    command.args(["test", "--release"]).env("PROPTEST_CASES", cases.to_string());
    for package in FUZZED {
        command.args(["--package", package]);
    }
    command.arg(FUZZ);
    Steps::default().run("fuzz tests", &mut command)?;
    println!("\nall readers passed {cases} cases of each kind, in {}", clock(start.elapsed()));
    Ok(())
}

/// Whether the arguments choose packages, all of them included; `--workspace` would override the choice, or be said twice.
fn chooses_packages(arguments: &[String]) -> bool {
    arguments.iter().take_while(|word| *word != "--").any(|word| {
        word.starts_with("-p")
            || ["--package", "--workspace", "--all"].contains(&word.as_str())
            || word.starts_with("--package=")
    })
}

/// The benches of one package, or of all.
///
/// # Errors
/// If set-up or a bench fails.
pub fn bench(workspace: &Workspace, package: Option<&str>, arguments: &[String]) -> Result<()> {
    let libtorch = setup(workspace, SetUp::Once)?;
    let mut command = workspace.cargo_with(&libtorch);
    // Without this, cargo would also start the test programs of libraries, which do not accept the options of benches.
    command.args(["bench", "--bench", "*"]);
    match package {
        Some(package) => command.args(["--package", package]),
        None => command.arg("--workspace"),
    };
    if !arguments.is_empty() {
        command.arg("--").args(arguments);
    }
    Steps::default().run("benches", &mut command)
}

/// Format, lints, documentation with its examples run, and the benches' compilation; the quick ones first.
///
/// # Errors
/// At the first that fails.
pub fn ci(workspace: &Workspace) -> Result<()> {
    let mut steps = Steps::default();
    let result = ci_steps(workspace, &mut steps);
    println!("\n{}", steps.table());
    result
}

fn ci_steps(workspace: &Workspace, steps: &mut Steps) -> Result<()> {
    steps.run("format", workspace.cargo().args(["fmt", "--all", "--check"]))?;
    let libtorch = steps.time("libtorch", || {
        let libtorch = setup(workspace, SetUp::Once)?;
        println!("    {libtorch}");
        Ok(libtorch)
    })?;
    let cargo = |words: &[&str]| {
        let mut command = workspace.cargo_with(&libtorch);
        command.args(words);
        command
    };
    steps.run("lints", &mut cargo(&["clippy", "--workspace", "--all-targets", "--release", "--", "-D", "warnings"]))?;
    let mut documentation = cargo(&["doc", "--workspace", "--no-deps", "--release"]);
    steps.run("documentation", documentation.env("RUSTDOCFLAGS", "-D warnings"))?;
    steps.run("benches compile", &mut cargo(&["bench", "--workspace", "--no-run"]))?;
    steps.run("examples in the documentation", &mut cargo(&["test", "--workspace", "--doc", "--release"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fuzz_tests_are_where_they_are_looked_for() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for (file, tests) in [
            ("tests/tests/pytorch_refusals.rs", 2),
            ("tests/tests/fuzz_safetensors.rs", 1),
            ("crates/elf-data/tests/arrow_stream.rs", 2),
        ] {
            let text = std::fs::read_to_string(root.join(file)).unwrap();
            assert_eq!(text.matches(&format!("fn {FUZZ}")).count(), tests, "{file}");
        }
    }

    #[test]
    fn a_choice_of_packages_is_recognised() {
        let chooses = |line: &str| chooses_packages(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        assert!(
            chooses("-p elf-data")
                && chooses("--workspace --no-fail-fast")
                && chooses("--doc --package=elf-data")
                && chooses("-pelf")
        );
        assert!(!chooses("") && !chooses("parity") && !chooses("parity -- -p"));
    }
}
