//! Keys that clients must have.

use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use axum::http::{HeaderMap, header};

use crate::Result;
use crate::error::{Context, fail};

/// Largest file of keys, in bytes.
const LARGEST_FILE: u64 = 1 << 20;

/// Keys that clients must have, one of them each. Only their hashes are kept.
#[derive(Debug)]
pub struct ApiKeys {
    path: PathBuf,
    hashes: RwLock<Vec<blake3::Hash>>,
}

impl ApiKeys {
    /// Reads a file of keys: one per line; empty lines and lines that begin with `#` are skipped.
    ///
    /// # Errors
    /// If it cannot be read, has no key, or a line cannot be sent in a header. No message has a key.
    pub fn read(path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_owned(), hashes: RwLock::new(hashes(path)?) })
    }

    /// Reads the file again. If that fails, the keys stay as they were.
    ///
    /// # Errors
    /// As [`ApiKeys::read`].
    pub fn reread(&self) -> Result<()> {
        let hashes = hashes(&self.path)?;
        *self.hashes.write().unwrap_or_else(PoisonError::into_inner) = hashes;
        Ok(())
    }

    /// Whether a request has one of the keys, as `Authorization: Bearer KEY`.
    pub fn admit(&self, headers: &HeaderMap) -> bool {
        let Some(key) = headers.get(header::AUTHORIZATION).and_then(|value| bearer(value.as_bytes())) else {
            return false;
        };
        let given = blake3::hash(key);
        let hashes = self.hashes.read().unwrap_or_else(PoisonError::into_inner);
        // The time of the check must not depend on the keys: each comparison takes constant time, and all are made.
        hashes.iter().fold(false, |found, hash| found | (*hash == given))
    }
}

/// The key in the value of `Authorization`. The name of the scheme may be in either case.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked("bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

fn hashes(path: &Path) -> Result<Vec<blake3::Hash>> {
    let origin = path.display();
    let size = std::fs::metadata(path).with_context(|| format!("cannot read the keys {origin}"))?.len();
    if size > LARGEST_FILE {
        fail!(place(path), "{origin} has {size} bytes: a file of keys can have at most {LARGEST_FILE}");
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the keys {origin}"))?;
    let mut hashes = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let key = line.trim();
        if key.is_empty() || key.starts_with('#') {
            continue;
        }
        if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            fail!(
                place(path),
                "line {} of {origin} has a character that a header cannot have: a key has letters, digits and signs of ASCII",
                number + 1
            );
        }
        hashes.push(blake3::hash(key.as_bytes()));
    }
    match hashes.is_empty() {
        true => fail!(place(path), "{origin} has no key: nobody could use the server. Write one key per line"),
        false => Ok(hashes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(keys: &ApiKeys, value: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        keys.admit(&headers)
    }

    #[test]
    fn every_key_of_the_file_opens_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, "# of Ann\n one-key \n\nanother-key\r\n").unwrap();
        let keys = ApiKeys::read(&path).unwrap();
        assert!(!keys.admit(&HeaderMap::new()));
        for value in ["Bearer one-key", "bearer another-key", "Bearer  one-key"] {
            assert!(admitted(&keys, value), "{value}");
        }
        for value in
            ["Bearer one-ke", "Bearer one-keys", "Bearer # of Ann", "Bearer ", "Bearer", "one-key", "Basic one-key"]
        {
            assert!(!admitted(&keys, value), "{value}");
        }
        assert!(!format!("{keys:?}").contains("one-key"));

        std::fs::write(&path, "third-key\n").unwrap();
        keys.reread().unwrap();
        assert!(admitted(&keys, "Bearer third-key") && !admitted(&keys, "Bearer one-key"));
        for (text, words) in [("# none\n", "has no key"), ("secret\nkey of two words\n", "line 2")] {
            std::fs::write(&path, text).unwrap();
            let message = keys.reread().unwrap_err().to_string();
            assert!(message.contains(words) && !message.contains("secret"), "{message}");
            assert!(admitted(&keys, "Bearer third-key"), "the keys stay as they were");
        }
    }
}
