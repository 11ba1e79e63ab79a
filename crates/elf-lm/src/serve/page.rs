//! The page for people: one HTML document, with all that it needs inside.

use axum::http::header;
use axum::response::{Html, IntoResponse, Response};

use crate::trajectory_view;

const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

/// The page. Nothing but its own script and style runs, and it talks to this server alone.
pub fn page() -> Response {
    let nonce = uuid::Uuid::new_v4().simple().to_string();
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    );
    let html = format!(
        include_str!("page/page.html"),
        nonce = nonce,
        style = [trajectory_view::STYLE, STYLE].concat(),
        script = [trajectory_view::SCRIPT, SCRIPT].concat(),
    );
    let headers = [
        (header::CONTENT_SECURITY_POLICY, policy.as_str()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // A nonce is for one answer.
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, Html(html)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_in_the_page() {
        let response = page();
        let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let body = runtime.block_on(axum::body::to_bytes(response.into_body(), usize::MAX)).unwrap();
        let html = std::str::from_utf8(&body).unwrap();
        let nonce = policy.split("'nonce-").nth(1).unwrap().split('\'').next().unwrap();
        assert_eq!(html.matches(&format!("nonce=\"{nonce}\"")).count(), 2);
        assert!(html.contains("function drawTrajectory") && html.contains(".elf-trajectory"));
        for outside in ["src=", "http:", "https:", "@import", "style=\"", "onclick="] {
            let found = html.replace("http://www.w3.org/2000/svg", "").find(outside);
            assert_eq!(found, None, "{outside}");
        }
        assert_ne!(page().headers()[header::CONTENT_SECURITY_POLICY], policy, "a nonce is used once");
    }
}
