//! Signs of life of all ranks, from which a failed operation can be explained: which rank stopped, which is late, and why.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use elf_c10d::Store;

use crate::Error;

/// The time between two signs of life.
const BEAT: Duration = Duration::from_millis(500);
/// Beats between two readings of the other ranks' signs. A rank without a new sign in that time is dead or stopped.
const PATIENCE: u32 = 4;

const FAULT: &str = "fault";

/// Signs of life of this rank, and the explanation of a failed operation by those of the others.
///
/// A separate thread, on a separate connection, writes a counter and the number of operations begun. The counter of a rank that is
/// dead or stopped does not change; a rank that hangs in its work counts but falls behind in operations, of which all ranks begin
/// equally many.
pub(super) struct Lifeline {
    store: Arc<Store>,
    rank: usize,
    world: usize,
    operations: Arc<AtomicU64>,
    failed: AtomicBool,
    told: Mutex<Option<String>>,
    end: Arc<(Mutex<bool>, Condvar)>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A rank's last sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sign {
    beat: u64,
    operations: u64,
}

impl Lifeline {
    /// Starts the thread. `store` and `own_connection` are two connections to the same keys.
    pub(super) fn start(store: Store, own_connection: Store, rank: usize, world: usize) -> Self {
        let operations = Arc::new(AtomicU64::new(0));
        let end = Arc::new((Mutex::new(false), Condvar::new()));
        let (count, stop) = (Arc::clone(&operations), Arc::clone(&end));
        let thread = std::thread::Builder::new()
            .name("elf-signs-of-life".to_owned())
            .spawn(move || {
                let (ended, waker) = &*stop;
                for beat in 1u64.. {
                    let sign = format!("{beat} {}", count.load(Ordering::Relaxed));
                    // An error means that the meeting point is gone, and no other rank can read signs.
                    if own_connection.set(&sign_of(rank), sign.as_bytes()).is_err() {
                        return;
                    }
                    let guard = ended.lock().unwrap_or_else(PoisonError::into_inner);
                    let waited = waker.wait_timeout_while(guard, BEAT, |ended| !*ended);
                    if *waited.unwrap_or_else(PoisonError::into_inner).0 {
                        return;
                    }
                }
            })
            .ok();
        let failed = AtomicBool::new(false);
        let store = Arc::new(store);
        Self { store, rank, world, operations, failed, told: Mutex::new(None), end, thread: Mutex::new(thread) }
    }

    /// Counts an operation that begins.
    pub(super) fn count_operation(&self) {
        self.operations.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether an operation has failed: then the group can neither be used nor freed.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Refuses further operations after one has failed.
    pub(super) fn check(&self) -> Result<(), Error> {
        match self.has_failed() {
            true => Err(Error::Comm(self.told().clone().unwrap_or_else(|| "an operation failed before".to_owned()))),
            false => Ok(()),
        }
    }

    fn told(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores the reason why this rank stops, unless the reason is another rank. The first reason of all ranks is kept. The other ranks
    /// may never join operations that have begun, so from now on the group counts as failed.
    pub(super) fn leave_word(&self, reason: &str) {
        if self.failed.swap(true, Ordering::Relaxed) {
            return;
        }
        let _ = self.store.set_once(FAULT, format!("rank {}: {reason}", self.rank).as_bytes());
    }

    /// The explanation of a failed operation: which rank stopped and why, as far as that can be found out.
    pub(super) fn lost(&self, error: &elf_c10d::Error) -> Error {
        self.failed.store(true, Ordering::Relaxed);
        let mut told = self.told();
        if let Some(text) = &*told {
            return Error::Comm(text.clone());
        }
        // On a thread, because a meeting point whose process was stopped (not killed) never answers.
        let inquiry =
            Inquiry { store: Arc::clone(&self.store), rank: self.rank, world: self.world, error: error.to_string() };
        let (sender, receiver) = std::sync::mpsc::channel();
        let asked = std::thread::Builder::new().spawn(move || sender.send(inquiry.explain()));
        // In small portions, so that a machine that sleeps meanwhile uses up only one of them.
        let answer = || (0..PATIENCE * 3).find_map(|_| receiver.recv_timeout(BEAT).ok());
        let text = asked.ok().and_then(|_| answer()).unwrap_or_else(|| {
            format!("the meeting point does not answer; the rank that keeps it was stopped or cut off ({error})")
        });
        // This rank ends now too. Stored so that ranks that notice later report the first cause, not this rank.
        let (store, word) = (Arc::clone(&self.store), text.clone());
        let _ = std::thread::Builder::new().spawn(move || store.set_once(FAULT, word.as_bytes())).map(|t| {
            let until = std::time::Instant::now() + BEAT;
            while !t.is_finished() && std::time::Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        *told = Some(text.clone());
        Error::Comm(text)
    }
}

/// The search for the cause of a failure at the meeting point.
struct Inquiry {
    store: Arc<Store>,
    rank: usize,
    world: usize,
    error: String,
}

impl Inquiry {
    fn explain(&self) -> String {
        let mut before = Vec::new();
        for beat in 0..PATIENCE {
            if let Some(word) = self.word() {
                return word;
            }
            if beat == 0 {
                before = self.signs().unwrap_or_default();
            }
            std::thread::sleep(BEAT);
        }
        match self.signs() {
            Some(now) => self.compare(&before, &now),
            None => format!("the meeting point is gone, and with it the rank that kept it ({})", self.error),
        }
    }

    fn word(&self) -> Option<String> {
        let there = self.store.has(FAULT).ok()?;
        let word = there.then(|| self.store.get(FAULT).ok()).flatten()?;
        Some(String::from_utf8_lossy(&word).into_owned())
    }

    /// The signs of all ranks; `None` if the meeting point does not answer.
    fn signs(&self) -> Option<Vec<Option<Sign>>> {
        (0..self.world)
            .map(|rank| match self.store.has(&sign_of(rank)) {
                Err(_) => None,
                Ok(false) => Some(None),
                Ok(true) => {
                    let text = String::from_utf8(self.store.get(&sign_of(rank)).ok()?).ok()?;
                    let mut numbers = text.split(' ').map(str::parse);
                    let (Some(Ok(beat)), Some(Ok(operations))) = (numbers.next(), numbers.next()) else {
                        return Some(None);
                    };
                    Some(Some(Sign { beat, operations }))
                }
            })
            .collect()
    }

    fn compare(&self, before: &[Option<Sign>], now: &[Option<Sign>]) -> String {
        let error = &self.error;
        let silent: Vec<usize> = (0..now.len()).filter(|&r| r != self.rank && before.get(r) == now.get(r)).collect();
        if !silent.is_empty() {
            return format!("{} gives no sign of life: it was killed or stopped ({error})", ranks(&silent));
        }
        let furthest = now.iter().flatten().map(|s| s.operations).max().unwrap_or(0);
        let behind: Vec<usize> = (0..now.len()).filter(|&r| now[r].is_some_and(|s| s.operations < furthest)).collect();
        match behind.is_empty() {
            true => error.clone(),
            false => format!("{} did not come to the operation that the others are in ({error})", ranks(&behind)),
        }
    }
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        *self.end.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.end.1.notify_all();
        if self.has_failed() {
            return;
        }
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}

fn sign_of(rank: usize) -> String {
    format!("sign/{rank}")
}

pub(super) fn ranks(numbers: &[usize]) -> String {
    let list = numbers.iter().take(8).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match numbers.len() {
        1 => format!("rank {list}"),
        2..=8 => format!("ranks {list}"),
        n => format!("ranks {list} and {} more", n - 8),
    }
}
