//! Answers as server-sent events, while texts form.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::order::{Order, Outcome, Progress};
use super::refusal::Refusal;
use super::service::{Service, texts_of, too_late};
use crate::TextRequest;
use crate::text::generated::GeneratedText;

/// Frames that wait for a client to read them; further ones are left out.
const MOST_FRAMES: usize = 256;

/// Events that are ready to be sent.
#[derive(Default)]
pub struct Events(VecDeque<Event>);

impl Events {
    /// Adds an event with this JSON.
    pub fn send(&mut self, value: &Value) {
        self.0.push_back(Event::default().data(value.to_string()));
    }
}

/// The events of one form of answer.
pub trait TextEvents: Send + 'static {
    /// Events before the first frame.
    fn begin(&self, _events: &mut Events) {}

    /// Events of unfinished texts.
    fn show(&mut self, progress: &Progress, events: &mut Events);

    /// Events of the finished texts.
    ///
    /// # Errors
    /// If an event cannot be made; the refusal is the last event.
    fn finish(&mut self, texts: Vec<GeneratedText>, events: &mut Events) -> Result<(), Refusal>;
}

/// Submits the requests and answers with their events, which end with `[DONE]`. Without `frames` only finished texts are sent.
///
/// # Errors
/// If the requests are not taken.
pub fn stream(
    service: &Service,
    order: Order,
    requests: Vec<TextRequest>,
    frames: bool,
    form: impl TextEvents,
) -> Result<Response, Refusal> {
    let (sender, progress) = mpsc::channel(MOST_FRAMES);
    let answered = service.submit(order, requests, frames.then_some(sender))?;
    let mut ready = Events::default();
    form.begin(&mut ready);
    let limit = service.limits.timeout;
    let stream = Stream { form, progress, answered: Some(answered), limit, deadline: Instant::now() + limit, ready };
    let events = futures_util::stream::unfold(stream, |mut stream| async {
        stream.next().await.map(|event| (Ok::<_, Infallible>(event), stream))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}

struct Stream<F> {
    form: F,
    progress: mpsc::Receiver<Progress>,
    /// The finished texts; taken when they are there.
    answered: Option<oneshot::Receiver<Outcome>>,
    limit: Duration,
    deadline: Instant,
    ready: Events,
}

impl<F: TextEvents> Stream<F> {
    /// The next event; `None` after the last.
    async fn next(&mut self) -> Option<Event> {
        while self.ready.0.is_empty() && self.answered.is_some() {
            match timeout_at(self.deadline, self.progress.recv()).await {
                Ok(Some(progress)) => self.form.show(&progress, &mut self.ready),
                Ok(None) => {
                    let answered = self.answered.take()?;
                    let outcome = timeout_at(self.deadline, answered).await;
                    self.end(outcome.map_or_else(|_| Err(too_late(self.limit)), texts_of));
                }
                Err(_) => {
                    self.answered = None;
                    self.end(Err(too_late(self.limit)));
                }
            }
        }
        self.ready.0.pop_front()
    }

    fn end(&mut self, outcome: Result<Vec<GeneratedText>, Refusal>) {
        if let Err(refusal) = outcome.and_then(|texts| self.form.finish(texts, &mut self.ready)) {
            self.ready.send(&refusal.openai_body());
        }
        self.ready.0.push_back(Event::default().data("[DONE]"));
    }
}
