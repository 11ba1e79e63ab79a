//! The HTTP interface: requests and answers in JSON, every refusal with its reason.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::Result;
use crate::error::Context;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use elf_files::lines::without_byte_order_mark;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use super::queue::Job;
use crate::config::fitted;
use crate::text::conditions::TAKES_NO_INPUT;
use crate::text::generated::TextRequest;

/// Maximum size of a request's body, in bytes.
const LARGEST_BODY: usize = 1 << 20;

/// Interval between checks of the stop flag.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How long a stopping server waits, after the last text, for clients to read answers or to complete requests.
const DRAIN: Duration = Duration::from_secs(5);

/// The state that handlers share.
#[derive(Clone)]
pub struct Service {
    /// The queue to the model.
    pub jobs: mpsc::Sender<Job>,
    /// The description of the model for clients.
    pub about: Arc<Value>,
    /// Whether the model generates from an input text.
    pub conditional: bool,
    /// Maximum number of texts per request.
    pub most_texts: usize,
    /// The seed of requests without one.
    pub seed: u64,
    /// Time limit for receiving the head of a request, and for its body.
    pub read_timeout: Duration,
    /// Number of requests that wait for their texts.
    pub waiting: Arc<AtomicUsize>,
}

/// Counts one waiting request in [`Service::waiting`] until it is dropped.
struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    fn of(service: &Service) -> Self {
        service.waiting.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(&service.waiting))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The body of `POST /generate`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// The input texts, for conditional models.
    #[serde(default)]
    inputs: Option<Vec<String>>,
    /// The number of texts, for unconditional models.
    #[serde(default)]
    num: Option<usize>,
    #[serde(default)]
    seed: Option<u64>,
}

/// A refused request: status and reason.
struct Refusal(StatusCode, String);

impl Refusal {
    fn bad(reason: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, reason.into())
    }

    fn busy(reason: &str) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, reason.to_owned())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = Json(json!({ "error": self.1 }));
        match self.0 {
            StatusCode::SERVICE_UNAVAILABLE => (self.0, [(header::RETRY_AFTER, "1")], body).into_response(),
            status => (status, body).into_response(),
        }
    }
}

impl Wanted {
    /// One request per text, with the seeds of `elf sample`.
    fn requests(self, service: &Service) -> Result<Vec<TextRequest>, Refusal> {
        let seed = self.seed.unwrap_or(service.seed);
        let count = match (service.conditional, &self.inputs, self.num) {
            (true, Some(inputs), None) => inputs.len(),
            (false, None, num) => num.unwrap_or(1),
            (true, None, _) => {
                return Err(Refusal::bad("this model writes from input texts: give them as `inputs`"));
            }
            (true, Some(_), Some(_)) => {
                return Err(Refusal::bad(
                    "`num` is for models of unconditional text: this one writes one text for each of `inputs`",
                ));
            }
            (false, Some(_), _) => return Err(Refusal::bad(TAKES_NO_INPUT)),
        };
        if count == 0 || count > service.most_texts {
            let most = service.most_texts;
            return Err(Refusal::bad(format!("{count} texts are asked for: from 1 to {most} can be in one request")));
        }
        let mut requests = TextRequest::unconditional(seed, count);
        for (i, (request, input)) in requests.iter_mut().zip(self.inputs.into_iter().flatten()).enumerate() {
            if input.trim().is_empty() {
                return Err(Refusal::bad(format!("inputs[{i}] is empty")));
            }
            request.condition = Some(input);
        }
        Ok(requests)
    }
}

