//! The repository's working tree, and calls of cargo in it.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::libtorch::folder::Libtorch;
use crate::libtorch::link;

/// The repository's working tree.
pub struct Workspace {
    /// The folder of the workspace's `Cargo.toml`.
    pub root: PathBuf,
}

impl Workspace {
    /// Finds the working tree that `cargo xtask` was called in.
    ///
    /// # Errors
    /// If this program was started in some other way and its sources are gone.
    pub fn find() -> Result<Self> {
        // At run time cargo names the folder of this crate; the compile-time value serves a program
        // started by hand.
        let manifest =
            env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        match manifest.parent() {
            Some(root) if root.join("Cargo.toml").is_file() => Ok(Self { root: root.to_owned() }),
            _ => bail!("{} does not lie in the repository; start this program with `cargo xtask`", manifest.display()),
        }
    }

    /// A call of the cargo that started us, in the root folder.
    pub fn cargo(&self) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        self.forget_this_package(&mut command);
        command
    }

    /// Makes a command that calls cargo run in the root folder, as from a terminal.
    pub fn forget_this_package(&self, command: &mut Command) {
        command.current_dir(&self.root);
        // Cargo has set variables about this package. Build scripts of other packages that read them would run again, now and at
        // the next build by hand.
        for (name, _) in env::vars_os() {
            let about_us =
                name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"));
            if about_us {
                command.env_remove(name);
            }
        }
    }

    /// A call of cargo that builds against `libtorch`.
    pub fn cargo_with(&self, libtorch: &Libtorch) -> Command {
        let mut command = self.cargo();
        Self::link(&mut command, libtorch);
        command
    }

    /// Makes a command that calls cargo build against `libtorch`.
    pub fn link(command: &mut Command, libtorch: &Libtorch) {
        // Our own environment may still carry the value that the configuration had when we started.
        command.env("LIBTORCH", &libtorch.root);
        if let Some(flags) =
            flags_with_run_path(env::var_os("CARGO_ENCODED_RUSTFLAGS"), env::var_os("RUSTFLAGS"), &libtorch.root)
        {
            command.env("CARGO_ENCODED_RUSTFLAGS", flags);
        }
    }

    /// Builds one program in the release profile and returns the path that cargo gave it,
    /// whichever target folder is configured.
    ///
    /// # Errors
    /// If it does not build.
    pub fn build(&self, libtorch: &Libtorch, program: &str) -> Result<PathBuf> {
        // With the features of the whole workspace, as tests are built, so that nothing is compiled twice.
        let arguments = ["build", "--release", "--workspace", "--bin", program];
        let output = self
            .cargo_with(libtorch)
            .args(arguments)
            .arg("--message-format=json-render-diagnostics")
            .stderr(std::process::Stdio::inherit())
            .output()
            .context("cargo cannot be started")?;
        if !output.status.success() {
            bail!("{program} does not build; to see it again: cargo {}", arguments.join(" "));
        }
        executable(&String::from_utf8_lossy(&output.stdout), program)
            .with_context(|| format!("cargo names no program {program} among its results"))
    }

    /// The folder that holds what cargo builds, for a look at the free space.
    pub fn target(&self) -> PathBuf {
        env::var_os("CARGO_TARGET_DIR").map_or_else(|| self.root.join("target"), PathBuf::from)
    }

    /// A path inside the repository as a reader would type it, relative to the root.
    pub fn short<'a>(&self, path: &'a Path) -> &'a Path {
        path.strip_prefix(&self.root).unwrap_or(path)
    }
}

/// The flags of the environment plus the run path, in cargo's encoding; `None` if the environment has none. With flags in the
/// environment, cargo ignores those of its configuration, and our run path is one of these.
fn flags_with_run_path(encoded: Option<OsString>, plain: Option<OsString>, libtorch: &Path) -> Option<OsString> {
    const SEPARATOR: &str = "\u{1f}";
    let mut flags = match (encoded, plain) {
        (Some(encoded), _) => encoded.into_string().ok()?,
        (None, Some(plain)) => {
            let plain = plain.into_string().ok()?;
            plain.split_whitespace().collect::<Vec<_>>().join(SEPARATOR)
        }
        (None, None) => return None,
    };
    for flag in link::run_path_flags(libtorch.to_str()?) {
        if !flags.is_empty() {
            flags.push_str(SEPARATOR);
        }
        flags.push_str(&flag);
    }
    Some(flags.into())
}

/// The path of `program` among cargo's JSON messages, one a line.
fn executable(messages: &str, program: &str) -> Option<PathBuf> {
    messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        if message["target"]["name"] != program {
            return None;
        }
        message["executable"].as_str().map(PathBuf::from)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_found_among_the_messages() {
        let messages = concat!(
            "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"elf-core\"},\"executable\":null}\n",
            "not JSON\n",
            "{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"elf\"},\"executable\":\"/t/release/elf\"}\n",
            "{\"reason\":\"build-finished\",\"success\":true}\n",
        );
        assert_eq!(executable(messages, "elf"), Some(PathBuf::from("/t/release/elf")));
        assert_eq!(executable(messages, "elf-core"), None);
    }

    #[test]
    fn flags_of_the_environment_keep_their_order_and_gain_the_run_path() {
        let libtorch = Path::new("/a b/torch");
        let path = "-C\u{1f}link-arg=-Wl,-rpath,/a b/torch/lib";
        assert_eq!(flags_with_run_path(None, None, libtorch), None);
        assert_eq!(
            flags_with_run_path(None, Some(" -D  warnings ".into()), libtorch),
            Some(format!("-D\u{1f}warnings\u{1f}{path}").into())
        );
        assert_eq!(flags_with_run_path(None, Some("".into()), libtorch), Some(path.into()));
        assert_eq!(
            flags_with_run_path(Some("--cfg\u{1f}a b".into()), Some("-D x".into()), libtorch),
            Some(format!("--cfg\u{1f}a b\u{1f}{path}").into())
        );
    }
}
