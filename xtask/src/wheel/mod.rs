//! The Python package `python/`: its wheel, and its tests in a scratch environment with the torch that it is built against.

mod stand_ins;
mod torch;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use self::torch::Torch;
use crate::libtorch::{Libtorch, SetUp, fetch, setup};
use crate::python::Python;
use crate::steps::{Steps, clock, run as run_command};
use crate::workspace::Workspace;

/// The packages that building and testing need.
const REQUIREMENTS: &str = "python/tests/requirements.txt";

/// Arguments of `cargo xtask python`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Build the wheel and do not test it.
    #[arg(long)]
    no_tests: bool,
    /// Passed on to pytest, e.g. `-k trajectory`.
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Builds the wheel into `target/wheels` and tests it.
///
/// # Errors
/// If there is no Python that it is for, a package cannot be fetched, or a test fails.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let start = std::time::Instant::now();
    let libtorch = setup(workspace, SetUp::Once)?;
    let python = python()?;
    let mut steps = Steps::default();
    let environment = steps.time("environment", || Environment::ready(workspace, &python))?;
    let wheel = wheel(workspace, &libtorch, &environment, &mut steps)?;
    if !options.no_tests {
        // The tests compare with the program.
        let mut program = workspace.cargo_with(&libtorch);
        steps.run("program", program.args(["build", "--release", "--workspace", "--bin", "elf"]))?;
        test(&environment, &wheel, &libtorch, &mut steps, &options.arguments)?;
    }
    println!("\n{} is ready, after {}", workspace.short(&wheel).display(), clock(start.elapsed()));
    println!("to install it: python3 -m pip install torch==2.11.0 {}", workspace.short(&wheel).display());
    Ok(())
}

/// The part of `cargo xtask test`: [`run`] with the program that the tests have built, or a message that says why not.
///
/// # Errors
/// If the wheel does not build, or a test fails.
pub fn run_in_tests(workspace: &Workspace, libtorch: &Libtorch, steps: &mut Steps) -> Result<()> {
    let ready = python().and_then(|python| Ok((Environment::ready(workspace, &python)?, python)));
    let (environment, python) = match ready {
        Ok(ready) => ready,
        Err(reason) => {
            println!("\nthe Python package is not tested: {reason:#}");
            return Ok(());
        }
    };
    if let Err(reason) = Torch::for_python(&python, libtorch) {
        println!("\nthe Python package is not tested: {reason:#}");
        return Ok(());
    }
    let wheel = wheel(workspace, libtorch, &environment, steps)?;
    test(&environment, &wheel, libtorch, steps, &[])
}

/// The Python on this machine, if the package can be installed for it.
fn python() -> Result<Python> {
    let python = Python::find()?;
    let (minor, version) = (python.minor()?, python.version()?);
    if !fetch::PYTHONS.contains(&minor) {
        let (first, last) = (fetch::PYTHONS.start(), fetch::PYTHONS.end());
        bail!("python3 is {version}, and PyTorch 2.11 is for 3.{first} to 3.{last}: let `python3` be one of these");
    }
    python.pip_version()?;
    Ok(python)
}

/// A command of the scratch environment's Python in which torch can be imported.
///
/// # Errors
/// If there is no Python that torch is for, or a package cannot be fetched.
pub fn with_torch(workspace: &Workspace, libtorch: &Libtorch) -> Result<Command> {
    let environment = Environment::ready(workspace, &python()?)?;
    let torch = Torch::for_python(&environment.base, libtorch)?;
    environment.add(&torch.packages)?;
    let mut command = environment.python.command();
    torch.prepare(&environment.python, &environment.folder.join("stand-ins"), &mut command)?;
    Ok(command)
}

/// A virtual environment in the target folder.
struct Environment {
    folder: PathBuf,
    python: Python,
    /// The interpreter that it was made with.
    base: Python,
}

