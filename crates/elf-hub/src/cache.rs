//! A repository's folder in the cache that all Hugging Face programs share.
//!
//! `blobs/HASH` holds contents, `snapshots/COMMIT/FILE` links to them, and `refs/REVISION` holds the commit that a branch pointed to.
//! A branch is updated only after all requested files have arrived, so that an interrupted update leaves the former state usable.
//! `listings/COMMIT.json`, an addition of this crate, lists the repository's files, so that offline use can distinguish a complete
//! copy from an incomplete one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo, Repo};

use crate::error::{Error, Result};
use crate::listing::{Listing, RemoteFile};
use crate::reference::is_commit;

pub(crate) struct RepositoryCache {
    cache: CacheRepo,
    root: PathBuf,
    locks: PathBuf,
}

impl RepositoryCache {
    pub fn new(folder: &Path, repo: &Repo) -> Self {
        let cache = Cache::new(folder.to_owned());
        Self {
            root: folder.join(repo.folder_name()),
            locks: folder.join(".locks").join(repo.folder_name()),
            cache: cache.repo(repo.clone()),
        }
    }

    /// The path of contents with this hash.
    pub fn blob(&self, hash: &str) -> PathBuf {
        self.cache.blob_path(hash)
    }

    /// The folder of a commit's files.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.cache.pointer_path(commit)
    }

    /// A file of a commit, if it exists with the right length.
    pub fn file(&self, commit: &str, file: &RemoteFile) -> Option<PathBuf> {
        let path = self.snapshot(commit).join(&file.path);
        let about = fs::metadata(&path).ok()?;
        (about.is_file() && file.size.is_none_or(|size| size == about.len())).then_some(path)
    }

    /// The commit that a revision pointed to when it was last fetched.
    pub fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_ascii_lowercase());
        }
        let commit = fs::read_to_string(self.root.join("refs").join(revision)).ok()?;
        Some(commit.trim().to_ascii_lowercase()).filter(|c| is_commit(c))
    }

    /// Stores the commit that a revision points to.
    pub fn set_commit_of(&self, revision: &str, commit: &str) -> Result<()> {
        if is_commit(revision) || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        elf_files::write(&path, commit).map_err(Error::disk("write", &path))
    }

    /// The files of a commit: as this crate noted them, or else those in the cache.
    pub fn listing(&self, commit: &str) -> Option<Listing> {
        if let Some(listing) = self.noted_listing(commit) {
            return Some(listing);
        }
        let snapshot = self.snapshot(commit);
        let mut files = Vec::new();
        walk(&snapshot, "", &mut files).ok()?;
        (!files.is_empty()).then(|| Listing { commit: commit.to_owned(), files })
    }

    /// The files of a commit, if this crate has fetched from it.
    pub fn noted_listing(&self, commit: &str) -> Option<Listing> {
        let noted = fs::read(self.root.join("listings").join(format!("{commit}.json"))).ok()?;
        let listing: Listing = serde_json::from_slice(&noted).ok()?;
        // Other programs may write here: paths that lead out of the folder are refused.
        let safe = listing.commit == commit && listing.files.iter().all(|f| crate::reference::is_inner_path(&f.path));
        safe.then_some(listing)
    }

    /// Notes the files of a commit.
    pub fn note_listing(&self, listing: &Listing) -> Result<()> {
        let path = self.root.join("listings").join(format!("{}.json", listing.commit));
        let json = serde_json::to_vec(listing).map_err(|e| Error::disk("write", &path)(e.into()))?;
        elf_files::write(&path, &json).map_err(Error::disk("write", &path))
    }

    /// A lock on the content of that name against other processes, this program's and Python's, until it is dropped.
    pub fn lock(&self, name: &str) -> Result<File> {
        fs::create_dir_all(&self.locks).map_err(Error::disk("make the folder", &self.locks))?;
        let path = self.locks.join(format!("{name}.lock"));
        let file =
            File::options().create(true).truncate(false).write(true).open(&path).map_err(Error::disk("open", &path))?;
        file.lock().map_err(Error::disk("lock", &path))?;
        Ok(file)
    }

    /// Links `snapshots/COMMIT/FILE` to a blob.
    pub fn link(&self, commit: &str, file: &str, blob: &Path) -> Result<PathBuf> {
        let path = self.snapshot(commit).join(file);
        let folder = path.parent().unwrap_or(&path).to_owned();
        fs::create_dir_all(&folder).map_err(Error::disk("make the folder", &folder))?;
        // An existing file has other contents, or is a link whose target was removed.
        let _ = fs::remove_file(&path);
        let up = "../".repeat(2 + file.matches('/').count());
        let target = Path::new(&up).join("blobs").join(blob.file_name().unwrap_or_default());
        let made = link_or_copy(&target, blob, &path);
        match made {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(path),
            Err(e) => Err(Error::disk("write", &path)(e)),
            Ok(()) => Ok(path),
        }
    }
}

#[cfg(unix)]
fn link_or_copy(target: &Path, _blob: &Path, path: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

#[cfg(not(unix))]
fn link_or_copy(_target: &Path, blob: &Path, path: &Path) -> std::io::Result<()> {
    // Symbolic links need privileges there that users seldom have.
    fs::hard_link(blob, path).or_else(|_| fs::copy(blob, path).map(drop))
}

fn walk(folder: &Path, prefix: &str, files: &mut Vec<RemoteFile>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = format!("{prefix}{name}");
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), &format!("{path}/"), files)?;
        } else if let Ok(about) = fs::metadata(entry.path()) {
            files.push(RemoteFile { path, size: Some(about.len()), hash: None });
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(())
}
