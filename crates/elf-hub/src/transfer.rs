//! Requests to a hub: time limits, repeated attempts, resumed and checked downloads.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use ring::digest;
use ureq::http::{Response, StatusCode, header};
use ureq::{Agent, Body};

use crate::error::{Error, Result};
use crate::listing::{ContentHash, RemoteFile};
use crate::settings::Settings;

/// Largest answer in JSON, in bytes: the largest repositories list about 100,000 files.
const LARGEST_ANSWER: u64 = 64 << 20;

/// Progress of a transfer.
pub(crate) enum Step {
    /// Bytes of the file that have arrived.
    At(u64),
    /// An attempt failed; another one follows after a wait.
    Wait { why: String, wait: Duration },
}

/// One connection pool, one token.
pub(crate) struct Transfer {
    agent: Agent,
    endpoint: String,
    authorization: Option<String>,
    settings: Settings,
}

/// One attempt of a request, which reports its steps to the given listener.
type Attempt<'a, T> = dyn FnMut(&mut dyn FnMut(Step)) -> Result<T, Failure> + 'a;

/// The address of a request, and its name in messages.
pub(crate) struct Request<'a> {
    pub url: &'a str,
    /// Name for messages.
    pub what: &'a str,
    /// `model` or `dataset`.
    pub kind: &'static str,
}

/// A file that is being filled.
struct Part<'a> {
    path: &'a Path,
    /// Bytes that it has already.
    start: u64,
    /// Bytes that it will have, if known.
    whole: Option<u64>,
}

/// Why an attempt failed.
enum Failure {
    /// Another attempt may succeed.
    Passing { error: Error, wait: Option<Duration> },
    /// Another attempt cannot succeed.
    Final(Error),
}

impl Transfer {
    pub fn new(settings: &Settings, endpoint: String) -> Self {
        let patience = Some(settings.patience);
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            // Compression would change lengths and ranges.
            .accept_encoding("identity")
            .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
            // Contents are served by other hosts, which must not see the token.
            .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
            .timeout_resolve(patience)
            .timeout_connect(patience)
            .timeout_recv_response(patience)
            .timeout_per_read(patience);
        if is_loopback(&endpoint) {
            // A mirror on this machine is never behind a proxy.
            config = config.proxy(None);
        }
        let authorization = settings.token.as_ref().map(|token| format!("Bearer {token}"));
        Self { agent: config.build().into(), endpoint, authorization, settings: settings.clone() }
    }

    /// The hub's address.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// A whole answer in memory.
    pub fn answer(&self, request: &Request, step: &mut dyn FnMut(Step)) -> Result<Vec<u8>> {
        self.insist(step, &mut || 0, &mut |_| {
            let mut response = self.get(request, None)?;
            self.check(request, &response)?;
            let reader = response.body_mut().with_config().limit(LARGEST_ANSWER);
            reader.read_to_vec().map_err(|e| match e {
                ureq::Error::BodyExceedsLimit(_) => Failure::Final(Error::Protocol {
                    what: request.what.to_owned(),
                    endpoint: self.endpoint.clone(),
                    why: "its answer is endless".to_owned(),
                }),
                e => self.broken(request, e),
            })
        })
    }

    /// Downloads a file to `partial`, continues what an earlier attempt left, and checks length and content. A broken connection
    /// leaves `partial` for the next attempt; wrong content removes it.
    ///
    /// Returns the hash of the content in hexadecimal: the kind of the listing, or SHA-256 if the listing has none.
    pub fn download(
        &self,
        request: &Request,
        file: &RemoteFile,
        partial: &Path,
        step: &mut dyn FnMut(Step),
    ) -> Result<String> {
        let there = || fs::metadata(partial).map_or(0, |m| m.len());
        // Once more from the beginning, if the content left by an earlier attempt was wrong.
        let resumed = there() > 0;
        match self.download_and_check(request, file, partial, step) {
            Err(Error::WrongContent { .. }) if resumed => self.download_and_check(request, file, partial, step),
            outcome => outcome,
        }
    }

