//! The fields of a request: read one by one, and what is left is what the server does not know.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::refusal::Refusal;

/// Longest value that a message quotes, in characters.
const QUOTED: usize = 60;

/// The fields of a request that are not read yet.
#[derive(Debug, Clone)]
pub struct Fields(Map<String, Value>);

impl Fields {
    /// Fields to read.
    pub fn new(fields: Map<String, Value>) -> Self {
        Self(fields)
    }

    /// Reads a field; `None` if it is missing or null. `expected` completes the sentence "it should be ...".
    ///
    /// # Errors
    /// If its value is of another kind; the refusal names it.
    pub fn take<T: for<'de> Deserialize<'de>>(&mut self, name: &str, expected: &str) -> Result<Option<T>, Refusal> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match T::deserialize(&value) {
                Ok(read) => Ok(Some(read)),
                Err(_) => Err(wrong(name, &value, expected)),
            },
        }
    }

    /// Reads a whole number from `least` to `most`.
    ///
    /// # Errors
    /// If it is something else.
    pub fn count(&mut self, name: &str, least: usize, most: usize) -> Result<Option<usize>, Refusal> {
        let Some(value) = self.value(name) else { return Ok(None) };
        let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
        match count.filter(|count| (least..=most).contains(count)) {
            Some(count) => Ok(Some(count)),
            None => Err(wrong(name, &value, &format!("a whole number from {least} to {most}"))),
        }
    }

    /// Reads a text, or a list of texts.
    ///
    /// # Errors
    /// If it is something else, or the list has more than `most`.
    pub fn texts(&mut self, name: &str, most: usize) -> Result<Vec<String>, Refusal> {
        let Some(value) = self.value(name) else { return Ok(Vec::new()) };
        let expected = || format!("a text, or a list of at most {most} texts");
        let texts = match &value {
            Value::String(text) => vec![text.clone()],
            Value::Array(texts) if texts.len() <= most => {
                let read = texts.iter().map(|text| text.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
                read.ok_or_else(|| wrong(name, &value, &expected()))?
            }
            _ => return Err(wrong(name, &value, &expected())),
        };
        Ok(texts)
    }

    /// Reads a field as it is; `None` if it is missing or null.
    pub fn value(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    /// Refuses a field that this server does not support, unless its value is one of the `neutral` ones, which change nothing.
    ///
    /// # Errors
    /// If it would change something.
    pub fn refuse(&mut self, name: &str, neutral: &[Value], reason: &str) -> Result<(), Refusal> {
        let same = |value: &Value, other: &Value| match (value.as_f64(), other.as_f64()) {
            (Some(value), Some(other)) => value == other,
            _ => value == other,
        };
        match self.value(name) {
            Some(value) if !neutral.iter().any(|other| same(&value, other)) => Err(Refusal::unsupported(name, reason)),
            _ => Ok(()),
        }
    }

    /// The names of the fields that nothing has read, in order.
    pub fn unread(self) -> Vec<String> {
        self.0.into_iter().map(|(name, _)| name).collect()
    }
}

/// The refusal of a value that is of another kind than expected.
pub fn wrong(name: &str, value: &Value, expected: &str) -> Refusal {
    Refusal::field(name, format!("`{name}` is {}: it should be {expected}", quoted(value)))
}

/// A value, cut if it is long.
fn quoted(value: &Value) -> String {
    let whole = match value {
        Value::Array(items) if items.len() > QUOTED => format!("a list of {} values", items.len()),
        Value::String(text) if text.len() > 4 * QUOTED => format!("a text of {} bytes", text.len()),
        value => value.to_string(),
    };
    match whole.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{}...", &whole[..end]),
        None => whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn fields(value: Value) -> Fields {
        Fields::new(value.as_object().unwrap().clone())
    }

    #[test]
    fn values_of_another_kind_are_refused_by_name() {
        let mut read = fields(json!({"n": "x", "most": 9, "stop": [1], "flag": 1, "null": null, "rest": 1}));
        let refusal = read.count("n", 1, 4).unwrap_err();
        assert_eq!(refusal.param.as_deref(), Some("n"));
        assert_eq!(refusal.reason, "`n` is \"x\": it should be a whole number from 1 to 4");
        assert!(read.count("most", 1, 4).unwrap_err().reason.contains("from 1 to 4"));
        assert!(read.texts("stop", 4).unwrap_err().reason.contains("at most 4 texts"));
        assert!(read.take::<bool>("flag", "true or false").unwrap_err().reason.contains("true or false"));
        assert_eq!(read.count("null", 1, 4).unwrap(), None);
        assert_eq!(read.count("missing", 1, 4).unwrap(), None);
        assert_eq!(read.unread(), ["rest"]);
    }

    #[test]
    fn what_changes_nothing_is_not_refused() {
        let neutral = [json!(0), json!({})];
        for value in [json!(0), json!(0.0), json!({}), Value::Null] {
            fields(json!({ "x": value })).refuse("x", &neutral, "no").unwrap();
        }
        for value in [json!(0.5), json!({"1": 2}), json!("0"), json!(false)] {
            let refusal = fields(json!({ "x": value })).refuse("x", &neutral, "no").unwrap_err();
            assert_eq!((refusal.param.as_deref(), refusal.code), (Some("x"), Some("unsupported_parameter")));
        }
    }

    proptest! {
        #[test]
        fn long_values_are_quoted_in_part(text in "\\PC{0,400}", many in 0usize..400) {
            for value in [json!(text), json!(vec![1; many]), json!({ &text: text })] {
                prop_assert!(quoted(&value).chars().count() <= QUOTED + 3);
            }
        }
    }
}
