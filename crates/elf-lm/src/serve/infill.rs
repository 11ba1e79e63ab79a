//! `POST /v1/infill`: texts with gaps, which the model fills in.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use elf_core::key_of;
use serde_json::json;

use super::entry::Entry;
use super::fields::Fields;
use super::openai::ignored;
use super::order::Order;
use super::refusal::Refusal;
use super::service::Service;
use super::wish::Wish;
use crate::text::conditions::Conditions;
use crate::text::generated::TextRequest;
use crate::text::template::Template;

/// `POST /v1/infill`
pub async fn infill(
    State(service): State<Arc<Service>>,
    Extension(entry): Extension<Arc<Entry>>,
    request: Request,
) -> Result<Response, Refusal> {
    let fields = service.json_body(request, r#"{"text": "a [...] of the [2] family"}"#).await?;
    let mut fields = Fields::new(fields);
    let wish = Wish::read(&service, &mut fields)?;
    let texts = fields.texts("text", service.limits.texts)?;
    if wish.max_tokens.is_some() || !wish.stop.is_empty() || wish.stream {
        return Err(Refusal::bad(
            "texts with gaps are neither cut nor streamed: leave out `max_tokens`, `stop` and `stream`",
        ));
    }
    let requests = requests(&texts, &wish, &service)?;
    entry.asks(&wish.model.name, requests.len());
    let ignored = ignored(fields);
    let order = Order { model: wish.place, method: wish.method, shown: wish.model.shown() };
    let made = service.texts(service.submit(order, requests, None)?).await?;
    let data: Vec<_> = made
        .iter()
        .enumerate()
        .map(|(index, text)| {
            json!({ "index": index, "text": text.text, "filled": text.filled, "confidence": text.confidence })
        })
        .collect();
    let answer = Json(json!({ "object": "infill", "model": wish.model.name, "seed": wish.seed, "data": data }));
    let mut response = answer.into_response();
    if let Some((name, value)) = ignored {
        response.headers_mut().insert(name, value);
    }
    Ok(response)
}

/// Requests to fill these texts, as many for each as is wished.
///
/// # Errors
/// If there are no texts or too many, one has no gap, or the model cannot fill them. The refusal names the field `text`.
pub fn requests(texts: &[String], wish: &Wish, service: &Service) -> Result<Vec<TextRequest>, Refusal> {
    let refused = |error: crate::Error| Refusal::field("text", error.to_string());
    if texts.is_empty() {
        return Err(Refusal::field(
            "text",
            "`text` is missing: it is a text with gaps, such as \"a [...] of the [2] family\"",
        ));
    }
    wish.check_number(texts.len(), service)?;
    let mut requests = Vec::with_capacity(texts.len() * wish.n);
    for (i, text) in texts.iter().enumerate() {
        service.check_input("text", text)?;
        let template: Template = text.parse().map_err(refused)?;
        for n in 0..wish.n {
            let seed = key_of(&[wish.seed, (i * wish.n + n) as u64]);
            requests.push(TextRequest { seed, template: Some(template.clone()), ..TextRequest::default() });
        }
    }
    // Whether the model can, and the gaps fit, is told before the texts wait for it.
    Conditions::of(&wish.model.plan, &wish.model.tokenizer, &requests.iter().collect::<Vec<_>>()).map_err(refused)?;
    Ok(requests)
}
