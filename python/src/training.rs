//! Training.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};

use elf_lm::config::{Overrides, RunConfig, read_yaml};
use elf_lm::train::{Ended, Ranks, TrainingRun};
use elf_lm::{DeviceChoice, Event, Host};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict};

use crate::errors;
use crate::settings;
use crate::texts::class;
use crate::waiting::{self, Outcome, Stop, guarded, tell};

/// What the training's thread sends.
enum Message {
    Event(Heard),
    End(Outcome<Ended>),
}

/// An event with texts of its own.
struct Heard {
    kind: &'static str,
    text: Option<String>,
    done: Option<u64>,
    total: Option<u64>,
}

impl Heard {
    fn of(event: Event<'_>) -> Option<Self> {
        let heard =
            |kind, text: Option<&str>, done, total| Some(Self { kind, text: text.map(str::to_owned), done, total });
        match event {
            Event::Note(line) => heard("note", Some(line), None, None),
            Event::Warning(line) => heard("warning", Some(line), None, None),
            Event::Started { unit, done, total } => heard("started", Some(unit), Some(done), Some(total)),
            Event::Progress { done, message } => heard("progress", message, Some(done), None),
            Event::Ended => heard("ended", None, None, None),
            _ => None,
        }
    }

    fn into_python(self, py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
        class(py, "Event")?.call1((self.kind, self.text, self.done, self.total))
    }
}

/// What is trained.
struct Job {
    config: Option<PathBuf>,
    options: Vec<String>,
    output: Option<PathBuf>,
    device: DeviceChoice,
}

/// Train what a configuration describes, or go on with it from the latest checkpoint in its output folder.
///
/// Ctrl-C saves a checkpoint and then raises ``KeyboardInterrupt``; so does an exception of ``on_event``. The same call goes
/// on. A second Ctrl-C does not wait for the checkpoint.
///
/// Parameters
/// ----------
/// config
///     A YAML file of settings, as for ``elf train``.
/// options
///     Settings that differ from those of the file, by key.
/// output
///     The run's folder; the same as the key ``output_dir``.
/// device
///     ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
/// on_event
///     Is called with each :class:`~elf_flows.Event`, on the calling thread.
///
/// Returns
/// -------
/// str
///     ``"finished"``, ``"no longer better"``, ``"out of data"`` or ``"out of time"``.
#[pyfunction]
#[pyo3(signature = (config = None, *, options = None, output = None, device = "auto", on_event = None))]
pub fn train(
    py: Python<'_>,
    config: Option<PathBuf>,
    options: Option<&Bound<'_, PyDict>>,
    output: Option<PathBuf>,
    device: &str,
    on_event: Option<Py<PyAny>>,
) -> PyResult<&'static str> {
    let options = options.into_iter().flatten().map(|(key, value)| written(&key, &value)).collect::<PyResult<_>>()?;
    let job = Job { config, options, output, device: settings::device(device)? };
    let stop = Stop::new();
    let heeded = stop.clone();
    let (to, messages) = channel();
    std::thread::Builder::new().name("elf-flows-train".to_owned()).spawn(move || {
        let end = guarded(|| job.carry_out(&to, &heeded));
        tell(&to, Message::End(end));
    })?;
    let messages = Mutex::new(messages);
    let mut raised: Option<PyErr> = None;
    loop {
        let next = match waiting::next(py, &messages) {
            Ok(Some(Message::Event(event))) => {
                on_event.as_ref().map_or(Ok(()), |call| call.call1(py, (event.into_python(py)?,)).map(drop))
            }
            Ok(Some(Message::End(outcome))) => {
                let ended = waiting::finished(outcome);
                return match raised {
                    Some(error) => Err(error),
                    None => Ok(name(ended?)),
                };
            }
            Ok(None) => return Err(errors::closed()),
            Err(interrupt) => Err(interrupt),
        };
        if let Err(error) = next {
            // The run saves at the first exception, and goes on saving without us at the second one.
            stop.ask();
            match raised {
                Some(_) => return Err(error),
                None => raised = Some(error),
            }
        }
    }
}

impl Job {
    fn carry_out(&self, to: &Sender<Message>, stop: &Stop) -> elf_lm::Result<Ended> {
        let mut events = |event: Event<'_>| {
            if let Some(heard) = Heard::of(event) {
                tell(to, Message::Event(heard));
            }
        };
        let host = Host::new(&mut events).with_stop(stop.flag());
        let overrides = Overrides::parse(&self.options)?.with("output_dir", self.output.as_ref())?;
        let config: RunConfig = read_yaml(self.config.as_deref(), &overrides, |line| host.warning(line))?;
        TrainingRun::prepare(&config, Ranks::alone(self.device)?, &host)?.carry_out(&host)
    }
}

/// A setting as `key=value`, as on the command line.
fn written(key: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<String> {
    let value = if value.is_none() {
        "null".to_owned()
    } else if let Ok(truth) = value.cast::<PyBool>() {
        truth.is_true().to_string()
    } else {
        value.str()?.to_string()
    };
    Ok(format!("{}={value}", key.extract::<String>()?))
}

fn name(ended: Ended) -> &'static str {
    match ended {
        Ended::Finished => "finished",
        Ended::NoLongerBetter => "no longer better",
        Ended::OutOfData => "out of data",
        Ended::OutOfTime => "out of time",
        Ended::Interrupted => "interrupted",
    }
}
