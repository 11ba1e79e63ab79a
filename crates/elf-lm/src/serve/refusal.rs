//! Refused requests: status, reason, and the two forms in which they are answered.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// A refused request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The status.
    pub status: StatusCode,
    /// The reason, and what can be requested instead.
    pub reason: String,
    /// The field that is wrong.
    pub param: Option<String>,
    /// A code for programs, as OpenAI's API has it.
    pub code: Option<&'static str>,
}

impl Refusal {
    /// A refusal with a status.
    pub fn new(status: StatusCode, reason: impl Into<String>) -> Self {
        Self { status, reason: reason.into(), param: None, code: None }
    }

    /// An invalid request.
    pub fn bad(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason)
    }

    /// An invalid field of a request.
    pub fn field(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { param: Some(name.into()), ..Self::bad(reason) }
    }

    /// A field whose effect the model does not have.
    pub fn unsupported(name: &str, reason: impl std::fmt::Display) -> Self {
        let code = Some("unsupported_parameter");
        Self { code, ..Self::field(name, format!("`{name}` is not supported: {reason}")) }
    }

    /// A server that cannot take the request now.
    pub fn busy(reason: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, reason)
    }

    /// A failure of the server itself.
    pub fn failed(error: crate::Error) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.report())
    }

    /// With a code for programs.
    pub fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// The body in the form of OpenAI's API.
    pub fn openai_body(&self) -> Value {
        let kind = match self.status {
            status if status.is_server_error() => "server_error",
            StatusCode::UNAUTHORIZED => "authentication_error",
            _ => "invalid_request_error",
        };
        json!({ "error": { "message": self.reason, "type": kind, "param": self.param, "code": self.code } })
    }

    /// The answer to a request for `path`: under `/v1` in the form of OpenAI's API, elsewhere `{"error": "..."}`.
    pub fn at(&self, path: &str) -> Response {
        let body = if path.starts_with("/v1/") { self.openai_body() } else { json!({ "error": self.reason }) };
        let mut response = (self.status, Json(body)).into_response();
        let more = match self.status {
            StatusCode::SERVICE_UNAVAILABLE => Some((header::RETRY_AFTER, "1")),
            StatusCode::UNAUTHORIZED => Some((header::WWW_AUTHENTICATE, "Bearer")),
            _ => None,
        };
        if let Some((name, value)) = more {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

/// The refusal alone; [`render`] gives it the form of its path.
impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// An answer to a request for `path`, in which a [`Refusal`] has its form.
pub fn render(mut response: Response, path: &str) -> Response {
    match response.extensions_mut().remove::<Refusal>() {
        Some(refusal) => refusal.at(path),
        None => response,
    }
}
