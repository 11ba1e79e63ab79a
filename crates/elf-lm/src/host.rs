//! The program around the library: who hears of notes and progress, and what the library takes from it.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use elf_flow::sampler::Registry;
use elf_hub::What;

use crate::Result;
use crate::hub::Hub;

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

/// The program around the library, as all parts of one piece of work see it: where notes and progress go, how names become local
/// files, which samplers there are, and whether to stop.
pub struct Host<'a> {
    events: RefCell<&'a mut dyn Events>,
    hub: Hub,
    samplers: Registry,
    stop: Arc<AtomicBool>,
}

impl<'a> Host<'a> {
    /// A program that takes `events`, fetches with the hub's own settings, has the built-in samplers and never stops early.
    pub fn new(events: &'a mut dyn Events) -> Self {
        let (hub, samplers, stop) = (Hub::default(), Registry::builtin(), Arc::default());
        Self { events: RefCell::new(events), hub, samplers, stop }
    }

    /// Fetches with this hub.
    pub fn with_hub(self, hub: Hub) -> Self {
        Self { hub, ..self }
    }

    /// Offers these samplers.
    pub fn with_samplers(self, samplers: Registry) -> Self {
        Self { samplers, ..self }
    }

    /// Stops long work soon after this flag is set; what is worth keeping is saved before.
    pub fn with_stop(self, stop: Arc<AtomicBool>) -> Self {
        Self { stop, ..self }
    }

    /// The samplers that there are.
    pub fn samplers(&self) -> &Registry {
        &self.samplers
    }

    /// The flag that is set to stop.
    pub fn stop(&self) -> &Arc<AtomicBool> {
        &self.stop
    }

    /// What fetches by id.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// [`Hub::locate`].
    ///
    /// # Errors
    /// If the name is neither that of a local file or folder nor on the hub.
    pub fn locate(&self, name: impl AsRef<Path>, what: What) -> Result<PathBuf> {
        self.hub.locate(name, what)
    }

    /// [`Hub::locate_all`].
    ///
    /// # Errors
    /// If one is neither here nor on the hub.
    pub fn locate_all(&self, names: &[PathBuf], what: What) -> Result<Vec<PathBuf>> {
        self.hub.locate_all(names, what)
    }

    /// Sends an event.
    pub fn send(&self, event: Event<'_>) {
        self.events.borrow_mut().on(event);
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

impl std::fmt::Debug for Host<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Host").field("samplers", &self.samplers).field("stop", &self.stop).finish_non_exhaustive()
    }
}

/// A receiver that ignores everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Events for Silent {
    fn on(&mut self, _: Event<'_>) {}
}
