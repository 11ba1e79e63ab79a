//! The interface to the calling program: the events that it receives, and the services and settings that it provides.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use elf_encoder::Family;
use elf_flow::sampler::Registry;
use elf_hub::What;

use crate::Result;
use crate::hub::Hub;

/// A note, a warning or progress, to show to the user.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A line for the user.
    Note(&'a str),
    /// A warning of a likely mistake.
    Warning(&'a str),
    /// The start of a task of `total` units, `done` of which are finished already.
    Started {
        /// The unit's name, in the plural.
        unit: &'a str,
        /// Number of units finished before.
        done: u64,
        /// Total number of units; 0 if unknown.
        total: u64,
    },
    /// Progress of the current task.
    Progress {
        /// Number of finished units.
        done: u64,
        /// Latest measurements, if there are new ones.
        message: Option<&'a str>,
    },
    /// Metrics of a training run, as in a line of its `metrics.jsonl`.
    Metrics {
        /// Optimiser steps done.
        step: u64,
        /// Names and values.
        metrics: &'a [(String, f64)],
    },
    /// Texts of an evaluation in training, at most 16.
    Texts {
        /// Optimiser steps done.
        step: u64,
        /// The name of the sampling setting.
        setting: &'a str,
        /// The first texts.
        texts: &'a [&'a str],
    },
    /// The end of the task that the latest [`Event::Started`] announced.
    Ended,
}

/// A receiver of events, implemented by every `FnMut(Event)`.
pub trait Events {
    /// Handles one event.
    fn on(&mut self, event: Event<'_>);
}

impl<F: FnMut(Event<'_>)> Events for F {
    fn on(&mut self, event: Event<'_>) {
        self(event);
    }
}

/// What the calling program provides for one operation: a receiver of events, access to the hub, the registered
/// samplers and families of encoders, and a flag to stop.
pub struct Host<'a> {
    events: RefCell<&'a mut dyn Events>,
    hub: Hub,
    samplers: Registry,
    encoders: Vec<Family>,
    stop: Arc<AtomicBool>,
}

impl<'a> Host<'a> {
    /// A host that sends events to `events`, with the default hub, the built-in samplers and families of encoders, and a flag
    /// that nobody sets.
    pub fn new(events: &'a mut dyn Events) -> Self {
        let (samplers, encoders) = (Registry::builtin(), elf_encoder::BUILTIN.to_vec());
        Self { events: RefCell::new(events), hub: Hub::default(), samplers, encoders, stop: Arc::default() }
    }

    /// Sets the hub to fetch from.
    pub fn with_hub(self, hub: Hub) -> Self {
        Self { hub, ..self }
    }

    /// Sets the registered samplers.
    pub fn with_samplers(self, samplers: Registry) -> Self {
        Self { samplers, ..self }
    }

    /// Sets the families of encoders that are opened, such as `[elf_encoder::BUILTIN, &[mine]].concat()`.
    pub fn with_encoders(self, encoders: Vec<Family>) -> Self {
        Self { encoders, ..self }
    }

    /// Sets the flag to stop. Long operations save their state and end soon after it is set.
    pub fn with_stop(self, stop: Arc<AtomicBool>) -> Self {
        Self { stop, ..self }
    }

    /// The registered samplers.
    pub fn samplers(&self) -> &Registry {
        &self.samplers
    }

    /// The registered families of encoders.
    pub fn encoders(&self) -> &[Family] {
        &self.encoders
    }

    /// The flag to stop.
    pub fn stop(&self) -> &Arc<AtomicBool> {
        &self.stop
    }

    /// The hub to fetch from.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// [`Hub::locate`].
    ///
    /// # Errors
    /// If the name is neither a local path nor on the hub.
    pub fn locate(&self, name: impl AsRef<Path>, what: What) -> Result<PathBuf> {
        self.hub.locate(name, what)
    }

    /// [`Hub::locate_all`].
    ///
    /// # Errors
    /// If a name is neither a local path nor on the hub.
    pub fn locate_all(&self, names: &[PathBuf], what: What) -> Result<Vec<PathBuf>> {
        self.hub.locate_all(names, what)
    }

    /// Sends an event.
    pub fn send(&self, event: Event<'_>) {
        self.events.borrow_mut().on(event);
    }

    /// Sends an [`Event::Note`].
    pub fn note(&self, line: impl AsRef<str>) {
        self.send(Event::Note(line.as_ref()));
    }

    /// Sends an [`Event::Warning`].
    pub fn warning(&self, line: impl AsRef<str>) {
        self.send(Event::Warning(line.as_ref()));
    }
}

impl std::fmt::Debug for Host<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Host").field("samplers", &self.samplers).field("stop", &self.stop).finish_non_exhaustive()
    }
}

/// A receiver that ignores all events.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Events for Silent {
    fn on(&mut self, _: Event<'_>) {}
}
