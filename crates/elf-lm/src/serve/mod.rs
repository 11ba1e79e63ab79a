//! Generation over HTTP: requests of many clients, collected into batches for one model.
//!
//! Connections have a thread of their own ([`http`]). The model stays in the thread that loaded it and takes requests
//! from a queue ([`queue`]).

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

/// Options of a server.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// The model's name, for clients.
    pub name: Option<String>,
    /// Texts per batch, collected from waiting requests.
    pub batch_size: usize,
    /// Whether to pad every batch to `batch_size` rows, so that a text depends on its seed and input alone.
    pub one_shape: bool,
    /// Maximum number of texts per request.
    pub max_texts: usize,
    /// Maximum number of waiting requests.
    pub max_waiting: usize,
    /// Time limit for receiving the head of a request, and for its body.
    pub read_timeout: Duration,
    /// The seed of requests without one, and of the time grid if it is random.
    pub seed: u64,
}

/// Answers requests at `socket` (see [`http::bind`]) with texts of `model`, until `stop` is set and all complete
/// requests are answered.
///
/// # Errors
/// If the setting is invalid for the model, or the system refuses a thread or the socket.
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
    // Returns when the last connection has ended.
    queue::work(waiting, options.batch_size, &mut |requests| {
        Ok(model.generate_watched(requests, sampling, &generate, &mut |_| ControlFlow::Continue(()))?.texts)
    });
    connections.join().map_err(|_| Error::request("the thread of the connections has panicked"))?
}

/// The description of the model for clients.
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
