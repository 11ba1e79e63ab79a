//! The requests under `/v1` that clients of OpenAI's API make.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};

use super::answer::{Envelope, Form, LogProbs, usage};
use super::finished::Ending;
use super::prompt::{Input, last_message, prompts, requests};
use super::stream::Pieces;
use crate::model::loaded::Method;
use crate::serve::entry::Entry;
use crate::serve::fields::Fields;
use crate::serve::order::Order;
use crate::serve::refusal::Refusal;
use crate::serve::served_model::{candidates, named};
use crate::serve::service::Service;
use crate::serve::text_events;
use crate::serve::wish::Wish;

/// The header that lists the fields of a request which the server does not know.
pub const IGNORED: HeaderName = HeaderName::from_static("x-elf-ignored-fields");

/// Most characters of that header.
const MOST_IGNORED: usize = 1024;

/// `POST /v1/completions`
pub async fn completions(
    State(service): State<Arc<Service>>,
    Extension(entry): Extension<Arc<Entry>>,
    request: Request,
) -> Result<Response, Refusal> {
    let fields = service.json_body(request, r#"{"prompt": "a text"}"#).await?;
    answer(&service, entry, Form::Completion, Fields::new(fields)).await
}

/// `POST /v1/chat/completions`
pub async fn chat(
    State(service): State<Arc<Service>>,
    Extension(entry): Extension<Arc<Entry>>,
    request: Request,
) -> Result<Response, Refusal> {
    let example = r#"{"messages": [{"role": "user", "content": "a text"}]}"#;
    let fields = service.json_body(request, example).await?;
    answer(&service, entry, Form::Chat, Fields::new(fields)).await
}

/// `GET /v1/models`
pub async fn models(State(service): State<Arc<Service>>) -> Result<Json<Value>, Refusal> {
    let models: Vec<Value> = service.models()?.iter().map(|model| model.openai_about()).collect();
    Ok(Json(json!({ "object": "list", "data": models })))
}

/// `GET /v1/models/{name}`
pub async fn model(State(service): State<Arc<Service>>, Path(name): Path<String>) -> Result<Json<Value>, Refusal> {
    Ok(Json(named(service.models()?, Some(&name))?.1.openai_about()))
}

async fn answer(service: &Service, entry: Arc<Entry>, form: Form, mut fields: Fields) -> Result<Response, Refusal> {
    let wish = Wish::read(service, &mut fields)?;
    let inputs = match form {
        Form::Completion => prompts(&mut fields, &wish.model, service)?,
        Form::Chat => last_message(&mut fields, &wish.model, service)?,
    };
    let log_probs = log_probs(form, &mut fields, &wish)?;
    wish.check_number(inputs.len(), service)?;
    entry.asks(&wish.model.name, inputs.len() * wish.n);
    let envelope = Envelope::new(form, &wish.model.name, wish.method.name(), wish.seed, log_probs);
    let ignored = ignored(fields);
    let mut response = match wish.stream {
        true => streamed(service, entry, wish, inputs, envelope)?,
        false => whole(service, wish, inputs, envelope).await?,
    };
    if let Some((name, value)) = ignored {
        response.headers_mut().insert(name, value);
    }
    Ok(response)
}

async fn whole(service: &Service, wish: Wish, inputs: Vec<Input>, envelope: Envelope) -> Result<Response, Refusal> {
    let order = Order { model: wish.place, method: wish.method, shown: wish.model.shown() };
    let answered = service.submit(order, requests(wish.seed, &inputs, wish.n), None)?;
    let ending = Ending { max_tokens: wish.max_tokens, stop: &wish.stop };
    let mut texts = Vec::new();
    for made in service.texts(answered).await? {
        let finished = ending.of(&wish.model, &made).map_err(Refusal::failed)?;
        texts.push((made, finished));
    }
    let usage = usage(&wish.model, &inputs, &texts).map_err(Refusal::failed)?;
    Ok(Json(envelope.whole(&texts, &usage)).into_response())
}

/// Models that write block after block send a piece after each block. Others, and those that choose among candidates, send
/// a text in one piece.
fn streamed(
    service: &Service,
    entry: Arc<Entry>,
    wish: Wish,
    inputs: Vec<Input>,
    envelope: Envelope,
) -> Result<Response, Refusal> {
    let requests = requests(wish.seed, &inputs, wish.n);
    let in_pieces = candidates(&wish.method)?.count() == 1;
    let order = Order { model: wish.place, method: wish.method, shown: wish.model.shown() };
    let pieces = Pieces {
        model: wish.model,
        envelope,
        inputs,
        max_tokens: wish.max_tokens,
        stop: wish.stop,
        include_usage: wish.include_usage,
        sent: vec![String::new(); requests.len()],
        entry,
    };
    text_events::stream(service, order, requests, in_pieces, pieces)
}

/// Which log-probabilities a request wants.
fn log_probs(form: Form, fields: &mut Fields, wish: &Wish) -> Result<LogProbs, Refusal> {
    let (field, wanted, top) = match form {
        Form::Completion => {
            let top = fields.count("logprobs", 0, 20)?;
            ("logprobs", top.is_some(), top.unwrap_or(0))
        }
        Form::Chat => {
            let wanted = fields.take("logprobs", "true or false")?.unwrap_or(false);
            let top = fields.count("top_logprobs", 0, 20)?.unwrap_or(0);
            if top > 0 && !wanted {
                return Err(Refusal::field("top_logprobs", "`top_logprobs` has no effect without `logprobs`"));
            }
            ("top_logprobs", wanted, top)
        }
    };
    if !wanted {
        return Ok(LogProbs::Omitted);
    }
    let Method::Flow(sampling) = &wish.method else {
        return Err(Refusal::unsupported("logprobs", "this model is a baseline, whose probabilities are not kept"));
    };
    match top {
        0 => Ok(LogProbs::OfTokens),
        1 if sampling.temperature == 0.0 => Ok(LogProbs::WithTop),
        _ => {
            let reason = "the probability of the chosen token alone is kept, which is the likeliest at temperature 0";
            Err(Refusal::unsupported(field, reason))
        }
    }
}

/// The header that lists fields which nothing has read.
pub fn ignored(fields: Fields) -> Option<(HeaderName, HeaderValue)> {
    let plain = |name: String| -> String {
        name.chars().map(|c| if c.is_ascii_alphanumeric() || "_-.".contains(c) { c } else { '?' }).collect()
    };
    let mut names = fields.unread().into_iter().map(plain).collect::<Vec<_>>().join(", ");
    names.truncate(MOST_IGNORED);
    let value = HeaderValue::from_str(&names).ok().filter(|names| !names.is_empty())?;
    Some((IGNORED, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_names_make_a_header(names in proptest::collection::vec("\\PC{0,80}", 0..40)) {
            let fields = names.iter().map(|name| (name.clone(), Value::Null)).collect();
            let header = ignored(Fields::new(fields));
            prop_assert!(header.is_none_or(|(_, header)| header.len() <= MOST_IGNORED && header.to_str().is_ok()));
        }
    }

    #[test]
    fn unread_fields_are_listed() {
        let fields = json!({"user": 1, "a b\n": 2});
        let (_, header) = ignored(Fields::new(fields.as_object().unwrap().clone())).unwrap();
        assert_eq!(header.to_str().unwrap(), "a?b?, user");
    }
}
