//! What a server tells the program that runs it.

use std::sync::Arc;

use serde::Serialize;

/// An answered request.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RequestRecord {
    /// The id that the client has given it, or a new one.
    pub id: String,
    /// The method.
    pub method: String,
    /// The path, without what follows a question mark.
    pub path: String,
    /// The status; 499 if the client went away before.
    pub status: u16,
    /// Seconds from the head of the request to the end of the answer.
    pub seconds: f64,
    /// The model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Number of texts that were asked for.
    pub texts: usize,
}

/// What a server tells the program that runs it.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum ServeEvent<'a> {
    /// A request was answered, or its client went away.
    Answered(&'a RequestRecord),
    /// Keys and certificates were read again.
    Reread,
    /// Something that is not as it should be; the server goes on.
    Warning(&'a str),
}

/// A listener to [`ServeEvent`]s, called in the thread of the connections.
pub type ServeWatch = Arc<dyn Fn(ServeEvent<'_>) + Send + Sync>;
