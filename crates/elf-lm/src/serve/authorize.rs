//! Requests without a valid key are refused.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::pages::wants_html;
use super::refusal::Refusal;
use super::service::Service;

/// Whether a request needs no key: whether the server is there, whether it is ready, and the page, which has nothing of
/// the models in it and asks its reader for a key.
fn is_open(request: &Request) -> bool {
    match request.uri().path() {
        "/health" | "/ready" => true,
        "/" => wants_html(request.headers()),
        _ => false,
    }
}

/// Refuses requests without a key, if the server has keys.
pub async fn authorize(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let admitted = match &service.keys {
        Some(keys) => is_open(&request) || keys.admit(request.headers()),
        None => true,
    };
    if admitted {
        return next.run(request).await;
    }
    let reason = "a valid key is needed: send it as the header `Authorization: Bearer KEY`";
    Refusal::new(StatusCode::UNAUTHORIZED, reason).with_code("invalid_api_key").into_response()
}
