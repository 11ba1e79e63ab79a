//! Tests whose body runs in several processes: the test program starts itself once for each rank, on the loopback address.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use elf_c10d::{Membership, Store};

/// A child that has not ended after so many looks, five milliseconds apart, is hung: the test fails, and nothing is left of
/// it. Looks, not time: a machine under load may stand still for long.
const LOOKS: u32 = 24_000;

/// What a rank's body knows.
pub struct Place {
    pub rank: usize,
    pub world: usize,
    pub port: u16,
    /// A folder that all ranks of this test share.
    #[allow(dead_code)]
    pub folder: PathBuf,
}

impl Place {
    fn from_environment() -> Option<Self> {
        let number = |name: &str| std::env::var(name).ok()?.parse::<usize>().ok();
        Some(Self {
            rank: number("ELF_TEST_RANK")?,
            world: number("ELF_TEST_WORLD")?,
            port: u16::try_from(number("ELF_TEST_PORT")?).ok()?,
            folder: std::env::var_os("ELF_TEST_FOLDER")?.into(),
        })
    }

    #[allow(dead_code)]
    pub fn membership(&self, timeout: Duration) -> Membership {
        Membership { rank: self.rank, world: self.world, timeout }
    }

    pub fn store(&self, timeout: Duration) -> Store {
        Store::join("127.0.0.1", self.port, timeout).unwrap()
    }
}

/// What came of one rank.
#[allow(dead_code)]
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub output: String,
}

/// Ranks under way; all are killed when it is dropped.
pub struct Ranks {
    pub children: Vec<Child>,
    // The meeting point lives in the test's own process, as with torchrun, so it outlives every rank.
    pub store: Store,
    pub folder: tempfile::TempDir,
}

impl Ranks {
    /// Starts `world` processes that run the test `name`.
    pub fn start(name: &str, world: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::serve_this_host(Duration::from_secs(60)).unwrap();
        let mut ranks = Self { children: Vec::new(), store, folder };
        for rank in 0..world {
            let child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name, "--nocapture", "--test-threads=1"])
                .env("ELF_TEST_RANK", rank.to_string())
                .env("ELF_TEST_WORLD", world.to_string())
                .env("ELF_TEST_PORT", ranks.store.port().unwrap().to_string())
                .env("ELF_TEST_FOLDER", ranks.folder.path())
                .env("OMP_NUM_THREADS", "1")
                .env("TORCH_CPP_LOG_LEVEL", "ERROR")
                .stdin(Stdio::null())
                .stdout(std::fs::File::create(ranks.output(rank)).unwrap())
                .stderr(std::fs::File::options().append(true).create(true).open(ranks.errors(rank)).unwrap())
                .spawn()
                .unwrap();
            ranks.children.push(child);
        }
        ranks
    }

    fn output(&self, rank: usize) -> PathBuf {
        self.folder.path().join(format!("rank-{rank}.out"))
    }

    fn errors(&self, rank: usize) -> PathBuf {
        self.folder.path().join(format!("rank-{rank}.err"))
    }

    /// Waits for the end of every rank but those in `except`.
    #[track_caller]
    pub fn finish(mut self, except: &[usize]) -> Vec<Ended> {
        let mut looks = LOOKS;
        let mut ended = Vec::new();
        for rank in 0..self.children.len() {
            if except.contains(&rank) {
                ended.push(Ended { code: None, output: String::new() });
                continue;
            }
            let code = loop {
                if let Some(status) = self.children[rank].try_wait().unwrap() {
                    break status.code();
                }
                looks -= 1;
                assert!(looks > 0, "rank {rank} hangs:\n{}", self.read(rank));
                std::thread::sleep(Duration::from_millis(5));
            };
            ended.push(Ended { code, output: self.read(rank) });
        }
        ended
    }

    fn read(&self, rank: usize) -> String {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        read(self.output(rank)) + &read(self.errors(rank))
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs `body` in `world` processes, as the test `name`, which must be the caller; each must end well.
#[track_caller]
pub fn in_ranks(name: &str, world: usize, body: impl FnOnce(Place)) {
    if let Some(place) = Place::from_environment() {
        return body(place);
    }
    for (rank, ended) in Ranks::start(name, world).finish(&[]).iter().enumerate() {
        assert_eq!(ended.code, Some(0), "rank {rank} of {world}:\n{}", ended.output);
    }
}

/// The body of one rank, for tests that do more with their ranks than wait for them.
#[allow(dead_code)]
pub fn rank_body(body: impl FnOnce(Place)) -> bool {
    match Place::from_environment() {
        Some(place) => {
            body(place);
            true
        }
        None => false,
    }
}
