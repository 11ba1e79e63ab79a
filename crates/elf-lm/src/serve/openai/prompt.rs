//! The inputs of a request: prompts as texts or token ids, or the last message of a chat.

use serde_json::Value;

use super::super::fields::{Fields, wrong};
use super::super::refusal::Refusal;
use super::super::served_model::ServedModel;
use super::super::service::Service;
use crate::text::conditions::TAKES_NO_INPUT;
use crate::text::generated::TextRequest;

/// The input of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// None, for unconditional models.
    Nothing,
    /// A text.
    Text(String),
    /// Token ids, which are used as they are.
    Ids(Vec<i32>),
}

/// Reads `prompt`: a text, a list of texts, a list of token ids, or a list of such lists.
///
/// # Errors
/// If it is something else, or not what the model needs.
pub fn prompts(fields: &mut Fields, model: &ServedModel, service: &Service) -> Result<Vec<Input>, Refusal> {
    let value = fields.value("prompt").unwrap_or_else(|| Value::String(String::new()));
    let inputs = inputs(&value).ok_or_else(|| {
        wrong("prompt", &value, "a text, a list of texts, a list of token ids, or a list of lists of token ids")
    })?;
    inputs.into_iter().map(|input| fitting("prompt", input, model, service)).collect()
}

fn inputs(value: &Value) -> Option<Vec<Input>> {
    match value {
        Value::String(text) => Some(vec![Input::Text(text.clone())]),
        Value::Array(items) if items.is_empty() => None,
        Value::Array(items) if items[0].is_number() => Some(vec![Input::Ids(ids(items)?)]),
        Value::Array(items) => items
            .iter()
            .map(|item| match item {
                Value::String(text) => Some(Input::Text(text.clone())),
                Value::Array(items) => Some(Input::Ids(ids(items)?)),
                _ => None,
            })
            .collect(),
        _ => None,
    }
}

fn ids(items: &[Value]) -> Option<Vec<i32>> {
    items.iter().map(|id| id.as_i64().and_then(|id| i32::try_from(id).ok())).collect()
}

/// An input as the model needs it.
fn fitting(field: &str, input: Input, model: &ServedModel, service: &Service) -> Result<Input, Refusal> {
    if !model.takes_input() {
        return match input {
            Input::Text(text) if text.trim().is_empty() => Ok(Input::Nothing),
            Input::Ids(ids) if ids.is_empty() => Ok(Input::Nothing),
            _ => Err(Refusal::field(field, TAKES_NO_INPUT)),
        };
    }
    match &input {
        Input::Text(text) => service.check_input(field, text)?,
        Input::Ids(ids) => {
            let entries = model.tokenizer.vocab_size();
            if ids.is_empty() {
                return Err(Refusal::field(field, format!("{field} is empty")));
            }
            if let Some(id) = ids.iter().find(|&&id| usize::try_from(id).map_or(true, |id| id >= entries)) {
                let reason = format!("{field} has the token id {id}: ids of this model are from 0 to {}", entries - 1);
                return Err(Refusal::field(field, reason));
            }
            // As many bytes as a token has at least.
            if ids.len() > service.limits.input {
                let (length, most) = (ids.len(), service.limits.input);
                return Err(Refusal::field(field, format!("{field} has {length} token ids: at most {most} are taken")));
            }
        }
        Input::Nothing => {}
    }
    Ok(input)
}

/// Reads `messages`: the input is the last message of the user.
///
/// # Errors
/// If there is no such message, it has parts that are no texts, or it is not what the model needs.
pub fn last_message(fields: &mut Fields, model: &ServedModel, service: &Service) -> Result<Vec<Input>, Refusal> {
    const EXPECTED: &str = "a list such as [{\"role\": \"user\", \"content\": \"a text\"}]";
    let refuse = |reason: &str| Refusal::field("messages", format!("`messages` {reason}"));
    let value = fields.value("messages").ok_or_else(|| refuse(&format!("is missing: it should be {EXPECTED}")))?;
    let messages = value.as_array().ok_or_else(|| wrong("messages", &value, EXPECTED))?;
    let of_user = |message: &&Value| message.get("role").and_then(Value::as_str) == Some("user");
    let last = messages.iter().rev().find(of_user).ok_or_else(|| refuse("has no message of the role `user`"))?;
    let content = last.get("content").unwrap_or(&Value::Null);
    let text = text_of(content).ok_or_else(|| refuse("has a content that is neither a text nor a list of texts"))?;
    Ok(vec![fitting("messages", Input::Text(text), model, service)?])
}

/// A message's content: a text, or a list of parts of type `text`.
fn text_of(content: &Value) -> Option<String> {
    let part = |part: &Value| match part.get("type")?.as_str()? {
        "text" => Some(part.get("text")?.as_str()?.to_owned()),
        _ => None,
    };
    match content {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => parts.iter().map(part).collect::<Option<Vec<_>>>().map(|parts| parts.concat()),
        _ => None,
    }
}

/// `n` texts of each input, with the seeds of `elf sample`.
pub fn requests(seed: u64, inputs: &[Input], n: usize) -> Vec<TextRequest> {
    let mut requests = TextRequest::unconditional(seed, inputs.len() * n);
    for (request, input) in requests.iter_mut().zip(inputs.iter().flat_map(|input| std::iter::repeat_n(input, n))) {
        match input {
            Input::Nothing => {}
            Input::Text(text) => request.condition = Some(text.clone()),
            Input::Ids(ids) => request.condition_ids = Some(ids.clone()),
        }
    }
    requests
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn prompts_have_four_forms() {
        let text = |text: &str| Input::Text(text.to_owned());
        assert_eq!(inputs(&json!("a")).unwrap(), [text("a")]);
        assert_eq!(inputs(&json!(["a", "b"])).unwrap(), [text("a"), text("b")]);
        assert_eq!(inputs(&json!([1, 2])).unwrap(), [Input::Ids(vec![1, 2])]);
        assert_eq!(inputs(&json!([[1], [2, 3]])).unwrap(), [Input::Ids(vec![1]), Input::Ids(vec![2, 3])]);
        for other in [json!([]), json!(1), json!({}), json!([1, "a"]), json!([1.5]), json!([[["a"]]]), json!([1e12])] {
            assert_eq!(inputs(&other), None, "{other}");
        }
    }

    #[test]
    fn messages_have_texts_or_parts() {
        assert_eq!(text_of(&json!("a")).unwrap(), "a");
        assert_eq!(text_of(&json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])).unwrap(), "ab");
        assert_eq!(text_of(&json!([{"type": "image_url", "image_url": {}}])), None);
        assert_eq!(text_of(&json!(null)), None);
    }

    #[test]
    fn every_text_has_a_seed_of_its_own() {
        let made = requests(3, &[Input::Text("a".into()), Input::Ids(vec![4])], 2);
        let conditions: Vec<_> = made.iter().map(|r| (r.condition.as_deref(), r.condition_ids.as_deref())).collect();
        assert_eq!(conditions, [(Some("a"), None), (Some("a"), None), (None, Some(&[4][..])), (None, Some(&[4][..]))]);
        let alone = TextRequest::unconditional(3, 4);
        assert!(made.iter().zip(&alone).all(|(made, alone)| made.seed == alone.seed));
    }

    /// JSON of any kind.
    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "\\PC{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                proptest::collection::hash_map("[a-z]{1,4}|type|text|role", inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn anything_is_read_or_refused(value in any_json()) {
            let count = inputs(&value).map_or(1, |inputs| inputs.len());
            prop_assert!(count > 0);
            let _ = text_of(&value);
        }
    }
}
