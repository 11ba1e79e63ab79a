//! The Python on this machine. It fetches libtorch, and builds and tests the Python package; nothing else needs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

const NO_PYTHON: &str = "python3 is not on this machine; it is needed once, to fetch libtorch. \
    Install it (Debian, Ubuntu: apt-get install python3 python3-pip; Fedora: dnf install \
    python3-pip), or set LIBTORCH to a folder with libtorch";
const NO_PIP: &str = "python3 has no pip; it is needed once, to fetch libtorch. Install it (Debian, \
    Ubuntu: apt-get install python3-pip; Fedora: dnf install python3-pip; elsewhere: python3 -m \
    ensurepip), or set LIBTORCH to a folder with libtorch";

/// A Python interpreter that runs.
#[derive(Debug, Clone)]
pub struct Python {
    program: PathBuf,
}

impl Python {
    /// The interpreter that `python3` or, failing that, `python` starts.
    ///
    /// # Errors
    /// If there is none, with the remedy.
    pub fn find() -> Result<Self> {
        ["python3", "python"]
            .into_iter()
            .map(|name| Self::at(Path::new(name)))
            .find(|python| python.print("import sys; assert sys.version_info[0] == 3").is_ok())
            .context(NO_PYTHON)
    }

    /// The interpreter at a known path.
    pub fn at(program: &Path) -> Self {
        Self { program: program.to_owned() }
    }

    /// The output of a short program, without the last newline.
    ///
    /// # Errors
    /// If it cannot be started or fails.
    pub fn print(&self, source: &str) -> Result<String> {
        let output = self
            .command()
            .args(["-c", source])
            .stderr(Stdio::null())
            .output()
            .with_context(|| format!("{} cannot be started", self.program.display()))?;
        if !output.status.success() {
            bail!("{} failed", self.program.display());
        }
        Ok(String::from_utf8(output.stdout)?.trim_end_matches(['\r', '\n']).to_owned())
    }

    /// The interpreter's version, e.g. `3.11.7`.
    ///
    /// # Errors
    /// If it does not run.
    pub fn version(&self) -> Result<String> {
        self.print("import platform; print(platform.python_version())")
    }

    /// The minor version, e.g. 11 of Python 3.11.
    ///
    /// # Errors
    /// If it does not run.
    pub fn minor(&self) -> Result<u32> {
        Ok(self.print("import sys; print(sys.version_info[1])")?.parse()?)
    }

    /// The version of the pip that belongs to it.
    ///
    /// # Errors
    /// If it has none, with the remedy.
    pub fn pip_version(&self) -> Result<String> {
        self.print("import pip; print(pip.__version__)").context(NO_PIP)
    }

    /// A call of the interpreter.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        // A set-up without a terminal must not wait for answers.
        command.stdin(Stdio::null());
        command
    }
}
