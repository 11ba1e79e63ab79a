//! Which request goes where, and what all requests go through.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::authorize::authorize;
use super::entry::enter;
use super::generate::generate;
use super::infill::infill;
use super::openai::{self, IGNORED};
use super::pages::{health, metrics, not_found, ready, root};
use super::service::Service;
use super::trajectories::trajectories;
use crate::Result;
use crate::error::fail;

/// All routes. Pages of the origins `allowed` may read answers; `*` is any.
///
/// # Errors
/// If an origin cannot be one.
pub fn router(service: Arc<Service>, allowed: &[String]) -> Result<Router> {
    let routes = Router::new()
        .route("/", get(root))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/generate", post(generate))
        .route("/v1/models", get(openai::models))
        .route("/v1/models/{*name}", get(openai::model))
        .route("/v1/completions", post(openai::completions))
        .route("/v1/chat/completions", post(openai::chat))
        .route("/v1/trajectories", post(trajectories))
        .route("/v1/infill", post(infill))
        .fallback(not_found)
        .method_not_allowed_fallback(not_found)
        .layer(DefaultBodyLimit::max(service.limits.body))
        .layer(from_fn_with_state(Arc::clone(&service), authorize));
    // A preflight request has no key, so that it is answered before keys are asked for.
    let routes = match cors(allowed)? {
        Some(cors) => routes.layer(cors),
        None => routes,
    };
    Ok(routes.layer(from_fn_with_state(Arc::clone(&service), enter)).with_state(service))
}

/// Leave for pages of other origins; none without origins.
fn cors(allowed: &[String]) -> Result<Option<CorsLayer>> {
    let mut origins = Vec::new();
    for origin in allowed {
        let plain = origin.split_once("://").is_some_and(|(scheme, host)| {
            matches!(scheme, "http" | "https") && !host.is_empty() && !host.contains(['/', ' ', '*'])
        });
        match HeaderValue::from_str(origin) {
            Ok(value) if plain || origin == "*" => origins.push(value),
            _ => fail!(
                setting("allow_origin"),
                "{origin:?} is no origin: give a scheme and a host, such as https://example.org, or *"
            ),
        }
    }
    let origins = match allowed {
        [] => return Ok(None),
        allowed if allowed.iter().any(|origin| origin == "*") => AllowOrigin::any(),
        _ => AllowOrigin::list(origins),
    };
    let id = HeaderName::from_static("x-request-id");
    let cors = CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE, id.clone()])
        .expose_headers([id, IGNORED])
        .max_age(Duration::from_secs(3600));
    Ok(Some(cors))
}
