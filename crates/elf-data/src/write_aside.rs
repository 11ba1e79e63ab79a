//! Files are written beside their final name and renamed when whole, so that a killed process never leaves half a file
//! under a name that somebody reads.

use std::fs;
use std::io::Write;
use std::path::Path;

use tempfile::{Builder, NamedTempFile};

use crate::error::{Error, Result};

/// What every unfinished file's name begins and ends with.
const PREFIX: &str = ".elf-unfinished-";
const SUFFIX: &str = ".tmp";

/// An unfinished file in the folder of `target`.
pub(crate) fn begin(target: &Path) -> Result<NamedTempFile> {
    let folder = folder_of(target);
    fs::create_dir_all(folder).map_err(Error::io("create the folder", folder))?;
    let mut builder = Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX);
    // Temporary files are private by default; shards and tokenizers are meant to be shared like any other file.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644));
    builder.tempfile_in(folder).map_err(Error::io("write into", folder))
}

/// Gives a finished file its name. Syncs first: a name must not survive a crash that its contents do not.
pub(crate) fn finish(file: NamedTempFile, target: &Path) -> Result<()> {
    file.as_file().sync_all().map_err(Error::io("write", target))?;
    file.persist(target).map_err(|e| Error::io("write", target)(e.error))?;
    Ok(())
}

/// Writes `bytes` to `target` in one go.
pub(crate) fn write(target: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = begin(target)?;
    file.write_all(bytes).map_err(Error::io("write", target))?;
    finish(file, target)
}

/// Removes what killed processes left unfinished in `folder`.
pub(crate) fn sweep(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let path = entry.map_err(Error::io("list", folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(PREFIX) && name.ends_with(SUFFIX) {
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(())
}

fn folder_of(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
