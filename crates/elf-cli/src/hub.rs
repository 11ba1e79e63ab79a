//! Progress of downloads from the Hugging Face hub.

use std::sync::Mutex;

use anyhow::{Context, Result};
use elf_hub::{Event, Fetcher, Settings};
pub use elf_lm::hub::{locate, locate_all};
use indicatif::{ProgressBar, ProgressStyle};

/// Shows the progress of everything that is fetched from here on.
pub fn show_downloads() {
    let bar = Mutex::new(None);
    elf_lm::hub::listen(move |event| {
        if let Ok(mut bar) = bar.lock() {
            show(&mut bar, event);
        }
    });
}

/// A fetcher with the environment's settings that shows what it does on standard error.
///
/// # Errors
/// If a variable of the environment makes no sense.
pub fn fetcher() -> Result<Fetcher> {
    let settings = Settings::from_env().context("the settings for the Hugging Face hub")?;
    let bar = Mutex::new(None);
    Ok(Fetcher::new(settings)?.with_listener(move |event| {
        if let Ok(mut bar) = bar.lock() {
            show(&mut bar, event);
        }
    }))
}

fn show(bar: &mut Option<ProgressBar>, event: &Event) {
    match event {
        Event::Planned { reference, files, bytes } => {
            eprintln!("fetching {reference}: {files} file(s), {:.1} MB", *bytes as f64 / 1e6);
        }
        Event::Progress { file, at, size } => {
            let bar = bar.get_or_insert_with(|| bar_of_bytes(file, size.unwrap_or(0)));
            bar.set_position(*at);
            if Some(*at) == *size {
                bar.finish_and_clear();
            }
        }
        Event::Waiting { why, wait } => eprintln!("{why} (trying again in {:.1} s)", wait.as_secs_f64()),
        Event::FromCache { reference, why } => {
            eprintln!(
                "warning: using the copy of {reference} from an earlier time, because the hub cannot be asked: {why}"
            );
        }
        Event::Sibling { reference, sibling } => {
            eprintln!("note: {reference} holds a checkpoint for JAX; taking {sibling}, the same model for PyTorch");
        }
        _ => {}
    }
    if bar.as_ref().is_some_and(ProgressBar::is_finished) {
        *bar = None;
    }
}

fn bar_of_bytes(file: &str, size: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {bar:28} {bytes}/{total_bytes} {bytes_per_sec}  {eta}");
    let bar = ProgressBar::new(size).with_message(file.to_owned());
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}
