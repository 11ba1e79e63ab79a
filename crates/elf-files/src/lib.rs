//! Files that are whole or not there, and folders that one process at a time writes in.
//!
//! A file is written under another name beside its own, synced, and renamed: a killed process, a full disk or a loss of power
//! leaves what was there before. What a killed process leaves unfinished has a name that [`sweep`] knows.
//!
//! It deliberately knows no formats, and its errors are the system's: callers say which file was meant.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::Path;

use tempfile::{Builder, NamedTempFile, TempDir};

/// What every unfinished file's name begins and ends with.
const PREFIX: &str = ".elf-unfinished-";
const SUFFIX: &str = ".tmp";

/// Begins a file beside `target`, whose folder is made if it is not there. It is removed when dropped, and gets its name by
/// [`finish`].
///
/// # Errors
/// If the folder cannot be made or written in.
pub fn begin(target: &Path) -> io::Result<NamedTempFile> {
    let folder = folder_of(target);
    fs::create_dir_all(folder)?;
    let mut builder = Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX);
    // A temporary file is its owner's alone; this one is for others too, as far as the user's mask lets it.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}

/// Gives a finished file its name. It is synced first: a name must not survive a crash that its contents do not.
///
/// # Errors
/// If it cannot be synced or renamed; what was at `target` is still there then.
pub fn finish(file: NamedTempFile, target: &Path) -> io::Result<()> {
    // Whoever filled it may have replaced the file behind the name, so sync through a fresh handle.
    File::open(file.path())?.sync_all()?;
    file.persist(target).map(drop).map_err(|error| error.error)
}

/// Writes a file in one go. A pipe or a device, such as /dev/stdout, is written to itself.
///
/// # Errors
/// If anything fails; then `target` is as it was.
pub fn write(target: &Path, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    if is_special(target) {
        return fs::write(target, bytes);
    }
    let mut file = begin(target)?;
    file.write_all(bytes.as_ref())?;
    finish(file, target)
}

/// The same by a `fill` that is given the path to write to.
///
/// # Errors
/// As [`write()`].
pub fn write_with(target: &Path, fill: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    if is_special(target) {
        return fill(target);
    }
    let file = begin(target)?;
    fill(file.path())?;
    finish(file, target)
}

/// Begins a folder beside `target`, in a parent folder that is made if it is not there. It is removed when dropped, and gets its
/// name by [`finish_folder`].
///
/// # Errors
/// If the parent folder cannot be made or written in.
pub fn begin_folder(target: &Path) -> io::Result<TempDir> {
    let parent = folder_of(target);
    fs::create_dir_all(parent)?;
    Builder::new().prefix(PREFIX).suffix(SUFFIX).tempdir_in(parent)
}

/// Gives a finished folder its name, which nothing but an empty folder may have.
///
/// # Errors
/// If it cannot be renamed; then it is removed.
pub fn finish_folder(folder: TempDir, target: &Path) -> io::Result<()> {
    // A temporary folder is its owner's alone; this one is for others too.
    #[cfg(unix)]
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    fs::rename(folder.path(), target)?;
    // It has moved: nothing is left to remove under the old name.
    let _ = folder.keep();
    Ok(())
}

/// Removes files that killed processes left unfinished in `folder`, in which nobody else may be writing files.
///
/// # Errors
/// If the folder cannot be read, or a file in it cannot be removed.
pub fn sweep(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(PREFIX) && name.ends_with(SUFFIX) && entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Whether it is a pipe or a device: nothing can be written beside it, and a file renamed over it would replace it.
pub fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|there| !there.is_file() && !there.is_dir())
}

/// The folder of a file; of a bare name the one that the process is in.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Holds a folder until it is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct Held {
    file: File,
}

impl Held {
    /// Takes a folder, which is made if it is not there; `None` if another process holds it. Where the file system knows no locks,
    /// as some on networks, nobody can be kept out.
    ///
    /// # Errors
    /// If the folder cannot be made or written in.
    pub fn take(folder: &Path) -> io::Result<Option<Self>> {
        fs::create_dir_all(folder)?;
        let file = File::create(folder.join(".lock"))?;
        Ok(match file.try_lock() {
            Ok(()) | Err(TryLockError::Error(_)) => Some(Self { file }),
            Err(TryLockError::WouldBlock) => None,
        })
    }
}

impl Drop for Held {
    /// Closing is not enough: a program that is just being started has a copy of the handle for a moment.
    fn drop(&mut self) {
        let _ = self.file.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_the_new_one_or_the_old_one() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b.json");
        write(&path, "old").unwrap();
        write_with(&path, |aside| {
            assert_eq!(fs::read_to_string(&path).unwrap(), "old", "written aside");
            // As those do that write a file of their own and rename it.
            fs::remove_file(aside)?;
            fs::write(aside, "new")
        })
        .unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        let failed = write_with(&path, |aside| {
            fs::write(aside, "half")?;
            Err(io::Error::other("the disk is full"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "the disk is full");
        assert_eq!(
            (fs::read_to_string(&path).unwrap().as_str(), names(path.parent().unwrap())),
            ("new", vec!["b.json".into()])
        );
        assert!(write(root.path(), "a folder is no file").is_err());
    }

    #[test]
    fn a_folder_is_whole_or_not_there() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("a/model");
        let half = begin_folder(&target).unwrap();
        fs::write(half.path().join("part"), "").unwrap();
        drop(half);
        assert!(names(&root.path().join("a")).is_empty());
        let whole = begin_folder(&target).unwrap();
        fs::write(whole.path().join("part"), "").unwrap();
        finish_folder(whole, &target).unwrap();
        assert_eq!((names(&root.path().join("a")), names(&target)), (vec!["model".into()], vec!["part".into()]));
        finish_folder(begin_folder(&target).unwrap(), &target).unwrap_err();
        assert_eq!(names(&root.path().join("a")), ["model"]);
    }

    #[test]
    fn what_is_unfinished_is_swept() {
        let root = tempfile::tempdir().unwrap();
        let (_, killed) = begin(&root.path().join("x")).unwrap().keep().unwrap();
        write(&root.path().join("y"), "whole").unwrap();
        assert!(killed.exists());
        sweep(root.path()).unwrap();
        assert_eq!(names(root.path()), ["y"]);
    }

    #[cfg(unix)]
    #[test]
    fn files_are_for_others_and_devices_stay_devices() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let [ours, plain] = ["ours", "plain"].map(|name| root.path().join(name));
        write(&ours, "").unwrap();
        fs::write(&plain, "").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
        write(Path::new("/dev/null"), "gone").unwrap();
        write_with(Path::new("/dev/null"), |path| fs::write(path, "gone")).unwrap();
        assert!(is_special(Path::new("/dev/null")) && !is_special(&ours) && !is_special(root.path()));
    }

    #[test]
    fn a_folder_is_held_by_one() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a/b");
        let held = Held::take(&folder).unwrap().unwrap();
        assert!(Held::take(&folder).unwrap().is_none());
        assert!(Held::take(root.path()).unwrap().is_some());
        drop(held);
        assert!(Held::take(&folder).unwrap().is_some());
    }
}
