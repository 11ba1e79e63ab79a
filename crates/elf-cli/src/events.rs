//! Notes and progress of the library on standard error.

use elf_lm::{Event, Events};
use indicatif::ProgressBar;

use crate::printing::{note, out};
use crate::progress;

/// Writes notes to standard error, and shows progress in a bar there.
#[derive(Debug, Default)]
pub struct Terminal {
    bar: Option<ProgressBar>,
    /// Whether notes go to standard output.
    prints: bool,
}

impl Terminal {
    /// Writes notes to standard output, for commands whose notes are their result.
    pub fn on_standard_output() -> Self {
        Self { prints: true, ..Self::default() }
    }

    fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| note!("{line}")),
            None => note!("{line}"),
        }
    }
}

impl Events for Terminal {
    fn on(&mut self, event: Event<'_>) {
        match event {
            // What the work makes does not depend on whether anybody reads along.
            Event::Note(line) if self.prints => _ = out!("{line}"),
            Event::Note(line) => self.line(line),
            Event::Warning(line) => self.line(&format!("warning: {line}")),
            Event::Started { unit, total: 0, .. } => self.bar = Some(progress::counter(unit)),
            Event::Started { unit, done, total } => {
                let bar = progress::bar(total, unit);
                bar.set_position(done);
                self.bar = Some(bar);
            }
            Event::Progress { done, message } => {
                if let Some(bar) = &self.bar {
                    bar.set_position(done);
                    if let Some(message) = message {
                        bar.set_message(message.to_owned());
                    }
                }
            }
            Event::Ended => {
                if let Some(bar) = self.bar.take() {
                    bar.finish_and_clear();
                }
            }
            _ => {}
        }
    }
}
