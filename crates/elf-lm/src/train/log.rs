//! What a user sees of a training run, and what metrics.jsonl keeps.

use std::cell::RefCell;
use std::fs::File;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use elf_train::{Checkpoint, Comm, Metric, StepMetrics, TermSums, TrainingObserver};
use serde_json::{Value, json};

use crate::json_files::append_json;
use crate::tensorboard::EventFile;
use crate::{Error, Event, Host, Result};

/// Shows progress, writes metrics, and stops the run when its time is over.
pub struct TrainingLog<'a, 'h> {
    host: &'a Host<'h>,
    /// Only on the rank that writes.
    metrics: Option<File>,
    events: Option<SharedEvents>,
    comm: Rc<dyn Comm>,
    log_freq: u64,
    started: Instant,
    deadline: Option<Instant>,
    /// Whether the deadline was what stopped the run.
    pub out_of_time: bool,
    window: Window,
    failed: Option<crate::Error>,
}

/// TensorBoard's event file, shared by those who write to it.
pub type SharedEvents = Rc<RefCell<EventFile>>;

/// The tag of a metric in TensorBoard, which draws the tags of one group, the part before `/`, together. Bins of time, such as
/// `l2@0.3`, are groups of their own; metrics of texts have a group already, the name of the sampling setting.
fn tag(name: &str) -> String {
    let (group, name) = match name.strip_prefix("validation_") {
        Some(name) => ("held_out", name),
        None if name.contains('/') => return name.to_owned(),
        None => ("train", name),
    };
    match name.split_once('@') {
        Some((term, bin)) => format!("{group}_{term}_by_t/{bin}"),
        None => format!("{group}/{name}"),
    }
}

/// Sums since the last line of metrics.
struct Window {
    since: Instant,
    steps: u64,
    loss: f64,
    positions: u64,
    terms: TermSums,
    by_time: TermSums,
}

impl Window {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            steps: 0,
            loss: 0.0,
            positions: 0,
            terms: TermSums::default(),
            by_time: TermSums::default(),
        }
    }

    fn add(&mut self, step: &StepMetrics) {
        self.steps += 1;
        self.loss += step.loss;
        self.positions += step.positions;
        for (sums, means) in [(&mut self.terms, &step.terms), (&mut self.by_time, &step.by_time)] {
            means.iter().for_each(|term| sums.add(&term.name, term.mean * term.count, term.count));
        }
    }

    /// Makes the parts of the loss and the positions those of all ranks; the loss is theirs already.
    fn add_other_ranks(&mut self, comm: &dyn Comm) -> Result<()> {
        let own = serde_json::to_vec(&(self.positions, &self.terms, &self.by_time))?;
        (self.positions, self.terms, self.by_time) = (0, TermSums::default(), TermSums::default());
        for bytes in comm.gather_bytes(&own)? {
            let (positions, terms, by_time): (u64, TermSums, TermSums) = serde_json::from_slice(&bytes)?;
            self.positions += positions;
            self.terms.merge(&terms);
            self.by_time.merge(&by_time);
        }
        Ok(())
    }

    fn rate(&self) -> f64 {
        self.positions as f64 / self.since.elapsed().as_secs_f64().max(1e-9)
    }

    fn means(&self) -> Vec<(String, f64)> {
        let loss = ("loss".to_owned(), self.loss / self.steps.max(1) as f64);
        std::iter::once(loss).chain(self.terms.means().into_iter().map(|term| (term.name, term.mean))).collect()
    }
}

/// What a log begins with.
pub struct LogStart {
    /// The file of metrics; only on the rank that writes. The other ranks show nothing.
    pub metrics: Option<File>,
    /// TensorBoard's event file, if there is to be one; only on the rank that writes.
    pub events: Option<SharedEvents>,
    /// Steps that are done already.
    pub steps_done: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Steps between two lines of metrics.
    pub log_freq: u64,
    /// When the run is asked to stop.
    pub deadline: Option<Instant>,
}

impl<'a, 'h> TrainingLog<'a, 'h> {
    /// Begins to show and to write. The host's stop flag is set at the deadline.
    pub fn new(host: &'a Host<'h>, comm: Rc<dyn Comm>, start: LogStart) -> Self {
        let LogStart { metrics, events, steps_done, total_steps, log_freq, deadline } = start;
        if metrics.is_some() {
            host.send(Event::Started { unit: "steps", done: steps_done, total: total_steps });
        }
        Self {
            host,
            metrics,
            events,
            comm,
            log_freq,
            started: Instant::now(),
            deadline,
            out_of_time: false,
            window: Window::new(),
            failed: None,
        }
    }

