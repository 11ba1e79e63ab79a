//! A small hub on the loopback address, with faults on demand.

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use elf_hub::{Fetcher, Settings};
use ring::digest;
use serde_json::{Value, json};

/// What goes wrong with one request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The connection ends after so many bytes of the body.
    CutAfter(usize),
    /// The body ends after so many bytes, and no length was announced: it looks whole.
    EndAfter(usize),
    /// The announced length and the body are so many bytes longer (or shorter) than the file.
    Length(isize),
    /// The right number of wrong bytes.
    Garbage,
    /// The whole file although a range was asked for.
    IgnoreRange,
    /// This status, perhaps with Retry-After in seconds.
    Status(u16, Option<u64>),
    /// No byte for so long.
    Silence(Duration),
    /// Right, but the branch points to another commit from now on.
    MoveTo(&'static str, &'static str),
    /// See there.
    Redirect(String),
    /// A page in HTML.
    Page,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
    pub host: String,
}

/// Name and content.
type StoredFile = (String, Vec<u8>);

#[derive(Default)]
struct State {
    /// Files by `models/ID` or `datasets/ID`, then commit.
    repositories: HashMap<String, HashMap<String, Vec<StoredFile>>>,
    branches: HashMap<(String, String), String>,
    faults: VecDeque<(String, Fault)>,
    seen: Vec<Seen>,
}

pub struct Hub {
    port: u16,
    state: Arc<Mutex<State>>,
    folder: tempfile::TempDir,
}

pub const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
pub const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

/// So many bytes that do not repeat soon.
pub fn bytes(n: usize, seed: u64) -> Vec<u8> {
    let mut x = seed | 1;
    std::iter::repeat_with(|| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    })
    .take(n)
    .collect()
}

impl Hub {
    pub fn serve() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || answer(stream, &state));
            }
        });
        Self { port, state, folder: tempfile::tempdir().unwrap() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A commit of a repository; `main` points to it.
    pub fn commit(&self, repository: &str, commit: &str, files: &[(&str, &[u8])]) {
        let files = files.iter().map(|(name, content)| ((*name).to_owned(), content.to_vec())).collect();
        let mut state = self.state();
        state.repositories.entry(repository.to_owned()).or_default().insert(commit.to_owned(), files);
        state.branches.insert((repository.to_owned(), "main".to_owned()), commit.to_owned());
    }

    /// The next request whose path contains `part` goes wrong so.
    pub fn fault(&self, part: &str, fault: Fault) {
        self.state().faults.push_back((part.to_owned(), fault));
    }

    /// Requests since the last call.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state().seen)
    }

    /// Files asked for since the last call.
    pub fn files_seen(&self) -> Vec<String> {
        let of = |s: Seen| s.path.split_once("/resolve/").map(|(_, p)| p.split_once('/').unwrap().1.to_owned());
        self.seen().into_iter().filter_map(of).collect()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    pub fn settings(&self) -> Settings {
        Settings {
            endpoint: Some(format!("http://127.0.0.1:{}", self.port)),
            attempts: 3,
            first_wait: Duration::from_millis(5),
            longest_wait: Duration::from_secs(2),
            patience: Duration::from_secs(5),
            ..Settings::with_cache(self.cache())
        }
    }

    pub fn fetcher(&self) -> Fetcher {
        Fetcher::new(self.settings()).unwrap()
    }

    /// All files below the cache's snapshots and blobs that stand at a final place.
    pub fn final_files(&self) -> Vec<String> {
        fn walk(folder: &Path, out: &mut Vec<String>) {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    walk(&entry.path(), out);
                } else {
                    out.push(entry.path().display().to_string());
                }
            }
        }
        let mut all = Vec::new();
        walk(&self.cache(), &mut all);
        all.retain(|f| {
            (f.contains("/snapshots/") || f.contains("/blobs/") || f.contains("/refs/")) && !f.ends_with(".incomplete")
        });
        all
    }
}

fn answer(stream: TcpStream, state: &Mutex<State>) {
    // A client that goes away early is part of some tests.
    let _ = try_answer(stream, state);
}

fn try_answer(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let seen = request(&stream)?;
    let (fault, body) = {
        let mut state = state.lock().unwrap();
        state.seen.push(seen.clone());
        let at = state.faults.iter().position(|(part, _)| seen.path.contains(part.as_str()));
        let fault = at.and_then(|i| state.faults.remove(i)).map(|(_, f)| f);
        let body = body(&state, &seen.path);
        if let Some(Fault::MoveTo(repository, commit)) = &fault {
            state.branches.insert(((*repository).to_owned(), "main".to_owned()), (*commit).to_owned());
        }
        (fault, body)
    };
    match &fault {
        Some(Fault::Status(status, after)) => {
            let after = after.map_or(String::new(), |s| format!("Retry-After: {s}\r\n"));
            return stream.write_all(head(*status, &format!("{after}Content-Length: 0\r\n")).as_bytes());
        }
        Some(Fault::Redirect(to)) => {
            return stream.write_all(head(307, &format!("Location: {to}\r\nContent-Length: 0\r\n")).as_bytes());
        }
        Some(Fault::Page) => {
            return stream.write_all((head(200, "Content-Length: 13\r\n") + "<html></html>").as_bytes());
        }
        Some(Fault::Silence(time)) => std::thread::sleep(*time),
        _ => {}
    }
    match body {
        Some(body) => send(&mut stream, seen.range, fault.as_ref(), body),
        None => stream.write_all(head(404, "Content-Length: 0\r\n").as_bytes()),
    }
}

