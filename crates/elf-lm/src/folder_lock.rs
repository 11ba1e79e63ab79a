//! A lock that lets one process at a time write to a folder.

use std::path::Path;

use crate::Result;
use crate::error::{Context, fail};
use elf_files::Held;

/// Locks a folder, which is created if necessary, until the returned value is dropped or the process ends.
///
/// # Errors
/// If another process holds the lock, or the folder cannot be created.
pub fn lock(folder: &Path) -> Result<Held> {
    match Held::take(folder).with_context(|| format!("cannot write in the folder {}", folder.display()))? {
        Some(held) => Ok(held),
        None => fail!(
            place(folder),
            "another process is training in {}: wait for it or end it, or choose another folder",
            folder.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let held = lock(&folder.path().join("a/b")).unwrap();
        let error = lock(&folder.path().join("a/b")).unwrap_err().to_string();
        assert!(error.contains("another process is training in") && error.contains("a/b"), "{error}");
        lock(&folder.path().join("a")).unwrap();
        drop(held);
        lock(&folder.path().join("a/b")).unwrap();
    }
}
