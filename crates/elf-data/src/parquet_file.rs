//! Opening Parquet files, and telling damaged files from those that use features which are not read here.

use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};

/// Opens a file that should be Parquet.
///
/// # Errors
/// If it cannot be opened, is a Git LFS pointer, or is encrypted.
pub(crate) fn open(path: &Path) -> Result<File> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let mut beginning = [0; 64];
    let mut length = 0;
    while let Ok(n @ 1..) = (&file).read(&mut beginning[length..]) {
        length += n;
    }
    if elf_files::is_lfs_pointer(&beginning[..length]) {
        return Err(elf_files::lines::LineError::LfsPointer { path: path.to_owned() }.into());
    }
    if beginning.starts_with(b"PARE") {
        return Err(Error::Unsupported {
            path: path.to_owned(),
            feature: "it is encrypted".to_owned(),
            remedy: "write it again without encryption",
        });
    }
    Ok(file)
}

/// The error of a file whose reading failed with `error`, Parquet's or Arrow's.
pub(crate) fn fault(path: &Path, error: &dyn Display) -> Error {
    let (path, reason) = (path.to_owned(), error.to_string());
    // Arrow's errors keep only the text of Parquet's.
    match reason.split_once("NYI: ") {
        Some((_, feature)) => Error::Unsupported {
            path,
            feature: format!("it uses a feature of Parquet that is not supported ({feature})"),
            remedy: "write it again, for example with pyarrow's defaults",
        },
        None => Error::Damaged { path, reason, remedy: "copy or download the file again" },
    }
}
