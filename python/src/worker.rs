//! A model on a thread of its own, which all of its work is sent to: any Python thread may use it.

use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use elf_lm::{Model, ModelSource};
use pyo3::prelude::*;

use crate::errors;
use crate::waiting::{self, Stop, guarded, tell, unpoisoned};

/// A piece of work for a model.
type Work = Box<dyn FnOnce(&Model) + Send>;

/// A loaded model and its thread, which ends when this is dropped and all work is done.
pub struct Worker {
    /// Nothing after the model was closed.
    open: Mutex<Option<(Sender<Work>, JoinHandle<()>)>>,
    /// The process that has the thread: a fork of it has not.
    process: u32,
}

impl Worker {
    /// Loads a model; the second value is what `describe` says of it.
    ///
    /// # Errors
    /// If it cannot be loaded.
    pub fn load<T: Send + 'static>(
        py: Python<'_>,
        source: ModelSource,
        describe: impl FnOnce(&Model) -> elf_lm::Result<T> + Send + 'static,
    ) -> PyResult<(Self, T)> {
        let (work, todo) = channel::<Work>();
        let (told, loaded) = channel();
        let thread = std::thread::Builder::new().name("elf-flows".to_owned()).spawn(move || {
            let mut model = None;
            let outcome = guarded(|| {
                let opened = source.open()?;
                let described = describe(&opened)?;
                model = Some(opened);
                Ok(described)
            });
            if !tell(&told, outcome) {
                return;
            }
            let Some(model) = model else { return };
            for work in todo {
                work(&model);
            }
            // At the end of the process libtorch is torn down at the same time.
            match waiting::is_ending() {
                true => std::mem::forget(model),
                false => drop(model),
            }
            waiting::ended();
        })?;
        let described = waiting::outcome(py, loaded, &Stop::new())?;
        Ok((Self { open: Mutex::new(Some((work, thread))), process: std::process::id() }, described))
    }

    /// Sends a piece of work; it is begun when all work that was sent before is done.
    ///
    /// # Errors
    /// If the model is closed.
    pub fn send(&self, work: impl FnOnce(&Model) + Send + 'static) -> PyResult<()> {
        if self.process != std::process::id() {
            return Err(errors::forked());
        }
        let open = unpoisoned(&self.open);
        let (to, _) = open.as_ref().ok_or_else(errors::closed)?;
        to.send(Box::new(work)).map_err(|_| errors::closed())
    }

    /// Does a piece of work on the model's thread and waits for it.
    ///
    /// # Errors
    /// Those of the work, its panic, what a signal handler raises, or if the model is closed.
    pub fn call<T: Send + 'static>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&Model, &Stop) -> elf_lm::Result<T> + Send + 'static,
    ) -> PyResult<T> {
        let (told, result) = channel();
        let stop = Stop::new();
        let heeded = stop.clone();
        self.send(move |model| {
            tell(&told, guarded(|| work(model, &heeded)));
        })?;
        waiting::outcome(py, result, &stop)
    }

    /// Frees the model when the work that was sent is done. Closing twice does nothing.
    pub fn close(&self, py: Python<'_>) {
        let closed = unpoisoned(&self.open).take();
        if let Some((work, thread)) = closed.filter(|_| self.process == std::process::id()) {
            waiting::began();
            drop(work);
            // A panic outside of all work has ended the thread; there is nothing left to free.
            let _ = py.detach(|| thread.join());
        }
    }

    /// Whether it was closed.
    pub fn is_closed(&self) -> bool {
        unpoisoned(&self.open).is_none()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The thread frees the model, which has to be waited for at the end of the interpreter, but not here.
        if unpoisoned(&self.open).is_some() && self.process == std::process::id() {
            waiting::began();
        }
    }
}
