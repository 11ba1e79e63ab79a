//! Fetching references into the cache.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder};
use hf_hub::{Cache, Repo, RepoType};

use crate::cache::RepositoryCache;
use crate::error::{Error, Result};
use crate::listing::{Listing, RemoteFile};
use crate::reference::Reference;
use crate::selection::{Selection, What, select};
use crate::settings::Settings;
use crate::transfer::{Request, Step, Transfer, name_hash};

/// Progress of a fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The number of files and bytes to download. Not sent if all files are in the cache.
    Planned {
        /// The requested reference.
        reference: &'a Reference,
        /// Files.
        files: usize,
        /// Bytes, as far as sizes are known.
        bytes: u64,
    },
    /// A file's number of bytes. The first event of a file includes the bytes of an earlier attempt.
    Progress {
        /// Its name in the repository.
        file: &'a str,
        /// Bytes that have arrived.
        at: u64,
        /// Size in bytes, if known.
        size: Option<u64>,
    },
    /// An attempt failed; another one follows after a wait.
    Waiting {
        /// The reason.
        why: &'a str,
        /// The length of the wait.
        wait: Duration,
    },
    /// The reference names a checkpoint for JAX; the repository with the same model for PyTorch is fetched instead.
    Sibling {
        /// The requested reference.
        reference: &'a Reference,
        /// The reference that is fetched.
        sibling: &'a Reference,
    },
    /// The hub cannot be reached; an earlier copy is used.
    FromCache {
        /// The requested reference.
        reference: &'a Reference,
        /// The reason.
        why: &'a str,
    },
}

type Listener = Box<dyn Fn(&Event) + Send + Sync>;

/// Fetches from a hub into the cache.
pub struct Fetcher {
    settings: Settings,
    api: Api,
    transfer: Transfer,
    listener: Listener,
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetcher").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Fetcher {
    /// A fetcher without a listener. It opens no connection yet.
    ///
    /// # Errors
    /// If the endpoint is not an address.
    pub fn new(settings: Settings) -> Result<Self> {
        let odd = |value: &str| Error::Setting {
            name: "HF_ENDPOINT",
            value: value.to_owned(),
            why: "it must be the address of a hub",
        };
        let mut builder = ApiBuilder::from_cache(Cache::new(settings.cache.clone())).with_token(settings.token.clone());
        if let Some(endpoint) = &settings.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        let given = settings.endpoint.clone().unwrap_or_default();
        let api = builder.build().map_err(|_| odd(&given))?;
        // `hf-hub` exposes the address only as the beginning of a URL.
        let some = api.model("name".to_owned()).url("file");
        let endpoint = some.strip_suffix("/name/resolve/main/file").ok_or_else(|| odd(&given))?.to_owned();
        if endpoint.parse::<ureq::http::Uri>().map_or(true, |u| u.host().is_none_or(str::is_empty)) {
            return Err(odd(&given));
        }
        Ok(Self { transfer: Transfer::new(&settings, endpoint), api, settings, listener: Box::new(|_| {}) })
    }

    /// The fetcher with a listener, which is called on the thread that fetches.
    #[must_use]
    pub fn with_listener(mut self, listener: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.listener = Box::new(listener);
        self
    }

    /// The hub's address.
    pub fn endpoint(&self) -> &str {
        self.transfer.endpoint()
    }

    /// The local path of that name if it exists, or else the hub's files under that id.
    ///
    /// # Errors
    /// If it is neither; the message includes the hub's refusal.
    pub fn locate(&self, text: &str, what: What) -> Result<PathBuf> {
        let path = Path::new(text);
        if path.exists() {
            return Ok(path.to_owned());
        }
        Reference::parse(text)
            .and_then(|reference| self.fetch(&reference, what))
            .map_err(|source| Error::NeitherPathNorId { text: text.to_owned(), source: Box::new(source) })
    }

