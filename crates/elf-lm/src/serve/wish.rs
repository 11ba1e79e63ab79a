//! What a request for completions, chat or trajectories wishes for, apart from its inputs.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::fields::{Fields, wrong};
use super::refusal::Refusal;
use super::served_model::{Changes, ServedModel, candidates, named};
use super::service::Service;
use crate::model::loaded::Method;

/// Most texts that `stop` may have, as in OpenAI's API.
const MOST_STOPS: usize = 4;

/// Largest `max_tokens`; no model writes as many.
const MOST_TOKENS: usize = 1_000_000_000;

/// What a request wishes for, apart from its inputs.
pub struct Wish {
    /// The model.
    pub model: Arc<ServedModel>,
    /// Its index.
    pub place: usize,
    /// The method of generation.
    pub method: Method,
    /// Texts per input.
    pub n: usize,
    /// The seed; a random one if the request gives none.
    pub seed: u64,
    /// Maximum number of tokens per text.
    pub max_tokens: Option<usize>,
    /// Texts at which a text ends; they are not part of it.
    pub stop: Vec<String>,
    /// Whether the answer is streamed.
    pub stream: bool,
    /// Whether a stream ends with the number of tokens.
    pub include_usage: bool,
}

impl Wish {
    /// Reads what all requests have in common.
    ///
    /// # Errors
    /// If a field is invalid, or asks for something that the model does not have.
    pub fn read(service: &Service, fields: &mut Fields) -> Result<Self, Refusal> {
        let name: Option<String> = fields.take("model", "the name of a model, as GET /v1/models lists them")?;
        let (place, model) = named(service.models()?, name.as_deref())?;
        refuse_other_abilities(fields)?;
        let changes = changes(service, fields)?;
        let method = model.method(&changes)?;
        let n = fields.count("n", 1, service.limits.texts)?.unwrap_or(1);
        let seed = fields.value("seed").map(|seed| read_seed(&seed)).transpose()?;
        let newer = fields.count("max_completion_tokens", 1, MOST_TOKENS)?;
        let max_tokens = newer.or(fields.count("max_tokens", 1, MOST_TOKENS)?);
        let stop = fields.texts("stop", MOST_STOPS)?;
        if stop.iter().any(String::is_empty) {
            return Err(Refusal::field("stop", "`stop` has an empty text, at which every text would end"));
        }
        let stream = fields.take("stream", "true or false")?.unwrap_or(false);
        let include_usage = stream_options(fields, stream)?;
        let seed = seed.unwrap_or_else(random_seed);
        Ok(Self { model, place, method, n, seed, max_tokens, stop, stream, include_usage })
    }

    /// Refuses more texts than a request may have.
    ///
    /// # Errors
    /// If `inputs` inputs give more.
    pub fn check_number(&self, inputs: usize, service: &Service) -> Result<(), Refusal> {
        let (each, most) = (candidates(&self.method)?.count(), service.limits.texts);
        let texts = inputs.saturating_mul(self.n).saturating_mul(each);
        if texts <= most {
            return Ok(());
        }
        let (n, made) = (self.n, if each > 1 { format!(" with {each} candidates each") } else { String::new() });
        let reason = format!(
            "{inputs} input(s) with {n} text(s) each{made} are {texts} texts: one request can have {most} (--max-texts)"
        );
        Err(Refusal::field(if self.n > 1 { "n" } else { "prompt" }, reason))
    }
}

/// Refuses what neither a flow nor a baseline can do.
fn refuse_other_abilities(fields: &mut Fields) -> Result<(), Refusal> {
    let (none, empty, zero) = (json!("none"), [json!([]), json!({})], [json!(0)]);
    let functions = "these models write texts and call no functions";
    for name in ["tools", "functions"] {
        fields.refuse(name, &empty, functions)?;
    }
    for name in ["tool_choice", "function_call"] {
        fields.refuse(name, &[none.clone(), json!("auto")], functions)?;
    }
    fields.refuse("logit_bias", &empty, "single tokens can be neither favoured nor banned")?;
    for name in ["presence_penalty", "frequency_penalty"] {
        fields.refuse(name, &zero, "tokens are not penalised one after another")?;
    }
    fields.refuse("echo", &[json!(false)], "the answer has the text alone, not the prompt")?;
    fields.refuse("suffix", &[json!("")], "text between two others is written by POST /v1/infill")?;
    fields.refuse("response_format", &[json!({"type": "text"})], "these models write plain text")?;
    fields.refuse("modalities", &[json!(["text"])], "these models write text alone")?;
    fields.refuse("audio", &[], "these models write text alone")
}

fn changes(service: &Service, fields: &mut Fields) -> Result<Changes, Refusal> {
    const NUMBER: &str = "a number";
    Ok(Changes {
        steps: fields.count("steps", 1, service.limits.steps)?,
        sampler: fields.value("sampler").map(sampler).transpose()?,
        guidance: fields.take("guidance", NUMBER)?,
        temperature: fields.take("temperature", NUMBER)?,
        top_p: fields.take("top_p", NUMBER)?,
        best_of: fields.count("best_of", 1, service.limits.texts)?,
    })
}

/// A sampler's name, or an object with its name and settings.
fn sampler(value: Value) -> Result<Value, Refusal> {
    let named = |settings: &Map<String, Value>| settings.get("name").is_some_and(Value::is_string);
    match &value {
        Value::String(_) => Ok(value),
        Value::Object(settings) if named(settings) => Ok(value),
        _ => Err(wrong(
            "sampler",
            &value,
            "a name such as \"euler\", or an object such as {\"name\": \"sde\", \"gamma\": 1}",
        )),
    }
}

/// A seed that every JSON reader takes as it is: a whole number below 2^53.
fn random_seed() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().1 & ((1 << 53) - 1)
}

/// Any whole number of 64 bits is a seed; a negative one is read by its bits.
fn read_seed(value: &Value) -> Result<u64, Refusal> {
    let seed = value.as_u64().or(value.as_i64().map(|seed| seed as u64));
    seed.ok_or_else(|| wrong("seed", value, "a whole number of 64 bits"))
}

/// Whether a stream ends with the number of tokens.
fn stream_options(fields: &mut Fields, stream: bool) -> Result<bool, Refusal> {
    let Some(options) = fields.value("stream_options") else { return Ok(false) };
    let usage = options.get("include_usage").map_or(Some(false), Value::as_bool);
    match (usage.filter(|_| options.is_object()), stream) {
        (None, _) => Err(wrong("stream_options", &options, "an object such as {\"include_usage\": true}")),
        (Some(_), false) => Err(Refusal::field("stream_options", "`stream_options` has no effect without `stream`")),
        (Some(usage), true) => Ok(usage),
    }
}
