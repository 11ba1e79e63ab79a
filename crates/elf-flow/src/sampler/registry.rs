//! Samplers by name.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Euler, Heun, SamplerConfig, Sde};
use crate::{Error, Result};

/// A sampler's name and settings, as written in a configuration: `{ name: sde, gamma: 1.5 }`.
///
/// It is checked where it is looked up ([`Registry::config`]), since only a registry knows the names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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

    /// With one setting.
    pub fn with(mut self, setting: impl Into<String>, value: impl Into<Value>) -> Self {
        self.settings.insert(setting.into(), value.into());
        self
    }
}

type Read = fn(Value) -> serde_json::Result<Box<dyn SamplerConfig>>;

/// A name and the settings type behind it.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    name: &'static str,
    aliases: &'static [&'static str],
    defaults: fn() -> serde_json::Result<Value>,
    read: Read,
}

impl Entry {
    /// The sampler whose settings are `T`, under `name`. Defaults and the list of settings come from `T::default()`.
    pub const fn of<T>(name: &'static str) -> Self
    where
        T: SamplerConfig + Default + Serialize + DeserializeOwned + 'static,
    {
        Self {
            name,
            aliases: &[],
            defaults: || serde_json::to_value(T::default()),
            read: |settings| Ok(Box::new(serde_json::from_value::<T>(settings)?)),
        }
    }

    /// Under other names too.
    pub const fn or(self, aliases: &'static [&'static str]) -> Self {
        Self { aliases, ..self }
    }

    /// The name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Other names for the same sampler.
    pub fn aliases(&self) -> &'static [&'static str] {
        self.aliases
    }

    /// All settings with their defaults.
    ///
    /// # Errors
    /// If the settings type is not a struct of named fields.
    pub fn defaults(&self) -> Result<Map<String, Value>> {
        match (self.defaults)() {
            Ok(Value::Object(map)) => Ok(map),
            Ok(other) => Err(self.setting_error(format!("its settings must be named fields, not {other}"))),
            Err(e) => Err(self.setting_error(e.to_string())),
        }
    }

    fn setting_error(&self, reason: String) -> Error {
        Error::setting(format!("sampler `{}`", self.name), reason)
    }

    fn config(&self, settings: &Map<String, Value>) -> Result<Box<dyn SamplerConfig>> {
        let mut all = self.defaults()?;
        for (key, value) in settings {
            if !all.contains_key(key) {
                let known = nearest_first(key, all.keys().map(String::as_str));
                let reason = match known.is_empty() {
                    true => format!("there is no setting `{key}`; this sampler has no settings"),
                    false => format!("there is no setting `{key}`; there is: {}", known.join(", ")),
                };
                return Err(self.setting_error(reason));
            }
            all.insert(key.clone(), value.clone());
        }
        let config = (self.read)(Value::Object(all)).map_err(|e| self.setting_error(e.to_string()))?;
        config.check()?;
        Ok(config)
    }
}

/// The samplers of this crate. A new one is a file beside this one and a line here.
pub const BUILTIN: &[Entry] =
    &[Entry::of::<Euler>("euler").or(&["ode"]), Entry::of::<Heun>("heun"), Entry::of::<Sde>("sde")];

/// The samplers that a program offers.
#[derive(Debug, Clone)]
pub struct Registry {
    entries: Vec<Entry>,
}

impl Default for Registry {
    fn default() -> Self {
        Self::builtin()
    }
}

impl Registry {
    /// The samplers of this crate.
    pub fn builtin() -> Self {
        Self { entries: BUILTIN.to_vec() }
    }

    /// And one more. It takes precedence over those of the same name.
    pub fn with(mut self, entry: Entry) -> Self {
        self.entries.insert(0, entry);
        self
    }

    /// All samplers.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// The checked settings of the sampler that `choice` names.
    ///
    /// # Errors
    /// If there is no sampler of that name or it has no such setting: the message lists all there are, the nearest first.
    pub fn config(&self, choice: &SamplerChoice) -> Result<Box<dyn SamplerConfig>> {
        let name = choice.name.as_str();
        let entry = self.entries.iter().find(|e| e.name == name || e.aliases.contains(&name)).ok_or_else(|| {
            let names = self.entries.iter().flat_map(|e| std::iter::once(&e.name).chain(e.aliases)).copied();
            Error::setting(
                "sampler",
                format!("there is no sampler `{name}`; there is: {}", nearest_first(name, names).join(", ")),
            )
        })?;
        entry.config(&choice.settings)
    }
}

/// `known` in the order of likeness to `given`, which is what was probably meant.
fn nearest_first<'k>(given: &str, known: impl Iterator<Item = &'k str>) -> Vec<&'k str> {
    let mut known: Vec<&str> = known.collect();
    let given = given.to_lowercase();
    known.sort_by_key(|k| strsim::damerau_levenshtein(&given, &k.to_lowercase()));
    known
}
