//! A report of this machine's tools, libraries and hardware; each problem comes with its remedy.

use std::env;
use std::process::{Command, ExitCode};

use anyhow::Result;
use serde_json::{Value, json};

use crate::compiler;
use crate::gpu::Gpus;
use crate::libtorch::{self, Libtorch, fetch, link};
use crate::machine::{self, Processor};
use crate::python::Python;
use crate::workspace::Workspace;

/// The state of one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Fine,
    /// Something is slower or less than it could be.
    Warning,
    /// Nothing works without it.
    Missing,
}

/// One thing that was looked at.
#[derive(Debug)]
struct Finding {
    name: &'static str,
    state: State,
    found: String,
    remedy: Option<String>,
}

impl Finding {
    fn fine(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, state: State::Fine, found: found.into(), remedy: None }
    }

    fn warning(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, state: State::Warning, found: found.into(), remedy: Some(remedy.into()) }
    }

    fn missing(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { state: State::Missing, ..Self::warning(name, found, remedy) }
    }

    fn json(&self) -> Value {
        let state = match self.state {
            State::Fine => "fine",
            State::Warning => "warning",
            State::Missing => "missing",
        };
        json!({ "name": self.name, "state": state, "found": self.found, "remedy": self.remedy })
    }

    fn print(&self) {
        let mark = match self.state {
            State::Fine => "ok  ",
            State::Warning => "warn",
            State::Missing => "LACK",
        };
        println!("{mark}  {:<10} {}", self.name, self.found);
        if let Some(remedy) = &self.remedy {
            println!("      {:<10} remedy: {remedy}", "");
        }
    }
}

