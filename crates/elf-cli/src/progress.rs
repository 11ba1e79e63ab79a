//! Progress bars and interruption.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::printing::note;
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

/// A bar over `total` units, with rate and time left and a free message. Hidden where standard error is no terminal.
pub fn bar(total: u64, unit: &str) -> ProgressBar {
    let bar = ProgressBar::new(total);
    let template = format!("{{bar:28}} {{pos}}/{{len}} {unit}  {{msg}}  {{elapsed}} < {{eta}}");
    bar.set_style(ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// A spinner for work of unknown length.
pub fn spinner() -> ProgressBar {
    let spinner = ProgressBar::new_spinner();
    spinner.enable_steady_tick(Duration::from_millis(200));
    spinner
}

/// A spinner with the units done so far.
pub fn counter(unit: &str) -> ProgressBar {
    let template = format!("{{spinner}} {{pos}} {unit}");
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_spinner());
    spinner().with_style(style)
}

/// Signals that come closer together than this are one: a batch system that ends a job signals each of its processes, and a launcher among
/// them passes its own on.
const ONE_SIGNAL: Duration = Duration::from_secs(1);

/// A flag that Ctrl-C (or a termination signal) sets; another one, later, ends the program at once. There is one for the whole program.
///
/// # Errors
/// If the system refuses the handler.
pub fn stop_on_interrupt() -> Result<Arc<AtomicBool>> {
    static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    if let Some(stop) = STOP.get() {
        return Ok(Arc::clone(stop));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    let mut first = None;
    ctrlc::set_handler(move || match first {
        None => {
            first = Some(Instant::now());
            flag.store(true, Ordering::SeqCst);
            note!("\nstopping when the work in hand is done; press Ctrl-C again to end at once");
        }
        Some(first) if first.elapsed() < ONE_SIGNAL => {}
        Some(_) => end_at_once(),
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(Arc::clone(STOP.get_or_init(|| stop)))
}

/// Without running what a library wants run at a program's end: its threads are still at work on what would be torn down.
fn end_at_once() -> ! {
    #[cfg(unix)]
    // SAFETY: it ends the process and touches nothing of it.
    unsafe {
        libc::_exit(130)
    };
    #[cfg(not(unix))]
    std::process::exit(130)
}
