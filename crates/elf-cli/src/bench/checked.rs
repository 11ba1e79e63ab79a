//! Checks of what a device computes, all of which are made whatever becomes of the first.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Result, anyhow, ensure};
use elf_tests::comparisons::{Comparison, Comparisons};
use elf_tests::{checks, parity_path};
use serde::Serialize;
use tch::Device;

use super::operations;
use super::workload::Workload;

/// What came of one check.
#[derive(Debug, Serialize)]
pub struct Checked {
    /// What was checked.
    pub name: String,
    /// Tensors and numbers that were compared.
    pub compared: usize,
    /// The one closest to its limit, or furthest beyond it.
    pub worst: Option<Comparison>,
    /// Those beyond their limits.
    pub beyond: Vec<Comparison>,
    /// Why the check ended early.
    pub error: Option<String>,
}

impl Checked {
    fn new(name: String, found: Result<Comparisons>) -> Self {
        let (found, error) = match found {
            Ok(found) => (found, None),
            Err(error) => (Comparisons::default(), Some(format!("{error:#}"))),
        };
        let (worst, beyond) = (found.worst().cloned(), found.beyond().cloned().collect());
        Self { name, compared: found.0.len(), worst, beyond, error }
    }

    /// Whether all was close enough, and anything was compared.
    pub fn holds(&self) -> bool {
        self.error.is_none() && self.beyond.is_empty() && self.compared > 0
    }
}

/// Each operation against its plain form on the CPU.
pub fn operations(workload: &Workload) -> Vec<Checked> {
    let compare = |operation: &operations::Operation| caught(|| operation.compare(workload.device)).flatten();
    operations::all(workload).iter().map(|one| Checked::new(one.name.to_owned(), compare(one))).collect()
}

/// The reference numbers, in the folder that `ELF_PARITY_DIR` names.
///
/// # Errors
/// If they are missing.
pub fn parity(device: Device) -> Result<Vec<Checked>> {
    let one = parity_path("samplers.json");
    ensure!(one.is_file(), "there is no {}: let ELF_PARITY_DIR name the folder of reference numbers", one.display());
    let all = caught(checks::all)?;
    Ok(all.into_iter().map(|(name, check)| Checked::new(name, caught(|| check(device)))).collect())
}

/// The result of code that panics where it cannot go on.
fn caught<T>(f: impl FnOnce() -> T) -> Result<T> {
    let words = |panic: Box<dyn Any + Send>| match panic.downcast::<String>() {
        Ok(words) => *words,
        Err(panic) => panic.downcast_ref::<&str>().copied().unwrap_or("it panicked").to_owned(),
    };
    catch_unwind(AssertUnwindSafe(f)).map_err(|panic| anyhow!(words(panic)))
}