    /// Downloads the files of a repository that `what` needs, unless they are in the cache, and returns their folder or
    /// file.
    ///
    /// A branch is looked up every time, a commit that is complete in the cache never. If the hub cannot be reached and the
    /// cache holds a complete earlier copy, the copy is used, and the listener gets an event. A checkpoint for JAX is replaced by
    /// its PyTorch sibling, if the hub has it.
    ///
    /// # Errors
    /// If the hub refuses or lacks it, cannot be reached, or the disk is full. An incomplete file never has its final name.
    pub fn fetch(&self, reference: &Reference, what: What) -> Result<PathBuf> {
        let error = match self.fetch_exactly(reference, what) {
            Err(error @ Error::JaxCheckpoint { sibling: Some(_), .. }) => error,
            other => return other,
        };
        let Error::JaxCheckpoint { sibling: Some(id), .. } = &error else { return Err(error) };
        let sibling = reference.file().map_or_else(|| id.clone(), |file| format!("{id}:{file}"));
        let Ok(sibling) = Reference::parse(&sibling) else { return Err(error) };
        (self.listener)(&Event::Sibling { reference, sibling: &sibling });
        match self.fetch_exactly(&sibling, what) {
            // The refusal of the requested checkpoint says more than a missing sibling.
            Err(Error::NotFound { .. } | Error::Denied { .. } | Error::Offline { .. }) => Err(error),
            other => other,
        }
    }

    fn fetch_exactly(&self, reference: &Reference, what: What) -> Result<PathBuf> {
        let repository = Repository::new(self, reference, what);
        if self.settings.offline {
            return repository
                .cached()?
                .ok_or_else(|| Error::Offline { what: reference.to_string(), cache: self.settings.cache.clone() });
        }
        if reference.names_commit()
            && let Ok(Some(path)) = repository.cached()
        {
            return Ok(path);
        }
        let listing = match repository.ask() {
            Ok(listing) => listing,
            Err(error) if error.is_about_the_way() => {
                let Ok(Some(path)) = repository.cached() else { return Err(error) };
                (self.listener)(&Event::FromCache { reference, why: &error.brief() });
                return Ok(path);
            }
            Err(error) => return Err(error),
        };
        repository.bring(&listing)
    }
}

/// A repository that is fetched for one purpose.
struct Repository<'a> {
    fetcher: &'a Fetcher,
    reference: &'a Reference,
    what: What,
    cache: RepositoryCache,
}

impl<'a> Repository<'a> {
    fn new(fetcher: &'a Fetcher, reference: &'a Reference, what: What) -> Self {
        let cache = RepositoryCache::new(&fetcher.settings.cache, &repo(reference, what, reference.revision()));
        Self { fetcher, reference, what, cache }
    }

    /// The result, if the cache holds all files.
    fn cached(&self) -> Result<Option<PathBuf>> {
        let Some(listing) = self.cache.commit_of(self.reference.revision()).and_then(|c| self.cache.listing(&c)) else {
            return Ok(None);
        };
        let missing =
            || Error::Offline { what: self.reference.to_string(), cache: self.fetcher.settings.cache.clone() };
        let mut local = |file: &RemoteFile| self.cache.file(&listing.commit, file).ok_or_else(missing);
        let selection = match select(self.what, self.reference, &listing, &mut local) {
            // Without a listing from the hub, missing files may be missing only in the cache.
            Err(Error::Lacks { .. }) if self.cache.noted_listing(&listing.commit).is_none() => return Ok(None),
            other => other?,
        };
        let whole = selection.files.iter().all(|f| self.cache.file(&listing.commit, f).is_some());
        Ok(whole.then(|| self.result(&listing, &selection)))
    }

    /// The hub's current listing.
    fn ask(&self) -> Result<Listing> {
        let url = self.fetcher.api.repo(repo(self.reference, self.what, self.reference.revision())).info_request();
        let protocol = |why| Error::Protocol {
            what: self.reference.to_string(),
            endpoint: self.fetcher.endpoint().to_owned(),
            why,
        };
        let Some(url) = url.uri_ref() else {
            return Err(protocol("its address cannot be used".to_owned()));
        };
        let name = format!("{}@{}", self.reference.id(), self.reference.revision());
        // `blobs` requests sizes and hashes.
        let request = Request { url: &format!("{url}?blobs=true"), what: &name, kind: self.what.repository_kind() };
        let answer = self.fetcher.transfer.answer(&request, &mut |step| self.tell("", None, step))?;
        Listing::from_answer(&answer).map_err(protocol)
    }