/// Looks at everything and prints it; the exit code says whether something needed is missing.
///
/// # Errors
/// None but those of printing.
pub fn run(workspace: &Workspace, as_json: bool) -> Result<ExitCode> {
    let findings = examine(workspace);
    let complete = findings.iter().all(|finding| finding.state != State::Missing);
    if as_json {
        let list: Vec<_> = findings.iter().map(Finding::json).collect();
        let report = json!({ "complete": complete, "findings": list });
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        findings.iter().for_each(Finding::print);
        if complete {
            println!("\nNothing needed is missing.");
        } else {
            println!("\nSomething needed is missing: see the remedies.");
        }
    }
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn examine(workspace: &Workspace) -> Vec<Finding> {
    let linked = link::read(&workspace.root);
    let libtorch = linked.as_ref().map(|link| Libtorch::inspect(&link.libtorch));
    let usable = libtorch.as_ref().and_then(|libtorch| libtorch.as_ref().ok());

    let mut findings = toolchain(workspace);
    findings.push(libtorch_finding(linked.as_ref(), libtorch.as_ref()));
    findings.push(match compiler::check() {
        Ok(version) => Finding::fine("C++", version),
        Err(problem) => split_remedy("C++", &problem.to_string()),
    });
    findings.push(python(usable.is_some()));
    findings.extend(variables());
    findings.push(processor());
    findings.push(memory());
    findings.extend(disks(workspace, usable.is_some()));
    findings.push(gpus(usable));
    findings
}

/// A problem whose message carries its remedy already.
fn split_remedy(name: &'static str, message: &str) -> Finding {
    match message.split_once(". ") {
        Some((problem, remedy)) => Finding::missing(name, problem, remedy),
        None => Finding::missing(name, "not usable", message),
    }
}

fn toolchain(workspace: &Workspace) -> Vec<Finding> {
    let say = |program: &str, arguments: &[&str]| {
        let mut command = match program {
            "cargo" => workspace.cargo(),
            other => Command::new(other),
        };
        let output = command.args(arguments).current_dir(&workspace.root).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(text)
    };
    let wanted = env!("CARGO_PKG_RUST_VERSION");
    let rust = match say("rustc", &["--version"]) {
        Some(version) if at_least(&version, wanted) => Finding::fine("Rust", version),
        Some(version) => Finding::missing(
            "Rust",
            format!("{version}, and {wanted} is needed"),
            format!("rustup toolchain install {wanted}"),
        ),
        None => Finding::missing("Rust", "rustc does not run", "install rustup, or see `rustup show`"),
    };
    let lacking: Vec<_> = [("fmt", "rustfmt"), ("clippy", "clippy")]
        .into_iter()
        .filter(|(command, _)| say("cargo", &[command, "--version"]).is_none())
        .map(|(_, component)| component)
        .collect();
    let mut findings = vec![rust];
    if !lacking.is_empty() {
        findings.push(Finding::warning(
            "Rust",
            format!("{} missing; `cargo xtask ci` needs them", lacking.join(" and ")),
            format!("rustup component add {}", lacking.join(" ")),
        ));
    }
    findings
}

/// Whether `rustc 1.95.0 (...)` is a release no older than `1.95`.
fn at_least(version: &str, wanted: &str) -> bool {
    let numbers = |text: &str| -> Option<(u32, u32)> {
        let mut parts = text.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    };
    let found = version.split_whitespace().nth(1).and_then(numbers);
    found.zip(numbers(wanted)).is_some_and(|(found, wanted)| found >= wanted)
}

fn libtorch_finding(linked: Option<&link::Link>, libtorch: Option<&Result<Libtorch>>) -> Finding {
    const NAME: &str = "libtorch";
    let (Some(link), Some(libtorch)) = (linked, libtorch) else {
        return Finding::missing(NAME, "the workspace is linked to none", "cargo xtask setup");
    };
    let libtorch = match libtorch {
        Ok(libtorch) => libtorch,
        Err(problem) => {
            let found = format!("{} cannot be used: {problem}", link.libtorch.display());
            return Finding::missing(NAME, found, "cargo xtask setup");
        }
    };
    if !link.is_for(&libtorch.root) {
        return Finding::missing(NAME, "the link has no run path", "cargo xtask setup");
    }
    if let Some(missing) = libtorch::missing_libraries(libtorch).first() {
        let found = format!("{libtorch} cannot be loaded: {missing}");
        return Finding::missing(NAME, found, libtorch::LOADER_REMEDY);
    }
    let built = match &libtorch.cuda {
        Some(cuda) => format!("built for CUDA {cuda}"),
        None => "built for CPUs".to_owned(),
    };
    Finding::fine(NAME, format!("{libtorch}, {built}"))
}

/// Python and pip are needed only as long as libtorch has to be fetched.
fn python(have_libtorch: bool) -> Finding {
    const NAME: &str = "Python";
    let found =
        Python::find().and_then(|python| Ok(format!("{} with pip {}", python.version()?, python.pip_version()?)));
    match found {
        Ok(found) => Finding::fine(NAME, found),
        Err(problem) if have_libtorch => {
            Finding::fine(NAME, format!("not needed, for libtorch is there ({})", first_clause(&problem)))
        }
        Err(problem) => split_remedy(NAME, &problem.to_string()),
    }
}

fn first_clause(problem: &anyhow::Error) -> String {
    problem.to_string().split(';').next().unwrap_or_default().to_owned()
}

/// Variables that change builds behind the back of cargo's configuration.
fn variables() -> Vec<Finding> {
    const NAME: &str = "variables";
    let set = |name: &&&str| env::var_os(name).is_some();
    let mut findings = Vec::new();
    let flags = ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"];
    if let Some(name) = flags.iter().find(set) {
        findings.push(Finding::warning(
            NAME,
            format!(
                "{name} is set, so that plain cargo ignores the run path of libtorch and its programs \
                 do not start; `cargo xtask` adds it again"
            ),
            format!("unset {name}"),
        ));
    }
    let torch = [
        "LIBTORCH_USE_PYTORCH",
        "LIBTORCH_INCLUDE",
        "LIBTORCH_LIB",
        "LIBTORCH_STATIC",
        "LIBTORCH_CXX11_ABI",
        "LIBTORCH_BYPASS_VERSION_CHECK",
    ];
    for name in torch.iter().filter(set) {
        findings.push(Finding::warning(
            NAME,
            format!("{name} is set and overrides what set-up has chosen"),
            format!("unset {name}"),
        ));
    }
    findings
}

fn processor() -> Finding {
    let processor = Processor::here();
    let features = processor.features();
    let features = if features.is_empty() { "no vector units known".to_owned() } else { features.join(", ") };
    let found = format!("{}, {} threads; {features}; {}", processor.model, processor.threads, processor.bf16());
    Finding::fine("processor", found)
}

fn memory() -> Finding {
    // Four compilers at once on the bridge to libtorch, or a training run of the demo.
    const ENOUGH: u64 = 4_000_000_000;
    let Some((total, free)) = machine::memory() else {
        return Finding::fine("memory", "the system does not say");
    };
    let found = format!("{:.1} GB, {:.1} GB free", total as f64 / 1e9, free as f64 / 1e9);
    if free < ENOUGH {
        return Finding::warning(
            "memory",
            found,
            "builds may fail for want of it: close other programs, or build with `--jobs 1`",
        );
    }
    Finding::fine("memory", found)
}

fn disks(workspace: &Workspace, have_libtorch: bool) -> Vec<Finding> {
    const NAME: &str = "disk";
    let mut places = vec![(workspace.target(), 4_000_000_000_u64, "CARGO_TARGET_DIR")];
    if !have_libtorch && let Ok(cache) = fetch::folder() {
        places.push((cache, fetch::SPACE, "ELF_CACHE_DIR"));
    }
    let mut findings = Vec::new();
    for (path, enough, variable) in places {
        let Some(free) = machine::free_space(&path) else {
            continue;
        };
        let found = format!("{:.1} GB free for {}", free as f64 / 1e9, path.display());
        findings.push(if free < enough {
            let remedy = format!(
                "{:.1} GB may be needed: make room, or let {variable} name a folder on a larger disk",
                enough as f64 / 1e9
            );
            Finding::warning(NAME, found, remedy)
        } else {
            Finding::fine(NAME, found)
        });
    }
    findings
}

fn gpus(libtorch: Option<&Libtorch>) -> Finding {
    const NAME: &str = "GPU";
    let Some(gpus) = Gpus::here() else {
        return Finding::fine(NAME, "none (nvidia-smi names none); the CPU is used");
    };
    let list: Vec<_> =
        gpus.list.iter().map(|gpu| format!("{} with {} (driver {})", gpu.name, gpu.memory, gpu.driver)).collect();
    let list = list.join("; ");
    match libtorch.and_then(|libtorch| gpus.obstacle(libtorch)) {
        Some((problem, remedy)) => Finding::warning(NAME, format!("{list}; {problem}"), remedy),
        None => Finding::fine(NAME, list),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_rust_compare_as_numbers() {
        assert!(at_least("rustc 1.95.0 (abc 2026-01-01)", "1.95"));
        assert!(at_least("rustc 1.100.0-nightly (abc)", "1.95"));
        assert!(at_least("rustc 2.0.0", "1.95.0"));
        assert!(!at_least("rustc 1.94.1 (abc)", "1.95"));
        assert!(!at_least("gibberish", "1.95"));
    }

    #[test]
    fn a_workspace_without_link_gets_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let workspace = Workspace { root: folder.path().to_owned() };
        let findings = examine(&workspace);
        let finding = findings.iter().find(|finding| finding.name == "libtorch").unwrap();
        assert_eq!(finding.state, State::Missing);
        assert_eq!(finding.json()["remedy"], "cargo xtask setup");
    }

    #[test]
    fn a_link_to_nowhere_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let gone = folder.path().join("gone");
        link::write(folder.path(), &gone).unwrap();
        let link = link::read(folder.path()).unwrap();
        let finding = libtorch_finding(Some(&link), Some(&Libtorch::inspect(&gone)));
        assert_eq!(finding.state, State::Missing);
        assert!(finding.found.contains("no such folder"), "{}", finding.found);
    }
}