    /// Writes metrics to metrics.jsonl and to TensorBoard's event file.
    fn write(&mut self, step: u64, metrics: Vec<(String, Value)>) {
        let numbers =
            metrics.iter().filter_map(|(name, value)| Some((name.clone(), value.as_f64()?))).collect::<Vec<_>>();
        if self.metrics.is_some() {
            self.host.send(Event::Metrics { step, metrics: &numbers });
        }
        let scalars = numbers.into_iter().map(|(name, value)| (tag(&name), value));
        let own =
            [("step".to_owned(), json!(step)), ("seconds".to_owned(), json!(self.started.elapsed().as_secs_f64()))];
        let line = Value::Object(own.into_iter().chain(metrics).collect());
        let written = self.metrics.as_mut().map_or(Ok(()), |file| append_json(file, &line));
        let shown = self.events.as_ref().map_or(Ok(()), |events| events.borrow_mut().scalars(step, scalars));
        // An observer cannot fail; the first failure ends the run through the stop flag and is reported then.
        if let Err(error) = written.and(shown) {
            self.fail(error);
        }
    }

    fn fail(&mut self, error: crate::Error) {
        if self.failed.is_none() {
            self.failed = Some(error);
            self.host.stop().store(true, Ordering::SeqCst);
        }
    }

    fn message(&self) -> String {
        let text = |(name, mean): &(String, f64)| format!("{name} {mean:.3}");
        let means = self.window.means().iter().map(text).collect::<Vec<_>>().join(", ");
        format!("{means}; {:.0} positions/s", self.window.rate() * self.comm.world() as f64)
    }

    /// Ends the display.
    ///
    /// # Errors
    /// If metrics could not be written.
    pub fn finish(self) -> Result<()> {
        if self.metrics.is_some() {
            self.host.send(Event::Ended);
        }
        match self.failed {
            Some(error) => Err(Error::request(format!("{}; the run stopped and saved a checkpoint", error.report()))),
            None => Ok(()),
        }
    }
}

impl TrainingObserver for TrainingLog<'_, '_> {
    fn stepped(&mut self, step: &StepMetrics) {
        self.window.add(step);
        let done = step.step + 1;
        if self.metrics.is_some() {
            let message = (done.is_multiple_of(self.log_freq) || self.window.steps == 1).then(|| self.message());
            self.host.send(Event::Progress { done, message: message.as_deref() });
        }
        if done.is_multiple_of(self.log_freq) {
            if let Err(error) = self.window.add_other_ranks(self.comm.as_ref()) {
                self.fail(error);
            }
            let by_time = self.window.by_time.means().into_iter().map(|term| (term.name, json!(term.mean)));
            let means = self.window.means().into_iter().map(|(name, mean)| (name, json!(mean))).chain(by_time);
            let others = [
                ("grad_norm", json!(step.grad_norm)),
                ("lr", json!(step.lr)),
                ("positions", json!(self.window.positions)),
                ("positions_per_s", json!(self.window.rate())),
            ];
            let metrics = means.chain(others.map(|(name, value)| (name.to_owned(), value))).collect();
            self.write(done, metrics);
            self.window = Window::new();
        }
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) && !self.host.stop().load(Ordering::SeqCst)
        {
            self.out_of_time = true;
            self.host.stop().store(true, Ordering::SeqCst);
        }
    }

    fn evaluated(&mut self, steps_done: u64, metrics: &[Metric]) {
        // Without held-out rows and texts to generate there is nothing to say.
        if metrics.is_empty() {
            return;
        }
        self.write(steps_done, metrics.iter().map(|metric| (metric.name.clone(), json!(metric.value))).collect());
        // Bins of time, such as `validation_l2@0.3`, are for the file alone.
        let losses = metrics.iter().filter(|m| m.name.starts_with("validation_") && !m.name.contains('@'));
        let text = losses.map(|m| format!("{} {:.3}", m.name, m.value)).collect::<Vec<_>>().join(", ");
        // Said once, by the rank that writes.
        if self.metrics.is_some() {
            self.host.note(format!("step {steps_done}: {text}"));
        }
        // Evaluation is not training: its time does not count in the rate.
        self.window.since = Instant::now();
        self.window.positions = 0;
    }

    fn saved(&mut self, checkpoint: &Checkpoint, _removed: &[u64]) {
        self.host.note(format!("saved {}", checkpoint.path().display()));
    }
}
