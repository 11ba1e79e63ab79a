//! The files of a repository at one commit, as the hub lists them.

use serde::{Deserialize, Serialize};

use crate::reference::{is_commit, is_inner_path};

/// One file of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RemoteFile {
    /// Path relative to the repository, with `/`.
    pub path: String,
    /// Size in bytes, if known.
    pub size: Option<u64>,
    /// Hash of the content, if known.
    pub hash: Option<ContentHash>,
}

/// The two kinds of hashes that the hub lists, lower-case hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ContentHash {
    /// SHA-256 of the content, for large files.
    Sha256(String),
    /// The git blob's id, for all other files.
    GitBlob(String),
}

impl ContentHash {
    /// The digits, which name the file in the cache.
    pub fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitBlob(hex) => hex,
        }
    }
}

/// A repository at a commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Listing {
    /// The commit, forty hexadecimal digits.
    pub commit: String,
    /// Its files.
    pub files: Vec<RemoteFile>,
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<LargeFile>,
}

#[derive(Deserialize)]
struct LargeFile {
    sha256: Option<String>,
    size: Option<u64>,
}

impl Listing {
    /// Reads the hub's answer about a repository. Files whose paths lead out of a folder are left out.
    ///
    /// # Errors
    /// The reason why the text is no such answer.
    pub fn from_answer(json: &[u8]) -> Result<Self, String> {
        let info: Info =
            serde_json::from_slice(json).map_err(|e| format!("its answer is no description of a repository: {e}"))?;
        // The commit becomes the name of a folder.
        if !is_commit(&info.sha) {
            return Err(format!("`{}` is no commit", info.sha.escape_debug()));
        }
        let hex = |text: String, digits: usize| {
            (text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit())).then(|| text.to_ascii_lowercase())
        };
        let files = info.siblings.into_iter().filter(|s| is_inner_path(&s.rfilename)).map(|s| {
            let (large_size, sha256) = s.lfs.map_or((None, None), |l| (l.size, l.sha256));
            let hash = sha256.and_then(|h| hex(h, 64)).map(ContentHash::Sha256);
            RemoteFile {
                path: s.rfilename,
                // A large file's blob in git is only a pointer to it.
                size: large_size.or(s.size),
                hash: hash.or_else(|| {
                    s.blob_id.filter(|_| large_size.is_none()).and_then(|h| hex(h, 40)).map(ContentHash::GitBlob)
                }),
            }
        });
        Ok(Self { files: files.collect(), commit: info.sha.to_ascii_lowercase() })
    }

    /// The file of that name.
    pub fn get(&self, path: &str) -> Option<&RemoteFile> {
        self.files.iter().find(|f| f.path == path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_and_sizes_come_from_the_right_place_and_escaping_names_are_left_out() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let sha = "a".repeat(64);
        let answer = serde_json::json!({"sha": commit, "id": "x", "siblings": [
            {"rfilename": "config.json", "size": 10, "blobId": commit},
            {"rfilename": "model.safetensors", "size": 130, "blobId": commit, "lfs": {"sha256": sha, "size": 9000, "pointerSize": 130}},
            {"rfilename": "../../.ssh/authorized_keys"},
            {"rfilename": "/etc/passwd"},
            {"rfilename": "bare.txt", "blobId": "../../x"},
        ]});
        let listing = Listing::from_answer(answer.to_string().as_bytes()).unwrap();
        assert_eq!(listing.files.len(), 3);
        assert_eq!(listing.get("config.json").unwrap().hash, Some(ContentHash::GitBlob(commit.to_owned())));
        let model = listing.get("model.safetensors").unwrap();
        assert_eq!((model.size, &model.hash), (Some(9000), &Some(ContentHash::Sha256(sha))));
        assert_eq!(listing.get("bare.txt").unwrap().hash, None);
        assert!(Listing::from_answer(br#"{"sha": "../x", "siblings": []}"#).unwrap_err().contains("commit"));
        assert!(Listing::from_answer(b"<html>").is_err());
    }
}
