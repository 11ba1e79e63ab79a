//! Content hashes of files and folders, in hexadecimal digits.

use std::path::Path;

use crate::Result;
use crate::error::Context;

/// The hash of a file's content.
///
/// # Errors
/// If it cannot be read.
pub fn hash_of_file(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    add_file(&mut hasher, path)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// The hash of the names and contents of a folder's files whose names are `wanted`.
///
/// # Errors
/// If one cannot be read.
pub fn hash_of_folder(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<String> {
    let cannot = || format!("cannot read {}", folder.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(cannot)? {
        let entry = entry.with_context(cannot)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Files in the hub's cache are links.
        if wanted(&name) && entry.path().is_file() {
            files.push((name, entry.path()));
        }
    }
    files.sort();
    let mut hasher = blake3::Hasher::new();
    for (name, path) in files {
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        add_file(&mut hasher, &path)?;
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn add_file(hasher: &mut blake3::Hasher, path: &Path) -> Result<()> {
    let mut content = blake3::Hasher::new();
    let read = std::fs::File::open(path).and_then(|file| content.update_reader(file).map(drop));
    read.with_context(|| format!("cannot read {}", path.display()))?;
    hasher.update(content.finalize().as_bytes());
    Ok(())
}
