//! A model as the connections know it: its name, its limits, and the settings that a request can change.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use elf_core::TokenDraw;
use elf_data::Tokenizer;
use elf_flow::sampler::Registry;
use elf_flow::tokens::AncestralSampler;
use elf_gpt2::decoding::TokenSampling;
use serde_json::{Map, Value, json};

use super::order::Shown;
use super::refusal::Refusal;
use crate::config::{BaselinePlan, Candidates, RunPlan, Sampling, SamplingPatch};
use crate::model::loaded::Method;
use crate::text::baseline_writer::Decoding;
use crate::text::conditions::fills_gaps;
use crate::text::flow_writer::check_sampling;
use crate::{Model, Result};

/// A model as the connections know it. The model itself stays in its thread.
pub struct ServedModel {
    /// The name that clients choose it by.
    pub name: String,
    /// The plan that it was trained by.
    pub plan: RunPlan,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// The method of requests that change nothing.
    pub method: Method,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
    samplers: Registry,
}

/// Changes to a model's method of generation, by the names of the fields of a request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes {
    /// `steps`
    pub steps: Option<usize>,
    /// `sampler`: a name, or an object with a name and settings.
    pub sampler: Option<Value>,
    /// `guidance`: the condition guidance scale; for unconditional models, that of self-conditioning.
    pub guidance: Option<f64>,
    /// `temperature`
    pub temperature: Option<f64>,
    /// `top_p`
    pub top_p: Option<f64>,
    /// `best_of`
    pub best_of: Option<usize>,
}

impl ServedModel {
    /// A model with a name for clients and the setting of requests that change nothing.
    ///
    /// # Errors
    /// If the setting is invalid for the model, or its guide cannot be used.
    pub fn new(name: impl Into<String>, model: &Model, sampling: &Sampling) -> Result<Self> {
        model.prepare(sampling)?;
        Ok(Self {
            name: name.into(),
            plan: model.plan().clone(),
            tokenizer: model.tokenizer().clone(),
            method: model.method(sampling),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
            samplers: model.samplers().clone(),
        })
    }

    /// Whether it generates from an input text.
    pub fn takes_input(&self) -> bool {
        self.plan.span.max_input_length.is_some()
    }

    /// Maximum number of tokens of a text.
    pub fn longest_text(&self) -> usize {
        self.plan.span.max_length - self.plan.span.max_input_length.unwrap_or(0)
    }

    /// Number of tokens per block, for models that write block after block.
    pub fn block_size(&self) -> Option<usize> {
        self.plan.objective.block_size.filter(|_| self.plan.baseline.is_none()).and_then(|n| usize::try_from(n).ok())
    }

    /// When the texts of a batch are decoded if no request wants to see every step: after each block, where they are
    /// read anyway.
    pub fn shown(&self) -> Shown {
        let positions = self.plan.span.max_length;
        let blocks = self.block_size().map_or(0, |_| positions);
        Shown::At((0..blocks).map(|place| (place as f64 + 0.5) / positions as f64).collect())
    }