async fn generate(State(service): State<Service>, request: Request) -> Result<Json<Value>, Refusal> {
    let body = tokio::time::timeout(service.read_timeout, Bytes::from_request(request, &())).await;
    let body = body.map_err(|_| Refusal(StatusCode::REQUEST_TIMEOUT, "the request arrived too slowly".to_owned()))?;
    let body = body.map_err(|rejection| Refusal(rejection.status(), rejection.body_text()))?;
    let keys: Map<String, Value> = serde_json::from_slice(without_byte_order_mark(&body))
        .map_err(|e| Refusal::bad(format!("the body should be JSON such as {}: {e}", example(service.conditional))))?;
    let wanted: Wanted = fitted(keys, "the request").map_err(|error| Refusal::bad(error.to_string()))?;
    let requests = wanted.requests(&service)?;
    let (reply, answered) = oneshot::channel();
    let begun = Instant::now();
    let _waiting = Waiting::of(&service);
    service.jobs.try_send(Job { requests, reply }).map_err(|e| match e {
        TrySendError::Full(_) => Refusal::busy("too many requests are waiting: try again later"),
        TrySendError::Closed(_) => Refusal::busy("the server is shutting down"),
    })?;
    let texts = answered
        .await
        .map_err(|_| Refusal::busy("the server is shutting down"))?
        .map_err(|reason| Refusal(StatusCode::INTERNAL_SERVER_ERROR, reason))?;
    Ok(Json(json!({ "texts": texts, "seconds": begun.elapsed().as_secs_f64() })))
}

fn example(conditional: bool) -> &'static str {
    if conditional { r#"{"inputs": ["a text"], "seed": 0}"# } else { r#"{"num": 4, "seed": 0}"# }
}

async fn about(State(service): State<Service>) -> Json<Value> {
    Json(service.about.as_ref().clone())
}

async fn health(State(service): State<Service>) -> Json<Value> {
    let waiting = service.jobs.max_capacity() - service.jobs.capacity();
    Json(json!({ "status": "ok", "requests_waiting": waiting }))
}

async fn not_found() -> Refusal {
    Refusal(StatusCode::NOT_FOUND, "there are GET /, GET /health and POST /generate".to_owned())
}

fn router(service: Service) -> Router {
    Router::new()
        .route("/", get(about))
        .route("/health", get(health))
        .route("/generate", post(generate))
        .fallback(not_found)
        .method_not_allowed_fallback(not_found)
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .with_state(service)
}

/// A listening socket at `address`, such as `127.0.0.1:8080`.
///
/// # Errors
/// If the server cannot listen at the address; the message names it.
pub fn bind(address: &str) -> Result<std::net::TcpListener> {
    let socket = std::net::TcpListener::bind(address).with_context(|| {
        format!("cannot listen at {address}: give a host and a free port, as --listen 127.0.0.1:8081")
    })?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Serves until `stop` is set and all complete requests are answered. Clients that have not completed a request soon
/// after are disconnected.
///
/// # Errors
/// If the system refuses a thread or the socket.
pub fn serve(socket: std::net::TcpListener, service: Service, stop: Arc<AtomicBool>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(socket)?;
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(service.read_timeout);
        let waiting = Arc::clone(&service.waiting);
        let (router, connections) = (router(service), GracefulShutdown::new());
        while !stop.load(Ordering::SeqCst) {
            match tokio::time::timeout(POLL_INTERVAL, listener.accept()).await {
                Ok(Ok((stream, _))) => {
                    let service = TowerToHyperService::new(router.clone());
                    let connection = connections.watch(http.serve_connection(TokioIo::new(stream), service));
                    // A failed connection concerns its client only.
                    tokio::spawn(async { _ = connection.await });
                }
                // A client that has disconnected, or too many open files: no reason to stop.
                Ok(Err(_)) => tokio::time::sleep(POLL_INTERVAL).await,
                Err(_) => {}
            }
        }
        drop((listener, router));
        let ended = connections.shutdown();
        tokio::pin!(ended);
        let mut idle = Instant::now();
        while tokio::time::timeout(POLL_INTERVAL, &mut ended).await.is_err() && idle.elapsed() < DRAIN {
            if waiting.load(Ordering::SeqCst) > 0 {
                idle = Instant::now();
            }
        }
        Ok(())
    })
}
