//! What the models are asked for, and how: the settings of texts, and the request of one client.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{mpsc, oneshot};

use crate::Result;
use crate::model::loaded::Method;
use crate::text::generated::{GeneratedText, TextRequest};
use crate::text::text_engine::{EngineWatch, TextId};
use crate::text::text_loop::TextFrame;

/// The settings of all texts of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    /// The index of the model.
    pub model: usize,
    /// The method of generation.
    pub method: Method,
    /// When texts are decoded while they form.
    pub shown: Shown,
}

/// When texts are decoded while they form.
#[derive(Debug, Clone, PartialEq)]
pub enum Shown {
    /// At these times, as [`GenerateOptions::trace`](crate::GenerateOptions::trace) has them.
    At(Vec<f64>),
    /// After every step.
    EveryStep,
}

/// Texts of a request as they are after a step.
#[derive(Debug, Clone)]
pub struct Progress {
    /// Number of finished steps.
    pub step: usize,
    /// Total number of steps.
    pub steps: usize,
    /// The time, as [`TextEvent::Frame`](crate::TextEvent::Frame) has it.
    pub t: f64,
    /// The texts, by their index within the request.
    pub rows: Vec<TextFrame>,
}

/// The texts of a request, or why there are none.
pub type Outcome = Result<Vec<GeneratedText>, String>;

/// The request of one client.
pub struct Job {
    /// The settings.
    pub order: Arc<Order>,
    /// The texts to generate.
    pub requests: Vec<TextRequest>,
    /// The channel for the texts, in the order of the requests. A client that has gone has closed it.
    pub reply: oneshot::Sender<Outcome>,
    /// The channel for texts that form. Those that it has no room for are left out.
    pub progress: Option<mpsc::Sender<Progress>>,
    /// Counts the job among those that wait, until the model takes it.
    pub ticket: Option<Counted>,
}

impl Job {
    /// Whether nobody waits for the texts any more.
    pub fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }
}

/// The models as the queue uses them.
pub trait Models<'a> {
    /// Begins a text of a flow.
    ///
    /// # Errors
    /// If the settings are invalid for the model.
    fn admit(&mut self, order: &Order, request: &TextRequest, watch: EngineWatch<'a>) -> Result<TextId>;

    /// The number of texts that have begun and not ended, candidates included.
    fn running(&self) -> usize;

    /// Makes a step of texts that have begun. Returns those that have ended.
    fn step(&mut self) -> Vec<(TextId, Result<GeneratedText>)>;

    /// Ends a text that nobody waits for.
    fn cancel(&mut self, id: TextId);

    /// Generates a whole batch with a baseline.
    ///
    /// # Errors
    /// If the model fails.
    fn write(&mut self, order: &Order, requests: &[TextRequest]) -> Result<Vec<GeneratedText>>;
}

/// Adds one to a shared counter until it is dropped.
#[derive(Debug)]
pub struct Counted(Arc<AtomicUsize>);

impl Counted {
    /// One more, if there are fewer than `most`.
    pub fn below(number: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let more = |count| if count < most { Some(count + 1) } else { None };
        number.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).ok()?;
        Some(Self(Arc::clone(number)))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Why a job is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotTaken {
    /// As many jobs wait as may.
    Full,
    /// The model takes no more jobs.
    Closed,
}

/// The entrance to the model.
#[derive(Debug, Clone)]
pub struct Entrance {
    jobs: mpsc::UnboundedSender<Job>,
    waiting: Arc<AtomicUsize>,
    most: usize,
}

impl Entrance {
    /// An entrance where at most `most` jobs wait, and where they arrive.
    pub fn new(most: usize) -> (Self, mpsc::UnboundedReceiver<Job>) {
        let (jobs, arriving) = mpsc::unbounded_channel();
        (Self { jobs, waiting: Arc::default(), most }, arriving)
    }

    /// The number of jobs that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Lets a job wait for the model.
    ///
    /// # Errors
    /// If too many wait, or the model takes no more.
    pub fn submit(&self, job: Job) -> Result<(), NotTaken> {
        let ticket = Counted::below(&self.waiting, self.most).ok_or(NotTaken::Full)?;
        self.jobs.send(Job { ticket: Some(ticket), ..job }).map_err(|_| NotTaken::Closed)
    }
}
