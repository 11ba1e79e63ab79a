//! Answers in the forms of OpenAI's API: completions and chats, whole or in pieces.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::finished::Finished;
use super::prompt::Input;
use crate::Result;
use crate::serve::served_model::ServedModel;
use crate::text::generated::GeneratedText;

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `POST /v1/completions`
    Completion,
    /// `POST /v1/chat/completions`
    Chat,
}

/// Log-probabilities in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogProbs {
    /// None.
    Omitted,
    /// Those of the tokens.
    OfTokens,
    /// Those of the tokens, which are also listed as the likeliest.
    WithTop,
}

/// What all parts of an answer have in common.
#[derive(Debug, Clone)]
pub struct Envelope {
    form: Form,
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
    seed: u64,
    log_probs: LogProbs,
}

impl Envelope {
    /// The envelope of a new answer; `fingerprint` names the settings.
    pub fn new(form: Form, model: &str, fingerprint: String, seed: u64, log_probs: LogProbs) -> Self {
        let prefix = if form == Form::Chat { "chatcmpl" } else { "cmpl" };
        Self {
            form,
            id: format!("{prefix}-{}", uuid::Uuid::new_v4().simple()),
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
            model: model.to_owned(),
            fingerprint,
            seed,
            log_probs,
        }
    }

    fn around(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "seed": self.seed,
            "choices": choices,
        })
    }

    /// A whole answer.
    pub fn whole(&self, texts: &[(GeneratedText, Finished)], usage: &Value) -> Value {
        let object = if self.form == Form::Chat { "chat.completion" } else { "text_completion" };
        let choices = texts.iter().enumerate().map(|(index, (made, finished))| {
            let mut choice = match self.form {
                Form::Completion => json!({ "text": finished.text }),
                Form::Chat => {
                    json!({ "message": { "role": "assistant", "content": finished.text, "refusal": null } })
                }
            };
            self.complete(&mut choice, index, made, finished);
            choice
        });
        let mut answer = self.around(object, choices.collect());
        answer["usage"] = usage.clone();
        answer
    }

    /// The end of a choice: why it ends, and what is known of it.
    fn complete(&self, choice: &mut Value, index: usize, made: &GeneratedText, finished: &Finished) {
        choice["index"] = json!(index);
        choice["finish_reason"] = json!(finished.reason);
        let top = self.log_probs == LogProbs::WithTop;
        choice["logprobs"] = match (self.log_probs, self.form) {
            (LogProbs::Omitted, _) => Value::Null,
            (_, Form::Completion) => finished.completion_log_probs(top),
            (_, Form::Chat) => finished.chat_log_probs(top),
        };
        if let Some(confidence) = made.confidence {
            choice["confidence"] = json!(confidence);
        }
        if made.input_cut {
            choice["input_cut"] = json!(true);
        }
    }

    fn chunk(&self, choice: Value) -> Value {
        let object = if self.form == Form::Chat { "chat.completion.chunk" } else { "text_completion" };
        self.around(object, vec![choice])
    }

    /// The first piece of a choice, if the form has one.
    pub fn opening(&self, index: usize) -> Option<Value> {
        let choice = json!({
            "index": index,
            "delta": { "role": "assistant", "content": "" },
            "finish_reason": null,
            "logprobs": null,
        });
        (self.form == Form::Chat).then(|| self.chunk(choice))
    }

    /// A piece of a choice's text.
    pub fn piece(&self, index: usize, text: &str) -> Value {
        self.chunk(match self.form {
            Form::Completion => json!({ "index": index, "text": text, "finish_reason": null, "logprobs": null }),
            Form::Chat => {
                json!({ "index": index, "delta": { "content": text }, "finish_reason": null, "logprobs": null })
            }
        })
    }

    /// The last piece of a choice.
    pub fn closing(&self, index: usize, made: &GeneratedText, finished: &Finished) -> Value {
        let mut choice = match self.form {
            Form::Completion => json!({ "text": "" }),
            Form::Chat => json!({ "delta": {} }),
        };
        self.complete(&mut choice, index, made, finished);
        self.chunk(choice)
    }

    /// The number of tokens, at the end of a stream.
    pub fn usage(&self, usage: &Value) -> Value {
        let object = if self.form == Form::Chat { "chat.completion.chunk" } else { "text_completion" };
        let mut chunk = self.around(object, Vec::new());
        chunk["usage"] = usage.clone();
        chunk
    }
}

/// The number of tokens of inputs, as far as the model reads them, and of texts.
///
/// # Errors
/// If the tokenizer fails.
pub fn usage(model: &ServedModel, inputs: &[Input], texts: &[(GeneratedText, Finished)]) -> Result<Value> {
    let most = model.plan.span.max_input_length.unwrap_or(0);
    let mut prompt = 0;
    for input in inputs {
        let length = match input {
            Input::Nothing => 0,
            Input::Text(text) => model.tokenizer.encode(text)?.len(),
            Input::Ids(ids) => ids.len(),
        };
        prompt += length.min(most);
    }
    let written: usize = texts.iter().map(|(_, finished)| finished.tokens.len()).sum();
    Ok(json!({ "prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written }))
}