    /// Downloads missing files, and updates the branch.
    fn bring(&self, listing: &Listing) -> Result<PathBuf> {
        let selection = select(self.what, self.reference, listing, &mut |file| self.bring_file(listing, file))?;
        let missing: Vec<&RemoteFile> =
            selection.files.iter().filter(|f| self.cache.file(&listing.commit, f).is_none()).collect();
        if !missing.is_empty() {
            let bytes = missing.iter().filter_map(|f| f.size).sum();
            (self.fetcher.listener)(&Event::Planned { reference: self.reference, files: missing.len(), bytes });
        }
        for file in missing {
            self.bring_file(listing, file)?;
        }
        self.cache.note_listing(listing)?;
        self.cache.set_commit_of(self.reference.revision(), &listing.commit)?;
        Ok(self.result(listing, &selection))
    }

    fn bring_file(&self, listing: &Listing, file: &RemoteFile) -> Result<PathBuf> {
        let there = || self.cache.file(&listing.commit, file);
        if let Some(path) = there() {
            return Ok(path);
        }
        // Files without a listed hash are named by their origin until they are complete.
        let name = file
            .hash
            .as_ref()
            .map_or_else(|| name_hash(&format!("{}/{}", listing.commit, file.path)), |h| h.hex().to_owned());
        let _lock = self.cache.lock(&name)?;
        if let Some(path) = there() {
            return Ok(path);
        }
        let known = file.hash.as_ref().map(|_| self.cache.blob(&name));
        // The same content of another commit.
        if let Some(blob) = known.filter(|b| b.metadata().is_ok_and(|m| file.size.is_none_or(|size| size == m.len()))) {
            return self.cache.link(&listing.commit, &file.path, &blob);
        }
        let partial = self.cache.blob(&format!("{name}.incomplete"));
        let folder = partial.parent().unwrap_or(&partial);
        std::fs::create_dir_all(folder).map_err(Error::disk("make the folder", folder))?;
        // By commit, so that all files belong together even if the branch moves meanwhile.
        let url =
            self.fetcher.api.repo(repo(self.reference, self.what, &listing.commit)).url(&percent_encoded(&file.path));
        let what = format!("{}:{}", self.reference.id(), file.path);
        let request = Request { url: &url, what: &what, kind: self.what.repository_kind() };
        let hash = self
            .fetcher
            .transfer
            .download(&request, file, &partial, &mut |step| self.tell(&file.path, file.size, step))?;
        let blob = self.cache.blob(&hash);
        std::fs::rename(&partial, &blob).map_err(Error::disk("rename a file to", &blob))?;
        self.cache.link(&listing.commit, &file.path, &blob)
    }

    fn tell(&self, file: &str, size: Option<u64>, step: Step) {
        match step {
            Step::At(at) => (self.fetcher.listener)(&Event::Progress { file, at, size }),
            Step::Wait { why, wait } => (self.fetcher.listener)(&Event::Waiting { why: &why, wait }),
        }
    }

    fn result(&self, listing: &Listing, selection: &Selection) -> PathBuf {
        let root = self.cache.snapshot(&listing.commit);
        if selection.result.is_empty() { root } else { root.join(&selection.result) }
    }
}

fn repo(reference: &Reference, what: What, revision: &str) -> Repo {
    let kind = if what == What::Dataset { RepoType::Dataset } else { RepoType::Model };
    Repo::with_revision(reference.id().to_owned(), kind, revision.to_owned())
}

/// A path within a URL; `/` stays.
fn percent_encoded(path: &str) -> String {
    path.bytes().fold(String::new(), |mut out, b| {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => out.push(b.into()),
            _ => out.push_str(&format!("%{b:02X}")),
        }
        out
    })
}
