//! The C++ compiler, which builds the bridge between Rust and libtorch.

use std::env;
use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

const REMEDY: &str = "A C++17 compiler with OpenMP's runtime library is needed: install g++ \
    (Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++), or let the variable CXX \
    name one";

/// The compiler that the build will call, in words; it has compiled and linked a small program.
///
/// # Errors
/// If there is none or it cannot do what the build asks of it, with the remedy.
pub fn check() -> Result<String> {
    // As the build scripts choose it: CXX, which may carry arguments or a wrapper, or else `c++`.
    let chosen = env::var("CXX").ok().filter(|text| !text.trim().is_empty());
    check_compiler(chosen.as_deref().unwrap_or("c++"))
}

fn check_compiler(chosen: &str) -> Result<String> {
    let mut words = chosen.split_whitespace();
    let program = words.next().context(REMEDY)?;
    let call = || {
        let mut command = Command::new(program);
        command.args(words.clone()).stdin(Stdio::null());
        command
    };
    let folder = tempfile::tempdir().context("no temporary folder can be made")?;
    let source = folder.path().join("probe.cpp");
    fs::write(&source, "#include <optional>\nint main() { return *std::optional<int>(0); }\n")
        .with_context(|| format!("{} cannot be written", source.display()))?;
    let output =
        call().arg("-std=c++17").arg(&source).arg("-lgomp").arg("-o").arg(folder.path().join("probe")).output();
    match output {
        Err(_) => bail!("{program} cannot be started. {REMEDY}"),
        Ok(output) if !output.status.success() => {
            let message = String::from_utf8_lossy(&output.stderr);
            bail!("{chosen} cannot build a small C++17 program. {REMEDY}. It says:\n{}", message.trim());
        }
        Ok(_) => {}
    }
    let version = call().arg("--version").output().context("the compiler has no version")?;
    let version = String::from_utf8_lossy(&version.stdout);
    Ok(version.lines().next().unwrap_or(chosen).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_compiler_and_a_broken_one_come_with_the_remedy() {
        for broken in ["no-such-compiler-here", "false", " "] {
            let message = check_compiler(broken).unwrap_err().to_string();
            assert!(message.contains("apt-get install g++"), "{message}");
        }
    }
}
