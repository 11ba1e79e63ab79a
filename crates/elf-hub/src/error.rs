//! Errors, in words for the user who typed an id.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something could not be fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text cannot be an id.
    #[error("`{text}` is no Hugging Face id (org/name, org/name@revision, org/name:file): {why}")]
    NoReference {
        /// What was written.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// No local file has that name, and the hub does not provide it.
    #[error("there is no local file or folder `{text}`, and as a Hugging Face id it fails")]
    NeitherPathNorId {
        /// What was written.
        text: String,
        /// The hub's refusal.
        source: Box<Error>,
    },
    /// 401 or 403.
    #[error("{what}: the hub refuses access (HTTP {status}); {remedy}")]
    Denied {
        /// What was asked for.
        what: String,
        /// The answer.
        status: u16,
        /// The remedy, which depends on whether a token was sent.
        remedy: &'static str,
    },
    /// 404.
    #[error(
        "{what}: the hub has no such thing (HTTP 404); check the spelling of name, revision and file, and that it is a {kind} repository"
    )]
    NotFound {
        /// What was asked for.
        what: String,
        /// `model` or `dataset`.
        kind: &'static str,
    },
    /// A checkpoint for another framework.
    #[error(
        "{what} holds a JAX checkpoint (Orbax: {marker}), which is not read here; {}",
        match .sibling {
            Some(id) => format!("the models that are published for PyTorch, too, are in a repository of their own: take {id}"),
            None => "take a PyTorch or safetensors checkpoint of the model".to_owned(),
        }
    )]
    JaxCheckpoint {
        /// What was asked for.
        what: String,
        /// The file that identifies it.
        marker: String,
        /// The repository of the same model for PyTorch, by the ELF authors' naming.
        sibling: Option<String>,
    },
    /// 429, and waiting did not help or would exceed the limit.
    #[error("{what}: the hub allows no more requests for now (HTTP 429); try again in {}, or set HF_TOKEN, which raises the limit", wait(*.after))]
    RateLimited {
        /// What was asked for.
        what: String,
        /// The server's waiting time, if it states one.
        after: Option<Duration>,
    },
    /// Another unexpected answer after all attempts.
    #[error("{what}: the hub answered HTTP {status}; try again later")]
    Status {
        /// What was asked for.
        what: String,
        /// The answer.
        status: u16,
    },
    /// No connection, or a connection that broke too often.
    #[error(
        "{what}: {endpoint} cannot be reached or does not answer: check the network, the proxy and HF_ENDPOINT, or set HF_HUB_OFFLINE=1 to use only what is cached; what has arrived is kept, and the next attempt goes on from there"
    )]
    Network {
        /// What was asked for.
        what: String,
        /// Where.
        endpoint: String,
        /// The last attempt's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Offline, and not complete in the cache.
    #[error("{what} is not (wholly) in the cache {}, and HF_HUB_OFFLINE forbids to download it: unset it, or run `elf pull` where there is a network", .cache.display())]
    Offline {
        /// What was asked for.
        what: String,
        /// The cache's folder.
        cache: PathBuf,
    },
    /// The answer's length contradicts the listing.
    #[error(
        "{what}: {got} bytes were offered or sent instead of {expected}; nothing was kept: try again, and look at HF_ENDPOINT or the proxy if it happens again"
    )]
    WrongLength {
        /// What was asked for.
        what: String,
        /// Bytes by the repository's listing.
        expected: u64,
        /// Bytes of the answer.
        got: u64,
    },
    /// The content's hash contradicts the listing.
    #[error("{what}: what arrived is damaged (hash {got} instead of {expected}); nothing was kept: try again")]
    WrongContent {
        /// What was asked for.
        what: String,
        /// Hash by the repository's listing.
        expected: String,
        /// Hash of what arrived.
        got: String,
    },
    /// The server does not answer like a hub.
    #[error("{what}: {endpoint} does not answer like a Hugging Face hub ({why}): check HF_ENDPOINT")]
    Protocol {
        /// What was asked for.
        what: String,
        /// Where.
        endpoint: String,
        /// The fault of the answer.
        why: String,
    },
    /// The repository lacks a file that is needed.
    #[error("{what} has no {missing}; {remedy}")]
    Lacks {
        /// The repository.
        what: String,
        /// The missing file.
        missing: String,
        /// The files that it has, and the remedy.
        remedy: String,
    },
    /// A setting that cannot be used.
    #[error("{name}={value} cannot be used: {why}")]
    Setting {
        /// The environment variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        why: &'static str,
    },
    /// A failure of the local disk.
    #[error("cannot {action} {}: is there room on the disk, and may you write there? (HF_HUB_CACHE sets the cache's place)", .path.display())]
    Disk {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn disk(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Disk { action, path, source }
    }

    /// What happened, without the advice that is only due once all attempts have failed.
    pub(crate) fn brief(&self) -> String {
        match self {
            Self::Network { what, source, .. } => format!("{what}: {source}"),
            Self::RateLimited { what, .. } => format!("{what}: the hub allows no more requests for now (HTTP 429)"),
            Self::Status { what, status } => format!("{what}: the hub answered HTTP {status}"),
            other => other.to_string(),
        }
    }

    /// Whether this is about the way to the hub, not about what was asked for.
    pub(crate) fn is_about_the_way(&self) -> bool {
        matches!(self, Self::Network { .. } | Self::RateLimited { .. } | Self::Status { status: 500.., .. })
    }
}

fn wait(after: Option<Duration>) -> String {
    after.map_or("a while".to_owned(), |d| format!("{} s", d.as_secs().max(1)))
}
