//! The state that all connections share.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use elf_files::lines::without_byte_order_mark;
use serde_json::{Map, Value};
use tokio::sync::oneshot::error::RecvError;
use tokio::sync::{mpsc, oneshot};

use super::api_keys::ApiKeys;
use super::events::ServeWatch;
use super::metrics::Metrics;
use super::options::Limits;
use super::order::{Entrance, Job, NotTaken, Order, Outcome, Progress};
use super::refusal::Refusal;
use super::served_model::ServedModel;
use super::tls::Tls;
use crate::text::generated::{GeneratedText, TextRequest};

/// The state that all connections share.
pub struct Service {
    /// The entrance to the models.
    pub entrance: Entrance,
    /// The models, once they are loaded.
    pub models: Arc<OnceLock<Vec<Arc<ServedModel>>>>,
    /// What a request may ask for.
    pub limits: Limits,
    /// Texts per batch.
    pub batch_size: usize,
    /// The seed of requests to `/generate` without one.
    pub seed: u64,
    /// Keys, one of which a client must have.
    pub keys: Option<ApiKeys>,
    /// The certificate of encrypted connections.
    pub tls: Option<Tls>,
    /// Number of complete requests that are not answered yet.
    pub active: Arc<AtomicUsize>,
    /// The figures.
    pub metrics: Arc<Metrics>,
    /// The listener to what happens.
    pub watch: ServeWatch,
}

impl Service {
    /// The models.
    ///
    /// # Errors
    /// If they are still being loaded.
    pub fn models(&self) -> Result<&[Arc<ServedModel>], Refusal> {
        self.models
            .get()
            .map(Vec::as_slice)
            .ok_or_else(|| Refusal::busy("the models are being loaded: try again later"))
    }

    /// Number of complete requests that are not answered yet.
    pub fn active(&self) -> usize {
        self.active.load(Ordering::SeqCst)
    }

    /// The keys of a request's body; `example` is shown where it has none.
    ///
    /// # Errors
    /// If the body is too large, too slow, or no JSON object.
    pub async fn json_body(&self, request: Request, example: &str) -> Result<Map<String, Value>, Refusal> {
        let length =
            request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if let Some(length) = length.filter(|&length: &usize| length > self.limits.body) {
            let most = self.limits.body;
            let reason = format!("the body has {length} bytes, and the limit is {most} (--max-body)");
            return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, reason));
        }
        let body = tokio::time::timeout(self.limits.read_timeout, Bytes::from_request(request, &())).await;
        let slow = |_| Refusal::new(StatusCode::REQUEST_TIMEOUT, "the request arrived too slowly");
        let body = body.map_err(slow)?.map_err(|rejection| Refusal::new(rejection.status(), rejection.body_text()))?;
        serde_json::from_slice(without_byte_order_mark(&body))
            .map_err(|e| Refusal::bad(format!("the body should be JSON such as {example}: {e}")))
    }

    /// Refuses an input that is empty or too long, under the name of its field.
    ///
    /// # Errors
    /// If it is.
    pub fn check_input(&self, field: &str, input: &str) -> Result<(), Refusal> {
        if input.trim().is_empty() {
            return Err(Refusal::field(field, format!("{field} is empty")));
        }
        let (length, most) = (input.len(), self.limits.input);
        if length > most {
            let reason = format!("{field} has {length} bytes: an input can have at most {most} (--max-input)");
            return Err(Refusal::field(field, reason));
        }
        Ok(())
    }

    /// Lets requests wait for the model.
    ///
    /// # Errors
    /// If too many wait, or the server is shutting down.
    pub fn submit(
        &self,
        order: Order,
        requests: Vec<TextRequest>,
        progress: Option<mpsc::Sender<Progress>>,
    ) -> Result<oneshot::Receiver<Outcome>, Refusal> {
        let (reply, answered) = oneshot::channel();
        let job = Job { order: Arc::new(order), requests, reply, progress, ticket: None };
        self.entrance.submit(job).map_err(|reason| match reason {
            NotTaken::Full => Refusal::busy("too many requests are waiting: try again later"),
            NotTaken::Closed => Refusal::busy(ENDING),
        })?;
        Ok(answered)
    }

    /// The texts of a job. A client that goes away, or waits for too long, drops the receiver, and the job is dropped
    /// with it.
    ///
    /// # Errors
    /// If the model fails, the server is shutting down, or the texts take too long.
    pub async fn texts(&self, answered: oneshot::Receiver<Outcome>) -> Result<Vec<GeneratedText>, Refusal> {
        match tokio::time::timeout(self.limits.timeout, answered).await {
            Ok(outcome) => texts_of(outcome),
            Err(_) => Err(too_late(self.limits.timeout)),
        }
    }
}

/// The texts of a job that has left the queue.
///
/// # Errors
/// If the model has failed, or the server is shutting down.
pub fn texts_of(outcome: Result<Outcome, RecvError>) -> Result<Vec<GeneratedText>, Refusal> {
    outcome
        .map_err(|_| Refusal::busy(ENDING))?
        .map_err(|reason| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, reason))
}

const ENDING: &str = "the server is shutting down";

/// The refusal of a request whose texts took too long.
pub fn too_late(limit: Duration) -> Refusal {
    let reason = format!("the texts were not there after {} s (--timeout)", limit.as_secs_f64());
    Refusal::new(StatusCode::GATEWAY_TIMEOUT, reason).with_code("timeout")
}
