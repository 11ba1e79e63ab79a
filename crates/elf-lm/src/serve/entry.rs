//! A request from its head to the end of its answer, for the log and the figures.

use std::pin::Pin;
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use http_body::{Frame, SizeHint};

use super::events::{RequestRecord, ServeEvent};
use super::order::Counted;
use super::refusal::render;
use super::service::Service;

/// The header with the id of a request.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Most characters of an id that is taken from a client, and of a path in the log.
const LONGEST: usize = 200;

/// The status in the log of a request whose client went away, as nginx has it.
const CLIENT_GONE: u16 = 499;

/// A request from its head to the end of its answer. When the last owner drops it, it is logged.
pub struct Entry {
    service: Arc<Service>,
    record: Mutex<RequestRecord>,
    /// The path as the routes have it, for figures.
    route: String,
    begun: Instant,
    first_frame: Once,
    /// Counts it among those that are not answered yet, once it is complete.
    active: Mutex<Option<Counted>>,
}

impl Entry {
    fn new(service: Arc<Service>, request: &Request) -> Self {
        let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
        let given = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok());
        let id = given.filter(|id| !id.is_empty() && id.len() <= LONGEST).map(str::to_owned);
        let record = RequestRecord {
            id: id.unwrap_or_else(|| uuid::Uuid::new_v4().to_string()),
            method: request.method().to_string(),
            path: request.uri().path().chars().take(LONGEST).collect(),
            status: CLIENT_GONE,
            ..RequestRecord::default()
        };
        let (record, begun) = (Mutex::new(record), Instant::now());
        Self { service, record, route, begun, first_frame: Once::new(), active: Mutex::default() }
    }

    fn record(&self) -> std::sync::MutexGuard<'_, RequestRecord> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the request is complete, and which model it asks for how many texts.
    pub fn asks(&self, model: &str, texts: usize) {
        let active = Counted::below(&self.service.active, usize::MAX);
        *self.active.lock().unwrap_or_else(PoisonError::into_inner) = active;
        let mut record = self.record();
        record.model = Some(model.to_owned());
        record.texts = texts;
    }

    /// Notes that a stream has told the first part of a text.
    pub fn shows(&self) {
        self.first_frame.call_once(|| self.service.metrics.first_frame(self.elapsed()));
    }

    fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let elapsed = self.elapsed();
        let record = {
            let mut record = self.record();
            record.seconds = elapsed.as_secs_f64();
            record.clone()
        };
        self.service.metrics.request(&self.route, record.status, elapsed);
        (self.service.watch)(ServeEvent::Answered(&record));
    }
}

/// Gives every request an [`Entry`] and an id, and every refusal its form.
pub async fn enter(State(service): State<Arc<Service>>, mut request: Request, next: Next) -> Response {
    let entry = Arc::new(Entry::new(service, &request));
    let path = request.uri().path().to_owned();
    request.extensions_mut().insert(Arc::clone(&entry));
    let mut response = render(next.run(request).await, &path);
    let id = {
        let mut record = entry.record();
        record.status = response.status().as_u16();
        HeaderValue::from_str(&record.id)
    };
    if let Ok(id) = id {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response.map(|body| Body::new(Owning { body, _entry: entry }))
}

/// A body that owns its request's entry.
struct Owning {
    body: Body,
    _entry: Arc<Entry>,
}

impl HttpBody for Owning {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
