//! Downloads from the Hugging Face hub, with their progress on standard error.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::printing::note;
use anyhow::Result;
use elf_hub::{Event, Fetcher, What};
use elf_lm::hub::Hub;
use elf_lm::{Events, Host};
use indicatif::{ProgressBar, ProgressStyle};

/// The hub, with the environment's settings.
fn hub() -> Hub {
    let bar = Mutex::new(None);
    Hub::default().with_listener(move |event| {
        if let Ok(mut bar) = bar.lock() {
            show(&mut bar, event);
        }
    })
}

/// This program, as the library sees it.
pub fn host(events: &mut dyn Events) -> Host<'_> {
    Host::new(events).with_hub(hub())
}

/// The place of a name: a local path if there is one, otherwise a file or folder fetched from the hub.
///
/// # Errors
/// If it is neither.
pub fn locate(name: impl AsRef<Path>, what: What) -> Result<PathBuf> {
    Ok(hub().locate(name, what)?)
}

/// [`locate`] for each.
///
/// # Errors
/// If one is neither here nor on the hub.
pub fn locate_all(names: &[PathBuf], what: What) -> Result<Vec<PathBuf>> {
    Ok(hub().locate_all(names, what)?)
}

/// What fetches by id.
///
/// # Errors
/// If a variable of the environment makes no sense.
pub fn fetcher() -> Result<Fetcher> {
    Ok(hub().fetcher()?)
}

fn show(bar: &mut Option<ProgressBar>, event: &Event) {
    match event {
        Event::Planned { reference, files, bytes } => {
            note!("fetching {reference}: {files} file(s), {:.1} MB", *bytes as f64 / 1e6);
        }
        Event::Progress { file, at, size } => {
            let bar = bar.get_or_insert_with(|| bar_of_bytes(file, size.unwrap_or(0)));
            bar.set_position(*at);
            if Some(*at) == *size {
                bar.finish_and_clear();
            }
        }
        Event::Waiting { why, wait } => note!("{why} (trying again in {:.1} s)", wait.as_secs_f64()),
        Event::FromCache { reference, why } => {
            note!(
                "warning: using the copy of {reference} from an earlier time, because the hub cannot be asked: {why}"
            );
        }
        Event::Sibling { reference, sibling } => {
            note!("note: {reference} holds a checkpoint for JAX; taking {sibling}, the same model for PyTorch");
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