    /// Tokens for clients, each with the part of the text that it stands for, and its probability if it has one.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn told(&self, tokens: &[i64], log_probs: Option<&[f32]>) -> Result<Vec<Value>> {
        let ids = tokens.iter().map(|&id| i32::try_from(id)).collect::<Result<Vec<_>, _>>()?;
        let pieces = self.tokenizer.pieces(&ids)?.into_iter().zip(ids).enumerate();
        Ok(pieces
            .map(|(place, (text, id))| {
                let p = log_probs.and_then(|all| all.get(place)).map(|&p| (f64::from(p).exp() * 1e4).round() / 1e4);
                json!({ "text": text, "id": id, "probability": p })
            })
            .collect())
    }

    /// The kind of model, in messages.
    fn kind(&self) -> &'static str {
        self.plan.baseline.as_ref().map_or("an embedded language flow", BaselinePlan::describe)
    }

    /// The model's method with the changes of a request.
    ///
    /// # Errors
    /// If a change is invalid, or the model does not have what it changes; the refusal names the field.
    pub fn method(&self, changes: &Changes) -> Result<Method, Refusal> {
        match &self.method {
            Method::Flow(sampling) => self.flow_method(sampling, changes),
            Method::Baseline { decoding, mbr } => {
                let decoding = self.decoding(*decoding, changes)?;
                Ok(Method::Baseline { decoding, mbr: *mbr })
            }
        }
    }

    fn flow_method(&self, sampling: &Sampling, changes: &Changes) -> Result<Method, Refusal> {
        let guidance = if self.takes_input() { "cfg" } else { "self_cond_cfg_scale" };
        let keys = [
            ("steps", "num_sampling_steps", changes.steps.map(Value::from)),
            ("sampler", "sampler", changes.sampler.clone()),
            ("guidance", guidance, changes.guidance.map(Value::from)),
            ("temperature", "temperature", changes.temperature.map(Value::from)),
            ("top_p", "top_p", changes.top_p.map(Value::from)),
            ("best_of", "best_of", changes.best_of.map(Value::from)),
        ];
        let mut changed = sampling.clone();
        for (field, key, value) in &keys {
            let Some(value) = value.clone() else { continue };
            let refused = |error: crate::Error| Refusal::field(*field, format!("`{field}`: {}", error.report()));
            let patch = SamplingPatch::default().with(*key, value);
            let [one] = <[Sampling; 1]>::try_from(changed.merged(&patch, &self.samplers).map_err(refused)?)
                .map_err(|_| Refusal::field(*field, format!("`{field}` must be one value, not a list")))?;
            changed = one;
        }
        // The guide is the server's own, and was checked with its setting.
        let unguided = Sampling { guide: None, ..changed.clone() };
        let refused = |error: crate::Error| {
            let reason = error.report();
            let blamed = keys.iter().find(|(_, key, value)| value.is_some() && reason.contains(key));
            Refusal { param: blamed.map(|(field, ..)| (*field).to_owned()), ..Refusal::bad(reason) }
        };
        check_sampling(&self.plan, &unguided, &self.samplers).map_err(refused)?;
        Ok(Method::Flow(changed))
    }

    /// A baseline's decoding method with the changes of a request.
    fn decoding(&self, decoding: Decoding, changes: &Changes) -> Result<Decoding, Refusal> {
        let neutral = |value: Option<f64>| value.filter(|&value| value != 1.0).is_some();
        let draws = matches!(self.plan.baseline, Some(BaselinePlan::Gpt2(_)));
        let others = [
            ("sampler", changes.sampler.is_some()),
            ("guidance", neutral(changes.guidance)),
            ("steps", draws && changes.steps.is_some()),
            ("temperature", !draws && neutral(changes.temperature)),
            ("top_p", !draws && neutral(changes.top_p)),
            ("best_of", changes.best_of.is_some_and(|count| count != 1)),
        ];
        if let Some((field, _)) = others.iter().find(|(_, given)| *given) {
            return Err(Refusal::unsupported(field, format_args!("this model is {}", self.kind())));
        }
        if !draws {
            let steps = changes.steps;
            return match steps {
                Some(0) => Err(Refusal::field("steps", "`steps` is 0: at least one is needed")),
                _ => Ok(steps.map_or(decoding, |steps| Decoding::Ancestral(AncestralSampler { steps }))),
            };
        }
        if changes.temperature.is_none() && changes.top_p.is_none() {
            return Ok(decoding);
        }
        let usual = match decoding {
            Decoding::Sampling(TokenSampling(draw)) => draw,
            _ => TokenDraw::default(),
        };
        let temperature = changes.temperature.unwrap_or(usual.temperature);
        // At temperature 0 the likeliest token is taken, whatever top-p says.
        let top_p = if temperature == 0.0 { 1.0 } else { changes.top_p.unwrap_or(usual.top_p) };
        let draw = TokenDraw { temperature, top_p };
        draw.check().map_err(|error| {
            let field = if (0.0..f64::INFINITY).contains(&temperature) { "top_p" } else { "temperature" };
            Refusal::field(field, error.to_string())
        })?;
        Ok(Decoding::Sampling(TokenSampling(draw)))
    }

    /// The description of the model for clients.
    pub fn about(&self) -> Map<String, Value> {
        let about = json!({
            "model": self.name,
            "parameters": self.plan.parameter_count(),
            "positions": self.plan.span.max_length,
            "input_positions": self.plan.span.max_input_length,
            "sampling": self.method.name(),
        });
        match about {
            Value::Object(about) => about,
            _ => Map::new(),
        }
    }

    /// The description of the model in the form of OpenAI's API, with its kind and sizes.
    pub fn openai_about(&self) -> Value {
        let mut about = self.about();
        about.remove("model");
        about.insert("id".into(), json!(self.name));
        about.insert("object".into(), json!("model"));
        about.insert("created".into(), json!(self.created));
        about.insert("owned_by".into(), json!("elf"));
        about.insert("kind".into(), json!(self.kind()));
        about.insert("block_size".into(), json!(self.block_size()));
        about.insert("trajectories".into(), json!(matches!(self.method, Method::Flow(_))));
        about.insert("fills_gaps".into(), json!(fills_gaps(&self.plan)));
        about.insert("settings".into(), self.settings());
        about.insert("samplers".into(), self.sampler_names());
        Value::Object(about)
    }

    /// What a request without steps, sampler or guidance gets, for those that the model has.
    fn settings(&self) -> Value {
        match &self.method {
            Method::Flow(sampling) => {
                let name = sampling.sampler.name.as_str();
                let guidance = if self.takes_input() { sampling.cfg } else { sampling.self_cond_cfg_scale };
                json!({
                    "steps": sampling.num_sampling_steps,
                    "sampler": self.samplers.entry(name).map_or(name, |entry| entry.name()),
                    "guidance": guidance,
                })
            }
            Method::Baseline { decoding: Decoding::Ancestral(AncestralSampler { steps }), .. } => {
                json!({ "steps": steps })
            }
            Method::Baseline { .. } => json!({}),
        }
    }

    /// The samplers that a request can choose.
    fn sampler_names(&self) -> Value {
        match &self.method {
            Method::Flow(_) => self.samplers.entries().map(|entry| entry.name()).collect(),
            Method::Baseline { .. } => json!([]),
        }
    }
}

/// The candidates per text of a method.
///
/// # Errors
/// If their number is invalid.
pub fn candidates(method: &Method) -> Result<Candidates, Refusal> {
    method.candidates().map_err(|error| Refusal::field("best_of", error.report()))
}

/// The model that a request names. With a single model, a request may leave the name out.
///
/// # Errors
/// If there is no such model, or none is named and there are several.
pub fn named(models: &[Arc<ServedModel>], name: Option<&str>) -> Result<(usize, Arc<ServedModel>), Refusal> {
    let names = || models.iter().map(|model| model.name.as_str()).collect::<Vec<_>>().join(", ");
    let found = match (name, models) {
        (None, [only]) => return Ok((0, Arc::clone(only))),
        (None, _) => return Err(Refusal::field("model", format!("`model` must name one of {}", names()))),
        (Some(name), _) => models.iter().enumerate().find(|(_, model)| model.name == name),
    };
    found.map(|(place, model)| (place, Arc::clone(model))).ok_or_else(|| {
        let reason = format!("there is no model {:?} here, but {}", name.unwrap_or_default(), names());
        Refusal { status: StatusCode::NOT_FOUND, ..Refusal::field("model", reason) }.with_code("model_not_found")
    })
}
