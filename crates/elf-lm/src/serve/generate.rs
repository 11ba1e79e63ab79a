//! `POST /generate`: the server's own form of requests.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};

use super::entry::Entry;
use super::order::Order;
use super::refusal::Refusal;
use super::served_model::{ServedModel, candidates, named};
use super::service::Service;
use crate::config::fitted;
use crate::text::conditions::TAKES_NO_INPUT;
use crate::text::generated::{GeneratedText, TextRequest};

/// The body.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// The input texts, for conditional models.
    #[serde(default)]
    inputs: Option<Vec<String>>,
    /// The number of texts, for unconditional models.
    #[serde(default)]
    num: Option<usize>,
    #[serde(default)]
    seed: Option<u64>,
    /// The name of the model; the first without one.
    #[serde(default)]
    model: Option<String>,
}

impl Wanted {
    /// One request per text, with the seeds of `elf sample`.
    fn requests(self, service: &Service, model: &ServedModel) -> Result<Vec<TextRequest>, Refusal> {
        let seed = self.seed.unwrap_or(service.seed);
        let count = match (model.takes_input(), &self.inputs, self.num) {
            (true, Some(inputs), None) => inputs.len(),
            (false, None, num) => num.unwrap_or(1),
            (true, None, _) => {
                return Err(Refusal::bad("this model writes from input texts: give them as `inputs`"));
            }
            (true, Some(_), Some(_)) => {
                return Err(Refusal::bad(
                    "`num` is for models of unconditional text: this one writes one text for each of `inputs`",
                ));
            }
            (false, Some(_), _) => return Err(Refusal::bad(TAKES_NO_INPUT)),
        };
        let most = service.limits.texts / candidates(&model.method)?.count();
        if count == 0 || count > most {
            return Err(Refusal::bad(format!("{count} texts are asked for: from 1 to {most} can be in one request")));
        }
        let mut requests = TextRequest::unconditional(seed, count);
        for (i, (request, input)) in requests.iter_mut().zip(self.inputs.into_iter().flatten()).enumerate() {
            service.check_input(&format!("inputs[{i}]"), &input)?;
            request.condition = Some(input);
        }
        Ok(requests)
    }
}

/// `POST /generate`
pub async fn generate(
    State(service): State<Arc<Service>>,
    Extension(entry): Extension<Arc<Entry>>,
    request: Request,
) -> Result<Json<Value>, Refusal> {
    let models = service.models()?;
    let conditional = models.first().is_some_and(|model| model.takes_input());
    let example = if conditional { r#"{"inputs": ["a text"], "seed": 0}"# } else { r#"{"num": 4, "seed": 0}"# };
    let keys = service.json_body(request, example).await?;
    let wanted: Wanted = fitted(keys, "the request").map_err(|error| Refusal::bad(error.to_string()))?;
    let first = models.first().map(|model| model.name.as_str());
    let (place, model) = named(models, wanted.model.as_deref().or(first))?;
    let requests = wanted.requests(&service, &model)?;
    entry.asks(&model.name, requests.len());
    let begun = Instant::now();
    let order = Order { model: place, method: model.method.clone(), shown: model.shown() };
    let texts = service.texts(service.submit(order, requests, None)?).await?;
    let texts: Vec<GeneratedText> = texts.into_iter().map(|text| GeneratedText { log_probs: None, ..text }).collect();
    Ok(Json(json!({ "texts": texts, "seconds": begun.elapsed().as_secs_f64() })))
}
