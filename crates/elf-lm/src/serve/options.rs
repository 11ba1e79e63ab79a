//! Options of a server.

use std::time::Duration;

use super::api_keys::ApiKeys;
use super::tls::Tls;

/// Options of a server.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Texts that are generated at once.
    pub batch_size: usize,
    /// Whether to fill every pass up to `batch_size` texts, so that a text depends on its seed and input alone.
    pub one_shape: bool,
    /// The seed of requests to `/generate` without one, and of the time grid if it is random.
    pub seed: u64,
    /// What a request may ask for.
    pub limits: Limits,
}

/// Who may use a server, and how.
#[derive(Debug, Default)]
pub struct Access {
    /// Keys, one of which a client must have.
    pub keys: Option<ApiKeys>,
    /// The certificate of encrypted connections.
    pub tls: Option<Tls>,
    /// Origins of web pages that may use the server, such as `https://example.org`; `*` is any.
    pub origins: Vec<String>,
}

/// Limits of requests and connections.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Maximum number of texts per request, candidates included.
    pub texts: usize,
    /// Maximum number of steps per text that a request may ask for.
    pub steps: usize,
    /// Maximum length of an input text, in bytes.
    pub input: usize,
    /// Maximum size of a request's body, in bytes.
    pub body: usize,
    /// Maximum number of waiting requests.
    pub waiting: usize,
    /// Maximum number of open connections; further ones wait to be accepted.
    pub connections: usize,
    /// Time limit for receiving the head of a request, for its body, and for sending any part of an answer.
    pub read_timeout: Duration,
    /// Time limit from a complete request to the end of its answer.
    pub timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            texts: 64,
            steps: 1024,
            input: 64 << 10,
            body: 1 << 20,
            waiting: 256,
            connections: 1024,
            read_timeout: Duration::from_secs(30),
            timeout: Duration::from_secs(300),
        }
    }
}
