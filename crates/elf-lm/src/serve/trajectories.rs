//! `POST /v1/trajectories`: texts as they form, every frame as a server-sent event.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::{Value, json};

use super::entry::Entry;
use super::fields::Fields;
use super::infill;
use super::openai::{ignored, prompts, requests};
use super::order::{Order, Progress, Shown};
use super::refusal::Refusal;
use super::served_model::ServedModel;
use super::service::Service;
use super::text_events::{self, Events, TextEvents};
use super::wish::Wish;
use crate::config::Sampling;
use crate::model::loaded::Method;
use crate::text::generated::GeneratedText;

/// Most values of `times`.
const MOST_TIMES: usize = 1000;

/// `POST /v1/trajectories`
pub async fn trajectories(
    State(service): State<Arc<Service>>,
    Extension(entry): Extension<Arc<Entry>>,
    request: Request,
) -> Result<Response, Refusal> {
    let fields = service.json_body(request, r#"{"prompt": "a text", "steps": 8}"#).await?;
    let mut fields = Fields::new(fields);
    let wish = Wish::read(&service, &mut fields)?;
    let texts = fields.texts("text", service.limits.texts)?;
    let requests = match texts.is_empty() {
        true => {
            let inputs = prompts(&mut fields, &wish.model, &service)?;
            wish.check_number(inputs.len(), &service)?;
            requests(wish.seed, &inputs, wish.n)
        }
        false => infill::requests(&texts, &wish, &service)?,
    };
    let shown = times(&mut fields)?.map_or(Shown::EveryStep, Shown::At);
    let method = single(&wish)?;
    if wish.max_tokens.is_some() || !wish.stop.is_empty() {
        return Err(Refusal::bad("`max_tokens` and `stop` do not cut texts that form: leave them out"));
    }
    entry.asks(&wish.model.name, requests.len());
    let ignored = ignored(fields);
    let order = Order { model: wish.place, method, shown };
    let frames = Frames { model: wish.model, entry, seed: wish.seed };
    let mut response = text_events::stream(&service, order, requests, true, frames)?;
    if let Some((name, value)) = ignored {
        response.headers_mut().insert(name, value);
    }
    Ok(response)
}

/// The times at which texts are shown; `None` after every step.
fn times(fields: &mut Fields) -> Result<Option<Vec<f64>>, Refusal> {
    let expected = format!("a list of at most {MOST_TIMES} numbers from 0 to 1");
    let Some(times) = fields.take::<Vec<f64>>("times", &expected)? else { return Ok(None) };
    match times.len() <= MOST_TIMES && times.iter().all(|t| (0.0..=1.0).contains(t)) {
        true => Ok(Some(times)),
        false => Err(Refusal::field("times", format!("`times` should be {expected}"))),
    }
}

/// The method with a single candidate per text: of several, none is the text until the end.
fn single(wish: &Wish) -> Result<Method, Refusal> {
    match &wish.method {
        Method::Flow(sampling) => Ok(Method::Flow(Sampling { best_of: 1, mbr: 1, ..sampling.clone() })),
        Method::Baseline { .. } => {
            let reason = "baselines show no texts that form: /v1/trajectories is for flows";
            Err(Refusal::field("model", format!("{}: {reason}", wish.model.name)).with_code("unsupported_model"))
        }
    }
}

/// A stream of frames.
struct Frames {
    model: Arc<ServedModel>,
    entry: Arc<Entry>,
    seed: u64,
}

impl TextEvents for Frames {
    fn show(&mut self, progress: &Progress, events: &mut Events) {
        self.entry.shows();
        let &Progress { step, steps, t, ref rows } = progress;
        for row in rows {
            // A tokenizer that fails here also fails on the finished text, and that error is sent.
            if let Ok(tokens) = self.model.told(&row.tokens, row.log_probs.as_deref()) {
                let (index, text) = (row.index, &row.text);
                events.send(&json!({
                    "index": index, "step": step, "steps": steps, "t": t, "text": text, "tokens": tokens,
                }));
            }
        }
    }

    fn finish(&mut self, texts: Vec<GeneratedText>, events: &mut Events) -> Result<(), Refusal> {
        let last = texts.iter().map(|text| self.last(text)).collect::<Result<Vec<_>, _>>()?;
        last.iter().for_each(|text| events.send(text));
        Ok(())
    }
}

impl Frames {
    /// The last event of a text.
    fn last(&self, made: &GeneratedText) -> Result<Value, Refusal> {
        let tokens = self.model.told(&made.tokens, made.log_probs.as_deref()).map_err(Refusal::failed)?;
        Ok(json!({
            "index": made.index,
            "final": true,
            "text": made.text,
            "tokens": tokens,
            "confidence": made.confidence,
            "input_cut": made.input_cut,
            "seed": self.seed,
            "model": self.model.name,
        }))
    }
}
