//! A text as it forms.

use std::ops::ControlFlow;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use elf_lm::model::loaded::Method;
use elf_lm::text::text_loop::Frames;
use elf_lm::{Error, GenerateOptions, Model, Sampling, TextEvent, TextRequest};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::settings::Settings;
use crate::texts::{Told, class};
use crate::waiting::{self, Outcome, Stop, guarded, tell};
use crate::worker::Worker;

/// What the model's thread sends.
enum Message {
    /// The text after a step.
    Frame { t: f64, step: usize, steps: usize, told: Told },
    /// The end, and the finished text.
    End(Outcome<Told>),
}

/// The frames of one text, in the order of their times. They are computed ahead; dropping this stops it.
#[pyclass(frozen, module = "elf_flows._native")]
pub struct Trajectory {
    messages: Mutex<Receiver<Message>>,
    stop: Stop,
}

/// What a trajectory is made from.
pub struct Wish {
    /// The request.
    pub request: TextRequest,
    /// How the text is sampled.
    pub settings: Settings,
    /// Batches and seed.
    pub options: GenerateOptions,
    /// The times in [0, 1] at which it is shown; `None` after every step.
    pub times: Option<Vec<f64>>,
}

impl Trajectory {
    /// Begins a text on the model's thread.
    ///
    /// # Errors
    /// If the model is closed.
    pub fn begin(worker: &Worker, wish: Wish) -> PyResult<Self> {
        let (to, messages) = channel();
        let stop = Stop::new();
        let heeded = stop.clone();
        worker.send(move |model| {
            let end = guarded(|| frames(model, &wish, &to, &heeded));
            tell(&to, Message::End(end));
        })?;
        Ok(Self { messages: Mutex::new(messages), stop })
    }
}

/// Generates a text, sends its frames, and returns it.
fn frames(model: &Model, wish: &Wish, to: &Sender<Message>, stop: &Stop) -> elf_lm::Result<Told> {
    let Method::Flow(sampling) = model.method(&wish.settings.sampling(model)?) else {
        return Err(Error::request("baselines show no texts that form: trajectories are for flows"));
    };
    // Of several candidates, none is the text until the end.
    let sampling = Sampling { best_of: 1, mbr: 1, ..sampling };
    let options = match &wish.times {
        None => GenerateOptions { frames: Frames::EveryStep, ..wish.options.clone() },
        Some(times) => GenerateOptions { frames: Frames::All, trace: times.clone(), ..wish.options.clone() },
    };
    let (mut step, mut steps, mut failed) = (0, 0, None);
    let made = model.generate_watched(std::slice::from_ref(&wish.request), &sampling, &options, &mut |event| {
        match event {
            TextEvent::Step { done, steps: all } => (step, steps) = (done, all),
            TextEvent::Frame { t, rows } => {
                for row in rows.iter().filter(|row| row.index == 0) {
                    match Told::forming(model, row) {
                        Ok(told) => {
                            if !tell(to, Message::Frame { t, step, steps, told }) {
                                return ControlFlow::Break(());
                            }
                        }
                        Err(error) => failed = Some(error),
                    }
                }
            }
            _ => {}
        }
        match stop.is_asked() || failed.is_some() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    if let Some(error) = failed {
        return Err(error);
    }
    let text = made?.texts.pop().ok_or_else(|| Error::request("no text was generated"))?;
    Told::finished(model, text)
}

#[pymethods]
impl Trajectory {
    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    /// The next frame, or the finished text as a `Text`, after which there is nothing.
    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let message = waiting::next(py, &self.messages).inspect_err(|_| self.stop.ask())?;
        match message {
            None => Ok(None),
            Some(Message::Frame { t, step, steps, told }) => {
                let given = PyDict::new(py);
                given.set_item("t", t)?;
                given.set_item("step", step)?;
                given.set_item("steps", steps)?;
                given.set_item("text", told.into_python(py)?)?;
                Ok(Some(class(py, "Frame")?.call((), Some(&given))?.unbind()))
            }
            Some(Message::End(outcome)) => Ok(Some(waiting::finished(outcome)?.into_python(py)?.unbind())),
        }
    }

    /// Stops the computation.
    fn close(&self) {
        self.stop.ask();
    }
}

impl Drop for Trajectory {
    fn drop(&mut self) {
        self.stop.ask();
    }
}
