//! Heartbeats of all ranks, which explain a failed operation: which rank stopped, which is late, and why.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use elf_c10d::Store;

use crate::Error;

/// The time between two heartbeats.
const BEAT: Duration = Duration::from_millis(500);
/// Beats between two readings of the other ranks' heartbeats. A rank without a new one in that time is dead or stopped.
const PATIENCE: u32 = 4;

const FAULT: &str = "fault";

/// The heartbeat of this rank, and the explanation of failed operations from the heartbeats of the others.
///
/// A thread with its own connection writes a counter and the number of operations begun. The counter of a dead or
/// stopped rank does not change. A rank that hangs in its own work keeps counting but falls behind in operations, of
/// which all ranks begin equally many.
pub(super) struct Lifeline {
    store: Arc<Store>,
    rank: usize,
    world: usize,
    operations: Arc<AtomicU64>,
    failed: AtomicBool,
    /// The explanation of the first failure.
    explanation: Mutex<Option<String>>,
    end: Arc<(Mutex<bool>, Condvar)>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// A rank's last heartbeat.
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
                    // An error means that the meeting point has ended, and no other rank can read heartbeats.
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
        let (explanation, thread) = (Mutex::new(None), Mutex::new(thread));
        Self { store, rank, world, operations, failed, explanation, end, thread }
    }

    /// Counts an operation that begins.
    pub(super) fn count_operation(&self) {
        self.operations.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether an operation has failed. The group can then neither be used nor freed.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Refuses further operations after one has failed.
    pub(super) fn check(&self) -> Result<(), Error> {
        match self.has_failed() {
            true => {
                Err(Error::Comm(self.explanation().clone().unwrap_or_else(|| "an operation failed before".to_owned())))
            }
            false => Ok(()),
        }
    }

    fn explanation(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.explanation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores the reason why this rank stops, unless an operation has failed because of another rank. The first reason
    /// of all ranks is kept. From then on the group counts as failed, since the other ranks may never join operations
    /// that have begun.
    pub(super) fn store_reason(&self, reason: &str) {
        if self.failed.swap(true, Ordering::Relaxed) {
            return;
        }
        let _ = self.store.set_once(FAULT, format!("rank {}: {reason}", self.rank).as_bytes());
    }

    /// The error of a failed operation, with the rank that stopped and the reason as far as they can be found out.
    pub(super) fn lost(&self, error: &elf_c10d::Error) -> Error {
        self.failed.store(true, Ordering::Relaxed);
        let mut explanation = self.explanation();
        if let Some(text) = &*explanation {
            return Error::Comm(text.clone());
        }
        // On a thread, because a meeting point whose process is stopped (not killed) never answers.
        let inquiry =
            Inquiry { store: Arc::clone(&self.store), rank: self.rank, world: self.world, error: error.to_string() };
        let (sender, receiver) = std::sync::mpsc::channel();
        let asked = std::thread::Builder::new().spawn(move || sender.send(inquiry.explain()));
        // In short waits, so that a suspension of the machine uses up only one of them.
        let answer = || (0..PATIENCE * 3).find_map(|_| receiver.recv_timeout(BEAT).ok());
        let text = asked.ok().and_then(|_| answer()).unwrap_or_else(|| {
            format!("the meeting point does not answer; the rank that keeps it was stopped or cut off ({error})")
        });
        // This rank ends now too. Stored so that ranks that notice later report the first cause, not this rank.
        let (store, reason) = (Arc::clone(&self.store), text.clone());
        let _ = std::thread::Builder::new().spawn(move || store.set_once(FAULT, reason.as_bytes())).map(|t| {
            let until = std::time::Instant::now() + BEAT;
            while !t.is_finished() && std::time::Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        *explanation = Some(text.clone());
        Error::Comm(text)
    }
}

/// The search for the cause of a failure, in the store at the meeting point.
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
            if let Some(reason) = self.stored_reason() {
                return reason;
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

    fn stored_reason(&self) -> Option<String> {
        let there = self.store.has(FAULT).ok()?;
        let reason = there.then(|| self.store.get(FAULT).ok()).flatten()?;
        Some(String::from_utf8_lossy(&reason).into_owned())
    }

    /// The heartbeats of all ranks; `None` if the meeting point does not answer.
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
