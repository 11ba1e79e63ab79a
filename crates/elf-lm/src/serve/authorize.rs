//! Requests without a valid key are refused.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::refusal::Refusal;
use super::service::Service;

/// Paths that need no key: whether the server is there, and whether it is ready.
const OPEN: [&str; 2] = ["/health", "/ready"];

/// Refuses requests without a key, if the server has keys.
pub async fn authorize(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let admitted = match &service.keys {
        Some(keys) => OPEN.contains(&request.uri().path()) || keys.admit(request.headers()),
        None => true,
    };
    if admitted {
        return next.run(request).await;
    }
    let reason = "a valid key is needed: send it as the header `Authorization: Bearer KEY`";
    Refusal::new(StatusCode::UNAUTHORIZED, reason).with_code("invalid_api_key").into_response()
}
