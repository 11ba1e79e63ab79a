//! One process at a time in a folder that is written over hours.

use std::fs::{File, TryLockError};
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Holds a folder, which is made if it is not there, until the file is closed or the process ends, however it ends.
///
/// # Errors
/// If another process holds it, or it cannot be made.
pub fn lock(folder: &Path) -> Result<File> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let path = folder.join(".lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        // Some network file systems know no locks; then nobody can be kept out.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
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
