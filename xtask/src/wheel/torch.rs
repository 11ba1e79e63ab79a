//! A torch that the Python package can be tested with, without fetching one where there is one already.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use super::stand_ins;
use crate::libtorch::{Libtorch, fetch};
use crate::python::Python;

/// A Python package `torch`.
pub struct Torch {
    /// The folder that Python imports it from.
    pub packages: PathBuf,
}

impl Torch {
    /// That of the linked libtorch if it is for this Python, or one in the user cache, which is filled if need be.
    ///
    /// # Errors
    /// If none can be fetched.
    pub fn for_python(python: &Python, libtorch: &Libtorch) -> Result<Self> {
        let minor = python.minor()?;
        let linked = Self { packages: elf_files::folder_of(&libtorch.root).to_owned() };
        if linked.is_for(minor) {
            return Ok(linked);
        }
        let fetched = fetch::for_python(minor)?;
        let fetched = Self { packages: elf_files::folder_of(&fetched.root).to_owned() };
        match fetched.is_for(minor) {
            true => Ok(fetched),
            false => bail!("{} holds a torch for another Python: delete it", fetched.packages.display()),
        }
    }

    fn is_for(&self, minor: u32) -> bool {
        let native = format!("torch/_C.cpython-3{minor}-x86_64-linux-gnu.so");
        self.packages.join("torch/__init__.py").is_file() && self.packages.join(native).is_file()
    }

    /// Makes `command` find the libraries of CUDA or, where they are not installed, stand-ins in `folder`: torch names
    /// them, and its CPU part does not use them.
    ///
    /// # Errors
    /// If torch cannot be imported even so, with what Python says.
    pub fn prepare(&self, python: &Python, folder: &Path, command: &mut Command) -> Result<()> {
        let imports = |environment: &[(&str, &Path)]| {
            let output = python.command().args(["-c", "import torch"]).envs(environment.iter().copied()).output()?;
            Ok::<_, anyhow::Error>((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
        };
        if imports(&[])?.0 {
            return Ok(());
        }
        stand_ins::make(&self.packages.join("torch/lib"), folder)?;
        // A GPU must not be found: there is nothing to compute with on it.
        let environment = [("LD_LIBRARY_PATH", folder), ("CUDA_VISIBLE_DEVICES", Path::new(""))];
        match imports(&environment)? {
            (true, _) => command.envs(environment),
            (false, error) => bail!("torch in {} cannot be imported:\n{error}", self.packages.display()),
        };
        Ok(())
    }
}
