//! `POST /v1/trajectories`: texts as they form, every frame as a server-sent event.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::entry::Entry;
use super::fields::Fields;
use super::openai::{Input, ignored, prompts, requests};
use super::order::{Order, Outcome, Progress, Shown};
use super::refusal::Refusal;
use super::served_model::ServedModel;
use super::service::{Service, texts_of, too_late};
use super::wish::Wish;
use crate::Result;
use crate::config::Sampling;
use crate::model::loaded::Method;
use crate::text::generated::GeneratedText;

/// Most values of `times`.
const MOST_TIMES: usize = 1000;

/// Frames that wait for a client to read them; further ones are left out.
const MOST_FRAMES: usize = 256;

/// `POST /v1/trajectories`
pub async fn trajectories(
    State(service): State<Arc<Service>>,
    Extension(entry): Extension<Arc<Entry>>,
    request: Request,
) -> Result<Response, Refusal> {
    let fields = service.json_body(request, r#"{"prompt": "a text", "steps": 8}"#).await?;
    let mut fields = Fields::new(fields);
    let wish = Wish::read(&service, &mut fields)?;
    let inputs = prompts(&mut fields, &wish.model, &service)?;
    let shown = times(&mut fields)?.map_or(Shown::EveryStep, Shown::At);
    let method = single(&wish)?;
    if wish.max_tokens.is_some() || !wish.stop.is_empty() {
        return Err(Refusal::bad("`max_tokens` and `stop` do not cut texts that form: leave them out"));
    }
    wish.check_number(inputs.len(), &service)?;
    entry.asks(&wish.model.name, inputs.len() * wish.n);
    let ignored = ignored(fields);
    let mut response = stream(&service, entry, &wish, &inputs, Order { model: wish.place, method, shown })?;
    if let Some((name, value)) = ignored {
        response.headers_mut().insert(name, value);
    }
    Ok(response)
}

/// The times at which texts are shown; `None` after every step.
fn times(fields: &mut Fields) -> Result<Option<Vec<f64>>, Refusal> {
    let expected = format!("a list of at most {MOST_TIMES} numbers from 0 to 1");
    let Some(times) = fields.take::<Vec<f64>>("times", &expected)? else { return Ok(None) };
    match times.len() <= MOST_TIMES && times.iter().all(|t| (0.0..=1.0).contains(t)) {
        true => Ok(Some(times)),
        false => Err(Refusal::field("times", format!("`times` should be {expected}"))),
    }
}

/// The method with a single candidate per text: of several, none is the text until the end.
fn single(wish: &Wish) -> Result<Method, Refusal> {
    match &wish.method {
        Method::Flow(sampling) => Ok(Method::Flow(Sampling { best_of: 1, mbr: 1, ..sampling.clone() })),
        Method::Baseline { .. } => {
            let reason = "baselines show no texts that form: /v1/trajectories is for flows";
            Err(Refusal::field("model", format!("{}: {reason}", wish.model.name)).with_code("unsupported_model"))
        }
    }
}

fn stream(
    service: &Service,
    entry: Arc<Entry>,
    wish: &Wish,
    inputs: &[Input],
    order: Order,
) -> Result<Response, Refusal> {
    let (frames, progress) = mpsc::channel(MOST_FRAMES);
    let answered = service.submit(order, requests(wish.seed, inputs, wish.n), Some(frames))?;
    let frames = Frames {
        model: Arc::clone(&wish.model),
        entry,
        seed: wish.seed,
        progress,
        answered: Some(answered),
        limit: service.limits.timeout,
        deadline: Instant::now() + service.limits.timeout,
        ready: VecDeque::new(),
    };
    let events = futures_util::stream::unfold(frames, |mut frames| async {
        frames.next().await.map(|event| (Ok::<_, Infallible>(event), frames))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}

/// A stream of frames.
struct Frames {
    model: Arc<ServedModel>,
    entry: Arc<Entry>,
    seed: u64,
    progress: mpsc::Receiver<Progress>,
    /// The finished texts; taken when they are there.
    answered: Option<oneshot::Receiver<Outcome>>,
    limit: Duration,
    deadline: Instant,
    /// Events that are ready to be sent.
    ready: VecDeque<Event>,
}

impl Frames {
    /// The next event; `None` after the last.
    async fn next(&mut self) -> Option<Event> {
        while self.ready.is_empty() && self.answered.is_some() {
            match timeout_at(self.deadline, self.progress.recv()).await {
                Ok(Some(progress)) => self.show(&progress),
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
        self.ready.pop_front()
    }

    fn send(&mut self, value: &Value) {
        self.ready.push_back(Event::default().data(value.to_string()));
    }

    fn show(&mut self, progress: &Progress) {
        self.entry.shows();
        let &Progress { step, steps, t, ref rows } = progress;
        for row in rows {
            // A tokenizer that fails here fails at the end, too, which is told.
            if let Ok(tokens) = self.model.told(&row.tokens, row.log_probs.as_deref()) {
                let (index, text) = (row.index, &row.text);
                self.send(&json!({
                    "index": index, "step": step, "steps": steps, "t": t, "text": text, "tokens": tokens,
                }));
            }
        }
    }

    fn end(&mut self, outcome: Result<Vec<GeneratedText>, Refusal>) {
        let told = outcome.and_then(|texts| texts.iter().map(|text| self.last(text)).collect::<Result<Vec<_>, _>>());
        match told {
            Ok(texts) => texts.iter().for_each(|text| self.send(text)),
            Err(refusal) => self.send(&refusal.openai_body()),
        }
        self.ready.push_back(Event::default().data("[DONE]"));
    }

    /// The last event of a text.
    fn last(&self, made: &GeneratedText) -> Result<Value, Refusal> {
        let tokens = self.model.told(&made.tokens, made.log_probs.as_deref()).map_err(Refusal::failed)?;
        Ok(json!({
            "index": made.index,
            "final": true,
            "text": made.text,
            "tokens": tokens,
            "confidence": made.confidence,
            "input_cut": made.input_cut,
            "seed": self.seed,
            "model": self.model.name,
        }))
    }
}
