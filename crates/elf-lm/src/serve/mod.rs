//! Texts over HTTP: what many clients ask for, gathered into batches for one model.
//!
//! The connections live in a thread of their own ([`http`]); the model stays in the one it was loaded in and takes what waits for it
//! ([`queue`]).

pub mod http;
pub mod queue;

use std::net::TcpListener;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{Error, GenerateOptions, Model, Result, Sampling};

/// How a server works.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// The model's name, for clients.
    pub name: Option<String>,
    /// Texts generated at once, pooled from waiting requests.
    pub batch_size: usize,
    /// Whether every batch is filled up, so that a text depends on its seed and input alone.
    pub one_shape: bool,
    /// Most texts of one request.
    pub max_texts: usize,
    /// Most requests that wait.
    pub max_waiting: usize,
    /// How long a client may take to send the head of a request, and its body.
    pub read_timeout: Duration,
    /// The seed of requests that name none, and of a random grid of times.
    pub seed: u64,
}

/// Answers requests at `socket` (see [`http::bind`]) with texts of `model` until `stop` is set and what was asked for before is
/// answered.
///
/// # Errors
/// If the setting makes no sense for the model, or the system refuses a thread or the socket.
pub fn serve(
    socket: TcpListener,
    model: &Model,
    sampling: &Sampling,
    options: &ServeOptions,
    stop: Arc<AtomicBool>,
) -> Result<()> {
    let (jobs, waiting) = mpsc::channel(options.max_waiting);
    let service = http::Service {
        jobs,
        about: Arc::new(about(model, sampling, options)),
        conditional: model.takes_input(),
        most_texts: options.max_texts,
        seed: options.seed,
        read_timeout: options.read_timeout,
        waiting: Arc::default(),
    };
    let generate = GenerateOptions {
        batch_size: options.batch_size,
        one_shape: options.one_shape,
        grid_seed: options.seed,
        trace: Vec::new(),
    };
    let connections = std::thread::spawn(move || http::serve(socket, service, stop));
    // Ends when the last connection does.
    queue::work(waiting, options.batch_size, &mut |requests| {
        Ok(model.generate_watched(requests, sampling, &generate, &mut |_| ControlFlow::Continue(()))?.texts)
    });
    connections.join().map_err(|_| Error::request("the thread of the connections is gone"))?
}

/// What clients are told of the model.
fn about(model: &Model, sampling: &Sampling, options: &ServeOptions) -> Value {
    let plan = model.plan();
    json!({
        "model": options.name,
        "parameters": plan.parameter_count(),
        "positions": plan.span.max_length,
        "input_positions": plan.span.max_input_length,
        "sampling": sampling.name(),
        "texts_at_once": options.batch_size,
        "texts_per_request": options.max_texts,
    })
}
