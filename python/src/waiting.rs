//! Waiting for work on other threads while Python's signals are heeded.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use pyo3::prelude::*;

use crate::errors;

/// How often signals are looked at. A result ends the wait at once.
const SIGNALS: Duration = Duration::from_millis(50);
/// The longest time that the interpreter waits, when it exits, for running work to stop.
const AT_THE_END: Duration = Duration::from_secs(20);

/// The flags of all work that was begun.
static FLAGS: Mutex<Vec<Weak<AtomicBool>>> = Mutex::new(Vec::new());
/// Pieces of work that are under way, and models that are being freed.
static RUNNING: AtomicUsize = AtomicUsize::new(0);
/// Whether the interpreter is about to end.
static ENDING: AtomicBool = AtomicBool::new(false);

/// A request to stop one piece of work.
#[derive(Debug, Clone)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// A request that nobody has made yet, and that the end of the interpreter makes.
    pub fn new() -> Self {
        let flag = Arc::default();
        let mut flags = unpoisoned(&FLAGS);
        flags.retain(|flag| flag.strong_count() > 0);
        flags.push(Arc::downgrade(&flag));
        Self(flag)
    }

    /// Asks for the stop.
    pub fn ask(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether it was asked for.
    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// The flag itself.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}

/// The result of a piece of work; the outer one is that of its panic.
pub type Outcome<T> = std::thread::Result<elf_lm::Result<T>>;

/// Counts something among the work under way, until [`ended`] is called.
pub fn began() {
    RUNNING.fetch_add(1, Ordering::SeqCst);
}

/// The end of what [`began`] has counted.
pub fn ended() {
    RUNNING.fetch_sub(1, Ordering::SeqCst);
}

/// Whether the interpreter is about to end, so that nothing should be freed any more.
pub fn is_ending() -> bool {
    ENDING.load(Ordering::SeqCst)
}

/// Does a piece of work, catches its panic, and counts it among those under way.
pub fn guarded<T>(work: impl FnOnce() -> elf_lm::Result<T>) -> Outcome<T> {
    began();
    let outcome = catch_unwind(AssertUnwindSafe(work));
    ended();
    outcome
}

/// A lock whose value a panic elsewhere leaves as it was.
pub fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The next message of a thread, or `None` if it has ended. Meanwhile other Python threads run.
///
/// # Errors
/// What a signal handler raises, such as `KeyboardInterrupt`.
pub fn next<T: Send>(py: Python<'_>, messages: &Mutex<Receiver<T>>) -> PyResult<Option<T>> {
    loop {
        let message = py.detach(|| unpoisoned(messages).recv_timeout(SIGNALS));
        match message {
            Ok(message) => return Ok(Some(message)),
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => py.check_signals()?,
        }
    }
}

/// The outcome of a piece of work on another thread. A signal handler's exception asks the work to stop, and is raised when
/// it has; a second one is raised at once, and the work stops later.
///
/// # Errors
/// Those of the work, its panic, or what a signal handler raises.
pub fn outcome<T: Send>(py: Python<'_>, messages: Receiver<Outcome<T>>, stop: &Stop) -> PyResult<T> {
    let messages = Mutex::new(messages);
    let first = next(py, &messages);
    let outcome = match first {
        Ok(outcome) => outcome,
        Err(interrupt) => {
            stop.ask();
            next(py, &messages)?;
            return Err(interrupt);
        }
    };
    match outcome {
        Some(outcome) => finished(outcome),
        None => Err(errors::closed()),
    }
}

/// The value of an outcome, or its exception.
///
/// # Errors
/// That of the work, or its panic.
pub fn finished<T>(outcome: Outcome<T>) -> PyResult<T> {
    match outcome {
        Ok(result) => result.map_err(|error| errors::raised(&error)),
        Err(panic) => Err(errors::internal(panic.as_ref())),
    }
}

/// Sends a message to whoever waits; nobody may.
pub fn tell<T>(to: &Sender<T>, message: T) -> bool {
    to.send(message).is_ok()
}

/// Stops all work, at the end of the interpreter: libtorch must not be torn down under it.
#[pyfunction]
pub fn stop_all(py: Python<'_>) {
    unpoisoned(&FLAGS).iter().filter_map(Weak::upgrade).for_each(|flag| flag.store(true, Ordering::SeqCst));
    py.detach(|| {
        let begun = Instant::now();
        while RUNNING.load(Ordering::SeqCst) > 0 && begun.elapsed() < AT_THE_END {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    ENDING.store(true, Ordering::SeqCst);
}

/// Panics on another thread, as a mistake in the library would: for the tests.
#[pyfunction]
pub fn panic_elsewhere(py: Python<'_>, text: String) -> PyResult<()> {
    let (told, result) = std::sync::mpsc::channel();
    std::thread::spawn(move || tell(&told, guarded::<()>(|| std::panic::panic_any(text))));
    outcome(py, result, &Stop::new())
}
