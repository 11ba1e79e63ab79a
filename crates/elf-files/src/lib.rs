//! Files that are whole or absent, folders that one process at a time writes in, and [`lines`] of text files.
//!
//! A file is written under a temporary name in its folder, synced, and renamed: a killed process, a full disk or a loss of power
//! leaves the former file in place. [`sweep`] removes the unfinished files of killed processes.
//!
//! The crate deliberately does not know what is in the files. Errors of writing are the system's; callers add the file's name.

pub mod lines;

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::path::Path;

use tempfile::{Builder, NamedTempFile, TempDir};

/// The first and the last part of every unfinished file's name.
const PREFIX: &str = ".elf-unfinished-";
const SUFFIX: &str = ".tmp";

/// The end of a message about a Git LFS pointer, after the file's name.
pub const LFS_POINTER_REMEDY: &str =
    "is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository, or download the file";

/// Whether a file with these first bytes is a Git LFS pointer: a short text in place of a large file.
pub fn is_lfs_pointer(beginning: &[u8]) -> bool {
    beginning.starts_with(b"version https://git-lfs.github.com/spec/")
}

/// A builder of temporary files and folders with the permissions of ordinary ones, which follow the user's mask.
fn builder(mode: u32) -> Builder<'static, 'static> {
    let mut builder = Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    let _ = mode;
    builder
}

/// Begins a file in the folder of `target`, which is created if it does not exist; elsewhere for a pipe or a device. The file is removed when dropped; [`finish`]
/// gives it its name.
///
/// # Errors
/// If the folder cannot be created or written in.
pub fn begin(target: &Path) -> io::Result<NamedTempFile> {
    if is_special(target) {
        return builder(0o666).tempfile();
    }
    let folder = folder_of(target);
    fs::create_dir_all(folder)?;
    builder(0o666).tempfile_in(folder)
}

/// Gives a finished file its name. It is synced first, so that no name survives a crash without its content.
///
/// # Errors
/// If the file cannot be synced or renamed; then `target` is unchanged.
pub fn finish(file: NamedTempFile, target: &Path) -> io::Result<()> {
    if is_special(target) {
        return io::copy(&mut File::open(file.path())?, &mut open_special(target)?).map(drop);
    }
    // Some libraries fill a file by replacing it with one of their own, which may have other permissions: sync through a new
    // handle, and restore the permissions that follow the user's mask.
    let filled = File::open(file.path())?;
    restore(&filled, file.as_file().metadata()?.permissions())?;
    filled.sync_all()?;
    file.persist(target).map(drop).map_err(|error| error.error)
}

fn restore(file: &File, permissions: Permissions) -> io::Result<()> {
    if file.metadata()?.permissions() == permissions { Ok(()) } else { file.set_permissions(permissions) }
}

/// Writes a whole file. A pipe or a device, such as /dev/stdout, is written directly: what was written to it before stays.
///
/// # Errors
/// If a step fails; then `target` is unchanged.
pub fn write(target: &Path, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    if is_special(target) {
        return open_special(target)?.write_all(bytes.as_ref());
    }
    let mut file = begin(target)?;
    file.write_all(bytes.as_ref())?;
    finish(file, target)
}

/// Writes a whole file by `fill`, which gets the temporary path to write to.
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

/// Begins a folder in the parent folder of `target`, which is created if it does not exist. The folder is removed when dropped;
/// [`finish_folder`] gives it its name.
///
/// # Errors
/// If the parent folder cannot be created or written in.
pub fn begin_folder(target: &Path) -> io::Result<TempDir> {
    let parent = folder_of(target);
    fs::create_dir_all(parent)?;
    builder(0o777).tempdir_in(parent)
}

/// Gives a finished folder its name. `target` must not exist, or be an empty folder.
///
/// # Errors
/// If the folder cannot be renamed; then it is removed.
pub fn finish_folder(folder: TempDir, target: &Path) -> io::Result<()> {
    fs::rename(folder.path(), target)?;
    // Nothing is left to remove under the old name.
    let _ = folder.keep();
    Ok(())
}

/// Removes the unfinished files of killed processes from `folder`. No other process may be writing files there.
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

/// Whether `path` is a pipe or a device, or stands for a file that the process has open, as /dev/stdout does: it must be written
/// directly, because a renamed file would replace it.
pub fn is_special(path: &Path) -> bool {
    let in_proc = |path: &Path| path.starts_with("/proc");
    fs::metadata(path).is_ok_and(|there| !there.is_file() && !there.is_dir())
        || fs::read_link(path).is_ok_and(|open| in_proc(&open))
        || folder_of(path).canonicalize().is_ok_and(|folder| in_proc(&folder))
}

