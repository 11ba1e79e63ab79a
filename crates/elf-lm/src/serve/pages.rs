//! What the server says of itself: what it serves, and whether it can.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::page::page;
use super::refusal::Refusal;
use super::service::Service;

/// What there is, for clients that ask for something else.
const ROUTES: &str = "there are GET /, GET /health, GET /ready, GET /metrics, GET /v1/models, POST /v1/completions, \
                      POST /v1/chat/completions, POST /v1/trajectories, POST /v1/infill and POST /generate";

/// The media type of the figures.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// `GET /`: a page for browsers, and a description in JSON for programs.
pub async fn root(State(service): State<Arc<Service>>, headers: HeaderMap) -> Result<Response, Refusal> {
    let body = if wants_html(&headers) { page() } else { Json(about(&service)?).into_response() };
    Ok(([(header::VARY, "accept")], body).into_response())
}

/// Whether a client would rather have HTML than JSON: it names the first, and the second not before.
pub fn wants_html(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let kinds = accepted.flat_map(|value| value.split(','));
    let mut kinds = kinds.map(|kind| kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
    kinds.find(|kind| kind == "text/html" || kind == "application/json").is_some_and(|kind| kind == "text/html")
}

/// The first model's description, and those of all.
fn about(service: &Service) -> Result<Value, Refusal> {
    let limits = |mut about: serde_json::Map<String, Value>| {
        about.insert("texts_at_once".into(), json!(service.batch_size));
        about.insert("texts_per_request".into(), json!(service.limits.texts));
        Value::Object(about)
    };
    let models = service.models()?;
    let mut about = models.first().map_or(Value::Null, |model| limits(model.about()));
    about["models"] = models.iter().map(|model| Value::Object(model.about())).collect();
    Ok(about)
}

/// `GET /health`: the server is alive.
pub async fn health(State(service): State<Arc<Service>>) -> Json<Value> {
    Json(json!({ "status": "ok", "requests_waiting": service.entrance.waiting() }))
}

/// `GET /ready`: the models are loaded.
pub async fn ready(State(service): State<Arc<Service>>) -> Result<Json<Value>, Refusal> {
    let names: Vec<&str> = service.models()?.iter().map(|model| model.name.as_str()).collect();
    Ok(Json(json!({ "status": "ready", "models": names })))
}

/// `GET /metrics`
pub async fn metrics(State(service): State<Arc<Service>>) -> Response {
    let text = service.metrics.text(service.entrance.waiting());
    ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response()
}

/// Any other path or method.
pub async fn not_found(request: Request) -> Refusal {
    let (method, path) = (request.method(), request.uri().path());
    Refusal::new(StatusCode::NOT_FOUND, format!("there is no {method} {path:.100}; {ROUTES}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_get_html_and_programs_json() {
        let wants = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            wants_html(&headers)
        };
        assert!(wants("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"));
        assert!(wants("Text/HTML"));
        for accept in ["*/*", "application/json", "application/json, text/html;q=0.1", "", "text/plain"] {
            assert!(!wants(accept), "{accept}");
        }
        assert!(!wants_html(&HeaderMap::new()));
    }
}