    fn download_and_check(
        &self,
        request: &Request,
        file: &RemoteFile,
        partial: &Path,
        step: &mut dyn FnMut(Step),
    ) -> Result<String> {
        let mut there = || fs::metadata(partial).map_or(0, |m| m.len());
        let complete = |length: u64| file.size == Some(length);
        if !complete(there()) || file.size == Some(0) {
            self.insist(step, &mut there, &mut |step| self.attempt(request, file, partial, step))?;
        }
        let (expected, got) = match &file.hash {
            Some(ContentHash::Sha256(hex)) => (Some(hex), hash(partial, &digest::SHA256, false)?),
            Some(ContentHash::GitBlob(hex)) => (Some(hex), hash(partial, &digest::SHA1_FOR_LEGACY_USE_ONLY, true)?),
            None => (None, hash(partial, &digest::SHA256, false)?),
        };
        match expected {
            Some(expected) if *expected != got => {
                fs::remove_file(partial).map_err(Error::disk("remove", partial))?;
                Err(Error::WrongContent { what: request.what.to_owned(), expected: expected.clone(), got })
            }
            _ => Ok(got),
        }
    }

    /// Downloads a file once, continuing `partial` if the server resumes.
    fn attempt(
        &self,
        request: &Request,
        file: &RemoteFile,
        partial: &Path,
        step: &mut dyn FnMut(Step),
    ) -> Result<(), Failure> {
        let disk = |action| move |e| Failure::Final(Error::disk(action, partial)(e));
        let mut start = fs::metadata(partial).map_or(0, |m| m.len());
        // Without a length nobody can tell whether a part is the beginning of this file.
        if file.size.is_none_or(|size| start > size) {
            start = 0;
        }
        let mut response = self.get(request, (start > 0).then_some(start))?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE && start > 0 {
            fs::remove_file(partial).map_err(disk("remove"))?;
            return Err(Failure::Passing {
                error: self.status(request, StatusCode::RANGE_NOT_SATISFIABLE),
                wait: Some(Duration::ZERO),
            });
        }
        self.check(request, &response)?;
        if response.status() == StatusCode::PARTIAL_CONTENT {
            self.check_range(request, file, start, &response)?;
        } else {
            // The server does not resume.
            start = 0;
        }
        let mut whole = file.size;
        if let Some(offered) = response.body().content_length() {
            let whole = *whole.get_or_insert(start + offered);
            if start + offered != whole {
                return Err(Failure::Final(self.wrong_length(request, whole, start + offered)));
            }
        }
        let at = self.receive(request, &mut response, Part { path: partial, start, whole }, step)?;
        match whole {
            // An answer without a length that ended early.
            Some(whole) if at != whole => {
                Err(Failure::Passing { error: self.wrong_length(request, whole, at), wait: None })
            }
            _ => Ok(()),
        }
    }

    /// Refuses an answer with another range than that from `start`.
    fn check_range(
        &self,
        request: &Request,
        file: &RemoteFile,
        start: u64,
        response: &Response<Body>,
    ) -> Result<(), Failure> {
        let range = header_text(response, header::CONTENT_RANGE.as_str()).and_then(content_range);
        let other_size = |total: u64| file.size.is_some_and(|size| size != total);
        match range {
            Some((from, total)) if from == start && !total.is_some_and(other_size) => Ok(()),
            _ => Err(Failure::Final(Error::Protocol {
                what: request.what.to_owned(),
                endpoint: self.endpoint.clone(),
                why: "it sends another range than was requested".to_owned(),
            })),
        }
    }

