//! Notes and progress of long work, for whoever shows them.

use std::cell::RefCell;

/// Something worth showing.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A line for the user.
    Note(&'a str),
    /// A line that points at a likely mistake.
    Warning(&'a str),
    /// Work begins: `done` of `total` units are finished already.
    Started {
        /// Name of a unit, in the plural.
        unit: &'a str,
        /// Units finished before.
        done: u64,
        /// Units in all.
        total: u64,
    },
    /// Work goes on.
    Progress {
        /// Units finished.
        done: u64,
        /// Latest measurements, if there are new ones.
        message: Option<&'a str>,
    },
    /// The work that the latest [`Event::Started`] announced is over.
    Ended,
}

/// A receiver of events. Every `FnMut(Event)` is one.
pub trait Events {
    /// Takes one event.
    fn on(&mut self, event: Event<'_>);
}

impl<F: FnMut(Event<'_>)> Events for F {
    fn on(&mut self, event: Event<'_>) {
        self(event);
    }
}

/// One receiver of events, shared by the parts of one piece of work.
pub struct Reporter<'a>(RefCell<&'a mut dyn Events>);

impl<'a> Reporter<'a> {
    /// Sends everything to `events`.
    pub fn new(events: &'a mut dyn Events) -> Self {
        Self(RefCell::new(events))
    }

    /// Sends an event.
    pub fn send(&self, event: Event<'_>) {
        self.0.borrow_mut().on(event);
    }

    /// Sends a line for the user.
    pub fn note(&self, line: impl AsRef<str>) {
        self.send(Event::Note(line.as_ref()));
    }

    /// Sends a line that points at a likely mistake.
    pub fn warning(&self, line: impl AsRef<str>) {
        self.send(Event::Warning(line.as_ref()));
    }
}
