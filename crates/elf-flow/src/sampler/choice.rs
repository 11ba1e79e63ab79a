//! A sampler's name and settings, as written in a configuration or on a command line.

use std::fmt::Write;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::SamplerConfig;
use crate::{Error, Result};

/// A sampler's name and settings: `{ name: sde, gamma: 1.5 }`, or as one text `sde:gamma=1.5`.
///
/// Names and values are checked where the choice is looked up ([`Registry::config`](super::Registry::config)), since only a
/// registry knows the samplers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SamplerChoice {
    /// The sampler's name.
    pub name: String,
    /// Its settings; those left out have their defaults.
    #[serde(flatten)]
    pub settings: Map<String, Value>,
}

impl SamplerChoice {
    /// A sampler with its default settings.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), settings: Map::new() }
    }

    /// The sampler of these settings, under its own name.
    pub fn of<T: SamplerConfig>(config: &T) -> Self {
        // Settings that are no struct of named fields are refused by the registry, too.
        let settings = match serde_json::to_value(config) {
            Ok(Value::Object(settings)) => settings,
            _ => Map::new(),
        };
        Self { name: T::NAME.to_owned(), settings }
    }

    /// Adds one setting.
    pub fn with(mut self, setting: impl Into<String>, value: impl Into<Value>) -> Self {
        self.settings.insert(setting.into(), value.into());
        self
    }

    /// The settings as part of a file's name, sorted by name: `-gamma1.5`. Empty without settings; a setting of null is left out.
    ///
    /// Take this of a complete choice ([`ConfiguredSampler::choice`](super::ConfiguredSampler::choice)), so that equal settings
    /// have equal names.
    pub fn settings_label(&self) -> String {
        let mut sorted: Vec<_> = self.settings.iter().filter(|(_, value)| !value.is_null()).collect();
        sorted.sort_by_key(|(key, _)| *key);
        let mut label = String::new();
        for (key, value) in sorted {
            let value = match (value, value.as_f64()) {
                (_, Some(number)) => number.to_string(),
                (Value::String(text), _) => text.clone(),
                (other, _) => other.to_string(),
            };
            let in_file_name = |c: char| if c.is_ascii_alphanumeric() || "._-+".contains(c) { c } else { '_' };
            // Writing to a string cannot fail.
            let _ = write!(label, "-{key}{}", value.chars().map(in_file_name).collect::<String>());
        }
        label
    }
}

/// `NAME` or `NAME:SETTING=VALUE,SETTING=VALUE`. A value is JSON, or else a text.
impl FromStr for SamplerChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, settings) = text.split_once(':').unwrap_or((text, ""));
        let settings = settings.split(',').map(str::trim).filter(|setting| !setting.is_empty());
        settings.into_iter().try_fold(Self::named(name.trim()), |choice, setting| {
            let (key, value) = setting.split_once('=').ok_or_else(|| {
                let reason = format!(
                    "`{setting}` is not of the form SETTING=VALUE; a sampler is written NAME:SETTING=VALUE,..."
                );
                Error::setting("sampler", reason)
            })?;
            let value = value.trim();
            let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
            Ok(choice.with(key.trim(), value))
        })
    }
}

/// Either form.
impl<'de> Deserialize<'de> for SamplerChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let wrong = |reason: String| serde::de::Error::custom(format!("sampler: {reason}"));
        match Value::deserialize(deserializer)? {
            Value::String(text) => text.parse().map_err(serde::de::Error::custom),
            Value::Object(mut settings) => match settings.remove("name") {
                Some(Value::String(name)) => Ok(Self { name, settings }),
                Some(other) => Err(wrong(format!("the name {other} is not a text"))),
                None => Err(wrong("a name is needed, as in { name: NAME, SETTING: VALUE }".into())),
            },
            other => Err(wrong(format!("{other} is neither a name nor {{ name: NAME, SETTING: VALUE }}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_the_same_choice() {
        let choice = SamplerChoice::named("mine").with("gamma", 1.5).with("kind", "soft").with("on", true);
        assert_eq!("mine:gamma=1.5,kind=soft,on=true".parse::<SamplerChoice>().unwrap(), choice);
        assert_eq!(" mine : gamma = 1.5, kind= soft ,on=true,".parse::<SamplerChoice>().unwrap(), choice);
        let read = |json: &str| serde_json::from_str::<SamplerChoice>(json);
        assert_eq!(read(r#""mine:gamma=1.5,kind=soft,on=true""#).unwrap(), choice);
        let stored = serde_json::to_string(&choice).unwrap();
        assert_eq!(read(&stored).unwrap(), choice);
        for (wrong, named) in [
            ("3", "neither a name"),
            (r#"{"gamma": 1}"#, "a name is needed"),
            (r#"{"name": 3}"#, "not a text"),
            (r#""mine:gamma""#, "SETTING=VALUE"),
        ] {
            let message = read(wrong).unwrap_err().to_string();
            assert!(message.contains(named), "{message}");
        }
    }

    #[test]
    fn labels_are_parts_of_file_names() {
        assert_eq!(SamplerChoice::named("mine").settings_label(), "");
        let choice = SamplerChoice::named("mine").with("scale", 2.0).with("kind", "a/b").with("end", Value::Null);
        assert_eq!(choice.with("gamma", 1.5).settings_label(), "-gamma1.5-kinda_b-scale2");
    }
}