impl Environment {
    /// The environment with all that [`REQUIREMENTS`] names, made again where these or Python have changed.
    fn ready(workspace: &Workspace, base: &Python) -> Result<Self> {
        let folder = workspace.target().join("python-environment");
        let requirements = workspace.root.join(REQUIREMENTS);
        let named = fs::read_to_string(&requirements).with_context(|| requirements.display().to_string())?;
        let wanted = format!("{}\n{named}", base.print("import sys; print(sys.version, sys.prefix)")?);
        let (stamp, program) = (folder.join("made-for.txt"), folder.join("bin/python"));
        let environment = Self { python: Python::at(&program), folder, base: base.clone() };
        if fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) {
            return Ok(environment);
        }
        if environment.folder.exists() {
            fs::remove_dir_all(&environment.folder).context("the old environment cannot be removed")?;
        }
        run_command(base.command().args(["-m", "venv"]).arg(&environment.folder)).context(
            "python3 makes no virtual environments; install its module venv (Debian, Ubuntu: apt-get install python3-venv)",
        )?;
        let mut pip = environment.pip();
        run_command(pip.arg("--requirement").arg(&requirements))
            .context("the packages for tests cannot be fetched; if the network is at fault, run this again")?;
        elf_files::write(&stamp, wanted).context("the environment cannot be marked as ready")?;
        Ok(environment)
    }

    fn pip(&self) -> Command {
        let mut pip = self.python.command();
        pip.args("-m pip --disable-pip-version-check install --quiet --no-input".split(' '));
        pip
    }

    /// Lets the environment import the packages of another folder.
    fn add(&self, packages: &Path) -> Result<()> {
        let own = PathBuf::from(self.python.print("import sysconfig; print(sysconfig.get_path('purelib'))")?);
        elf_files::write(&own.join("torch.pth"), format!("{}\n", packages.display()))
            .context("torch cannot be added to the environment")
    }
}

/// Builds the wheel with what the workspace was built with.
fn wheel(workspace: &Workspace, libtorch: &Libtorch, environment: &Environment, steps: &mut Steps) -> Result<PathBuf> {
    let output = workspace.target().join("wheels");
    let mut maturin = Command::new(environment.folder.join("bin/maturin"));
    maturin.args(["build", "--release", "--manifest-path", "python/Cargo.toml", "--out"]).arg(&output);
    maturin.arg("--interpreter").arg(environment.folder.join("bin/python"));
    workspace.forget_this_package(&mut maturin);
    Workspace::link(&mut maturin, libtorch);
    steps.run("wheel", &mut maturin)?;
    newest_wheel(&output).with_context(|| format!("maturin has left no wheel in {}", output.display()))
}

fn newest_wheel(folder: &Path) -> Option<PathBuf> {
    let files = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let wheels = files.filter(|path| path.extension().is_some_and(|ending| ending == "whl"));
    wheels.max_by_key(|path| path.metadata().and_then(|data| data.modified()).ok())
}

/// Installs the wheel into the environment and runs pytest.
fn test(
    environment: &Environment,
    wheel: &Path,
    libtorch: &Libtorch,
    steps: &mut Steps,
    arguments: &[String],
) -> Result<()> {
    let torch = steps.time("torch", || Torch::for_python(&environment.base, libtorch))?;
    environment.add(&torch.packages)?;
    // torch is there already, and pip would fetch what it needs on GPUs.
    let mut install = environment.pip();
    steps.run("installation", install.args(["--no-deps", "--force-reinstall"]).arg(wheel))?;
    let folder = environment.folder.join("stand-ins");
    let mut pytest = environment.python.command();
    pytest.args(["-m", "pytest", "python/tests", "--color=auto"]).args(arguments);
    torch.prepare(&environment.python, &folder, &mut pytest)?;
    steps.run("tests of the Python package", &mut pytest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libtorch::folder::VERSION;

    #[test]
    fn the_package_names_the_libtorch_that_it_is_built_against() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../python");
        let minor = VERSION.rsplit_once('.').unwrap().0;
        for (file, line) in [
            ("elf_flows/__init__.py", format!("TORCH_VERSION = \"{minor}\"")),
            ("pyproject.toml", format!("dependencies = [\"torch=={minor}.*\"]")),
        ] {
            assert!(fs::read_to_string(root.join(file)).unwrap().contains(&line), "{file}: {line}");
        }
    }

    /// Features of the packages that go into a target, as `cargo tree` lists them.
    fn features(workspace: &Workspace, arguments: &[&str]) -> std::collections::BTreeSet<String> {
        let mut tree = workspace.cargo();
        tree.args(["tree", "--offline", "--edges", "normal,no-proc-macro", "--prefix", "none", "--format", "{p} {f}"]);
        let output = tree.args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| line.trim_end_matches(" (*)").to_owned()).collect()
    }

    #[test]
    fn maturin_builds_with_the_features_of_the_workspace() {
        let workspace = Workspace::find().unwrap();
        let all = features(&workspace, &["--workspace"]);
        let own = features(&workspace, &["--package", "elf-flows"]);
        let others: Vec<_> = own.difference(&all).collect();
        assert!(others.is_empty(), "name the workspace's features of these in python/Cargo.toml: {others:?}");
    }

    #[test]
    fn the_newest_wheel_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(newest_wheel(folder.path()), None);
        let at = |name: &str| folder.path().join(name);
        for (name, seconds) in [("a.whl", 2), ("b.whl", 1), ("c.txt", 3)] {
            let file = fs::File::create(at(name)).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds)).unwrap();
        }
        assert_eq!(newest_wheel(folder.path()), Some(at("a.whl")));
    }
}