    /// Writes an answer's body to a file. Returns the file's length.
    fn receive(
        &self,
        request: &Request,
        response: &mut Response<Body>,
        part: Part,
        step: &mut dyn FnMut(Step),
    ) -> Result<u64, Failure> {
        let Part { path, start, whole } = part;
        let disk = |action| move |e| Failure::Final(Error::disk(action, path)(e));
        let mut out = File::options().create(true).truncate(false).write(true).open(path).map_err(disk("write"))?;
        out.set_len(start).map_err(disk("write"))?;
        out.seek(SeekFrom::Start(start)).map_err(disk("write"))?;
        let mut at = start;
        step(Step::At(at));
        let mut reader = response.body_mut().as_reader();
        let mut buffer = vec![0; 1 << 18];
        loop {
            let n = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(self.broken(request, e)),
            };
            if let Some(whole) = whole.filter(|&whole| at + n as u64 > whole) {
                drop(out);
                fs::remove_file(path).map_err(disk("remove"))?;
                return Err(Failure::Final(self.wrong_length(request, whole, at + n as u64)));
            }
            out.write_all(&buffer[..n]).map_err(disk("write"))?;
            at += n as u64;
            step(Step::At(at));
        }
        out.sync_all().map_err(disk("write"))?;
        Ok(at)
    }

    fn get(&self, request: &Request, from: Option<u64>) -> Result<Response<Body>, Failure> {
        let mut call = self.agent.get(request.url);
        if let Some(authorization) = &self.authorization {
            call = call.header(header::AUTHORIZATION, authorization);
        }
        if let Some(from) = from {
            call = call.header(header::RANGE, format!("bytes={from}-"));
        }
        call.call().map_err(|e| self.broken(request, e))
    }

    /// Repeats `attempt` while its failures are passing and attempts are left. An attempt that gained bytes resets the count.
    fn insist<T>(
        &self,
        step: &mut dyn FnMut(Step),
        gained: &mut dyn FnMut() -> u64,
        attempt: &mut Attempt<'_, T>,
    ) -> Result<T> {
        let (mut failures, mut furthest) = (0, gained());
        loop {
            let (error, wait) = match attempt(step) {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing { error, wait }) => (error, wait),
            };
            let now = gained();
            failures = if now > furthest { 1 } else { failures + 1 };
            furthest = furthest.max(now);
            let backoff =
                self.settings.first_wait.saturating_mul(1 << (failures - 1).min(16)).min(self.settings.longest_wait);
            let wait = wait.unwrap_or(backoff);
            if failures >= self.settings.attempts.max(1) || wait > self.settings.longest_wait {
                return Err(error);
            }
            step(Step::Wait { why: error.brief(), wait });
            std::thread::sleep(wait);
        }
    }

    fn check(&self, request: &Request, response: &Response<Body>) -> Result<(), Failure> {
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let error = self.status(request, status);
        let seconds = header_text(response, header::RETRY_AFTER.as_str())
            .and_then(|v| v.trim().parse().ok())
            .map(Duration::from_secs);
        Err(match (status, error) {
            (StatusCode::TOO_MANY_REQUESTS, Error::RateLimited { what, .. }) => {
                Failure::Passing { error: Error::RateLimited { what, after: seconds }, wait: seconds }
            }
            (StatusCode::REQUEST_TIMEOUT, error) => Failure::Passing { error, wait: None },
            (status, error) if status.is_server_error() => Failure::Passing { error, wait: seconds },
            (_, error) => Failure::Final(error),
        })
    }

    fn status(&self, request: &Request, status: StatusCode) -> Error {
        let what = request.what.to_owned();
        match status.as_u16() {
            status @ (401 | 403) => Error::Denied {
                what,
                status,
                remedy: match self.authorization {
                    None => {
                        "it is private, gated or misspelt: check the name, and set HF_TOKEN to an access token if it is not public"
                    }
                    Some(_) => {
                        "the token in use is not allowed to read it: accept its terms on its page, or set HF_TOKEN to another token"
                    }
                },
            },
            404 => Error::NotFound { what, kind: request.kind },
            429 => Error::RateLimited { what, after: None },
            status => Error::Status { what, status },
        }
    }

    fn broken(&self, request: &Request, source: impl std::error::Error + Send + Sync + 'static) -> Failure {
        let error =
            Error::Network { what: request.what.to_owned(), endpoint: self.endpoint.clone(), source: Box::new(source) };
        Failure::Passing { error, wait: None }
    }

    fn wrong_length(&self, request: &Request, expected: u64, got: u64) -> Error {
        Error::WrongLength { what: request.what.to_owned(), expected, got }
    }
}

fn header_text<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// First byte and whole length of `bytes 5-9/10`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (from, _) = range.split_once('-')?;
    Some((from.trim().parse().ok()?, total.trim().parse().ok()))
}

/// Hash of a file; `git_blob` puts git's header before it.
fn hash(path: &Path, algorithm: &'static digest::Algorithm, git_blob: bool) -> Result<String> {
    let mut file = File::open(path).map_err(Error::disk("read", path))?;
    let mut context = digest::Context::new(algorithm);
    if git_blob {
        let length = file.metadata().map_err(Error::disk("read", path))?.len();
        context.update(format!("blob {length}\0").as_bytes());
    }
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => context.update(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::disk("read", path)(e)),
        }
    }
    Ok(hexadecimal(context.finish().as_ref()))
}

/// SHA-256 of a name, as the name of a file.
pub(crate) fn name_hash(name: &str) -> String {
    hexadecimal(digest::digest(&digest::SHA256, name.as_bytes()).as_ref())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn is_loopback(endpoint: &str) -> bool {
    let host = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    ["127.0.0.1", "localhost", "[::1]"]
        .iter()
        .any(|name| host.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '/'])))
}
