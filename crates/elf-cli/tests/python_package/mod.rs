//! Packages of Python that tests use, each in a virtual environment that is made once and kept with the build.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A Python that can import the package, which is installed if need be; or why there is none.
pub fn python_with(package: &str) -> Result<PathBuf, String> {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("python-{package}"));
    let python = home.join("bin/python");
    let import = format!("import {package}");
    if Command::new(&python).args(["-c", &import]).output().is_ok_and(|output| output.status.success()) {
        return Ok(python);
    }
    let run = |command: &mut Command| match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(error.to_string()),
    };
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&home))?;
    let install = ["-m", "pip", "install", "--quiet", "--retries", "1", "--timeout", "20", package];
    run(Command::new(&python).args(install))?;
    Ok(python)
}