fn head(status: u16, more: &str) -> String {
    format!("HTTP/1.1 {status} X\r\nConnection: close\r\n{more}\r\n")
}

fn request(stream: &TcpStream) -> std::io::Result<Seen> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or(Ok(String::new()))?;
    let path = first.split(' ').nth(1).unwrap_or("").to_owned();
    let mut seen = Seen { path, range: None, authorization: None, host: String::new() };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "range" => seen.range = Some(value.to_owned()),
            "authorization" => seen.authorization = Some(value.to_owned()),
            "host" => seen.host = value.to_owned(),
            _ => {}
        }
    }
    Ok(seen)
}

/// Sends a file, or its part from the range on, with the fault.
fn send(
    stream: &mut TcpStream,
    range: Option<String>,
    fault: Option<&Fault>,
    mut body: Vec<u8>,
) -> std::io::Result<()> {
    let total = body.len();
    let from = range.filter(|_| !matches!(fault, Some(Fault::IgnoreRange)));
    let from: Option<usize> = from.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    if from.is_some_and(|from| from >= total) {
        return stream.write_all(head(416, "Content-Length: 0\r\n").as_bytes());
    }
    body.drain(..from.unwrap_or(0));
    if let Some(Fault::Garbage) = fault {
        body.iter_mut().for_each(|b| *b ^= 0x55);
    }
    if let Some(Fault::Length(by)) = fault {
        body.resize(body.len().checked_add_signed(*by).unwrap(), 0);
    }
    let mut headers = match fault {
        Some(Fault::EndAfter(_)) => String::new(),
        _ => format!("Content-Length: {}\r\n", body.len()),
    };
    let status = match from {
        Some(from) => {
            headers += &format!("Content-Range: bytes {from}-{}/{total}\r\n", total - 1);
            206
        }
        None => 200,
    };
    if let Some(Fault::CutAfter(n) | Fault::EndAfter(n)) = fault {
        body.truncate(*n);
    }
    stream.write_all(head(status, &headers).as_bytes())?;
    stream.write_all(&body)
}

fn body(state: &State, path: &str) -> Option<Vec<u8>> {
    let resolve = |repository: &str, revision: &str| {
        let branch = state.branches.get(&(repository.to_owned(), revision.to_owned()));
        let commit = branch.cloned().unwrap_or_else(|| revision.to_owned());
        Some((state.repositories.get(repository)?.get(&commit)?, commit))
    };
    if let Some(rest) = path.strip_prefix("/api/") {
        let (repository, revision) = rest.strip_suffix("?blobs=true")?.split_once("/revision/")?;
        let (files, commit) = resolve(repository, revision)?;
        let siblings: Vec<Value> = files.iter().map(|(name, content)| sibling(name, content)).collect();
        return Some(json!({"id": repository, "sha": commit, "siblings": siblings}).to_string().into_bytes());
    }
    let (repository, rest) = path.strip_prefix('/')?.split_once("/resolve/")?;
    let repository =
        if repository.starts_with("datasets/") { repository.to_owned() } else { format!("models/{repository}") };
    let (revision, file) = rest.split_once('/')?;
    let (files, _) = resolve(&repository, revision)?;
    let file = file.replace("%20", " ").replace("%23", "#");
    files.iter().find(|(name, _)| *name == file).map(|(_, content)| content.clone())
}

/// As the hub describes files: large ones by SHA-256, the others by git's hash, and some mirrors by nothing.
fn sibling(name: &str, content: &[u8]) -> Value {
    let hex = |d: digest::Digest| d.as_ref().iter().map(|b| format!("{b:02x}")).collect::<String>();
    if name.starts_with("bare") {
        return json!({"rfilename": name});
    }
    let git = |content: &[u8]| {
        let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
        context.update(format!("blob {}\0", content.len()).as_bytes());
        context.update(content);
        hex(context.finish())
    };
    if content.len() < 1000 {
        return json!({"rfilename": name, "size": content.len(), "blobId": git(content)});
    }
    let sha = hex(digest::digest(&digest::SHA256, content));
    json!({"rfilename": name, "size": content.len(), "blobId": git(b"pointer"), "lfs": {"sha256": sha, "size": content.len(), "pointerSize": 7}})
}