/// Opens what [`is_special`], to write behind what was written to it before. Standard output is not opened anew: a file behind it
/// would have two places to write at.
fn open_special(target: &Path) -> io::Result<File> {
    #[cfg(unix)]
    if ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"].iter().any(|name| target == Path::new(name)) {
        return std::os::fd::AsFd::as_fd(&io::stdout()).try_clone_to_owned().map(File::from);
    }
    OpenOptions::new().append(true).open(target)
}

/// Whether both paths lead to the same file or folder, by whatever names and links. What does not exist is the same as nothing.
pub fn is_same(one: &Path, other: &Path) -> bool {
    same_file::is_same_file(one, other).unwrap_or(false)
}

/// The folder of a file; the current folder for a bare name.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A lock on a folder, held until it is dropped or the process ends.
#[derive(Debug)]
pub struct Held {
    file: File,
}

impl Held {
    /// Locks a folder, which is created if it does not exist; `None` if another process holds it. File systems without locks, as
    /// some on networks, keep no process out.
    ///
    /// # Errors
    /// If the folder cannot be created or written in.
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
    /// Closing the file is not enough: a child process that is just being started holds a copy of the handle for a moment.
    fn drop(&mut self) {
        let _ = self.file.unlock();
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

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
            assert_eq!(fs::read_to_string(&path).unwrap(), "old", "written under another name");
            // As libraries do that write their own file and rename it.
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
    fn permissions_are_those_of_ordinary_files_and_folders() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        let mode = |name: &str| fs::metadata(at(name)).unwrap().permissions().mode();
        fs::write(at("plain"), "").unwrap();
        write(&at("whole"), "").unwrap();
        write_with(&at("in place"), |path| fs::write(path, "filled")).unwrap();
        // As the safetensors library does: its own temporary file, readable by the owner alone, is renamed over the path.
        let replaced = |path: &Path| {
            let own = NamedTempFile::new_in(root.path())?;
            assert_eq!(own.as_file().metadata()?.permissions().mode() & 0o077, 0);
            own.persist(path).map(drop).map_err(|e| e.error)
        };
        write_with(&at("replaced"), replaced).unwrap();
        let file = begin(&at("begun")).unwrap();
        finish(file, &at("begun")).unwrap();
        for name in ["whole", "in place", "replaced", "begun"] {
            assert_eq!(mode(name), mode("plain"), "{name}");
        }
        fs::create_dir(at("plain folder")).unwrap();
        finish_folder(begin_folder(&at("folder")).unwrap(), &at("folder")).unwrap();
        assert_eq!(mode("folder"), mode("plain folder"));
    }

    #[cfg(unix)]
    #[test]
    fn devices_stay_devices() {
        let root = tempfile::tempdir().unwrap();
        let ours = root.path().join("ours");
        write(&ours, "").unwrap();
        write(Path::new("/dev/null"), "gone").unwrap();
        write_with(Path::new("/dev/null"), |path| fs::write(path, "gone")).unwrap();
        assert!(is_special(Path::new("/dev/null")) && !is_special(&ours) && !is_special(root.path()));
        // A descriptor that leads to an ordinary file: the link stays, and so does what was written before.
        fs::write(&ours, "before").unwrap();
        let open = OpenOptions::new().append(true).open(&ours).unwrap();
        let link = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&open)));
        if link.exists() {
            assert!(is_special(&link));
            write(&link, " after").unwrap();
            let mut begun = begin(&link).unwrap();
            begun.write_all(b" all").unwrap();
            finish(begun, &link).unwrap();
            assert_eq!(fs::read_to_string(&ours).unwrap(), "before after all");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_file_is_the_same_by_any_name() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::write(at("file"), "").unwrap();
        fs::create_dir(at("folder")).unwrap();
        fs::hard_link(at("file"), at("hard")).unwrap();
        std::os::unix::fs::symlink("file", at("soft")).unwrap();
        std::os::unix::fs::symlink("folder", at("way")).unwrap();
        for name in ["file", "./file", "folder/../file", "way/../file", "hard", "soft"] {
            assert!(is_same(&at("file"), &at(name)), "{name}");
        }
        assert!(is_same(&at("way"), &at("folder/")));
        fs::write(at("other"), "").unwrap();
        for name in ["other", "folder", "none"] {
            assert!(!is_same(&at("file"), &at(name)), "{name}");
        }
        assert!(!is_same(&at("none"), &at("none")));
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
