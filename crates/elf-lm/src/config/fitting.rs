//! Values that fit their keys, and messages about those that do not.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::fail;
use crate::{Error, Result};

/// The configuration of a mapping, whose keys are known.
///
/// # Errors
/// Names the key whose value does not fit, the value, and what fits.
pub(crate) fn fitted<T: DeserializeOwned>(map: Map<String, Value>, origin: &str) -> Result<T> {
    let whole = match serde_json::from_value(Value::Object(map.clone())) {
        Ok(config) => return Ok(config),
        Err(error) => error,
    };
    for (key, value) in map {
        let alone = Map::from_iter([(key.clone(), value.clone())]);
        if let Err(error) = serde_json::from_value::<T>(Value::Object(alone)) {
            fail!(setting(&key), "{origin}: {key} is {value}; {}", what_fits(&key, &error));
        }
    }
    Err(Error::request(format!("{origin}: {whole}")))
}

/// What a parser's message says of the values that it would take, in a user's words.
pub(super) fn what_fits(key: &str, error: &serde_json::Error) -> String {
    let message = error.to_string();
    let is_about_the_value = ["invalid ", "unknown variant"].iter().any(|begin| message.starts_with(begin));
    let Some((_, expected)) = message.split_once("expected ").filter(|_| is_about_the_value) else { return message };
    let wanted = match expected {
        "f64" | "f32" => "a number",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number from 0 on",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "a boolean" => "true or false",
        "a string" => "text",
        "a sequence" => "a list",
        "a map" => "a mapping of keys to values",
        other => other,
    };
    format!("{key} must be {wanted}")
}

#[cfg(test)]
mod tests {
    use crate::config::{DistillConfig, Overrides, RunConfig, read_yaml};

    fn refused(text: &str) -> String {
        let given = Overrides::parse(&[text]).unwrap();
        read_yaml::<RunConfig>(None, &given, |_| {}).unwrap_err().report()
    }

    #[test]
    fn key_value_and_what_fits_are_named() {
        for (text, words) in [
            ("lr=abc", "lr is \"abc\"; lr must be a number"),
            ("max_length=-1", "max_length is -1; max_length must be a whole number from 0 on"),
            ("max_length=1.5", "max_length is 1.5; max_length must be a whole number from 0 on"),
            ("warmup_steps=soon", "warmup_steps is \"soon\"; warmup_steps must be a whole number"),
            ("online_eval=maybe", "online_eval must be true or false"),
            ("data_path=3", "data_path is 3; data_path must be text"),
            ("encoder_model_name=[a, b]", "encoder_model_name must be text"),
            ("optimizer=sgd", "optimizer is \"sgd\"; optimizer must be `muon` or `adamw`"),
            ("objective=bert", "objective is \"bert\"; objective must be one of"),
            ("seed=-1", "seed is -1; seed must be a whole number from 0 on"),
        ] {
            let message = refused(text);
            assert!(message.contains(words), "{message}");
        }
        let given = Overrides::parse(&["pd_step_size=x"]).unwrap();
        let message = read_yaml::<DistillConfig>(None, &given, |_| {}).unwrap_err().report();
        assert!(message.contains("pd_step_size is \"x\"; pd_step_size must be"), "{message}");
    }
}
