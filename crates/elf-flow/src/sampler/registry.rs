//! Samplers by name: looking up, checking and combining settings that come from a configuration.

use std::fmt;

use serde_json::{Map, Value};

use super::{Churn, Euler, Heun, Sampler, SamplerChoice, SamplerConfig, ScheduledSde, Sde};
use crate::{Error, Result};

/// The samplers of this crate. To add one, write a file in this folder and add a line here.
pub const BUILTIN: &[Entry] =
    &[Entry::of::<Euler>(), Entry::of::<Heun>(), Entry::of::<Sde>(), Entry::of::<ScheduledSde>(), Entry::of::<Churn>()];

/// Makes the samplers of one choice; see [`ConfiguredSampler::build`].
type Build = Box<dyn Fn() -> Box<dyn Sampler>>;

/// All settings of a sampler, each with its value.
type Settings = Map<String, Value>;

/// Everything that a program needs to know about a sampler, taken from its [`SamplerConfig`].
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    name: &'static str,
    aliases: &'static [&'static str],
    summary: &'static str,
    released_keys: &'static [(&'static str, &'static str)],
    order: u32,
    defaults: fn() -> serde_json::Result<Value>,
    noise_free: fn() -> serde_json::Result<Value>,
    read: fn(Value) -> serde_json::Result<ReadSettings>,
}

/// Settings that fit their types.
struct ReadSettings {
    /// All of them, as they are stored.
    stored: Value,
    /// What [`SamplerConfig::check`] says.
    check: Result<()>,
    build: Build,
}

impl Entry {
    /// The sampler whose settings are `T`.
    pub const fn of<T: SamplerConfig>() -> Self {
        Self {
            name: T::NAME,
            aliases: T::ALIASES,
            summary: T::SUMMARY,
            released_keys: T::RELEASED_KEYS,
            order: T::ORDER,
            defaults: || serde_json::to_value(T::default()),
            noise_free: || serde_json::to_value(T::noise_free()),
            read: read::<T>,
        }
    }

    /// The name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Other names of the same sampler.
    pub fn aliases(&self) -> &'static [&'static str] {
        self.aliases
    }

    /// One line that says what the sampler does.
    pub fn summary(&self) -> &'static str {
        self.summary
    }

    /// Keys of a flat configuration, as the released code has them, each with the setting that it means here.
    pub fn released_keys(&self) -> &'static [(&'static str, &'static str)] {
        self.released_keys
    }

    /// The order of convergence without noise; see [`SamplerConfig::ORDER`].
    pub fn order(&self) -> u32 {
        self.order
    }

    /// All settings with their defaults.
    ///
    /// # Errors
    /// If the settings type is not a struct of named fields.
    pub fn defaults(&self) -> Result<Map<String, Value>> {
        self.fields((self.defaults)())
    }

    /// The settings under which the sampler draws no noise; see [`SamplerConfig::noise_free`].
    ///
    /// # Errors
    /// If the settings type is not a struct of named fields.
    pub fn noise_free(&self) -> Result<SamplerChoice> {
        Ok(SamplerChoice { name: self.name.to_owned(), settings: self.fields((self.noise_free)())? })
    }

    fn answers_to(&self, name: &str) -> bool {
        self.name == name || self.aliases.contains(&name)
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.name).chain(self.aliases.iter().copied())
    }

    fn setting_error(&self, reason: impl Into<String>) -> Error {
        Error::setting(format!("sampler `{}`", self.name), reason)
    }

    fn fields(&self, settings: serde_json::Result<Value>) -> Result<Settings> {
        match settings {
            Ok(Value::Object(map)) if map.contains_key("name") => {
                Err(self.setting_error("a setting cannot be called `name`, which is the sampler's own"))
            }
            Ok(Value::Object(map)) => Ok(map),
            Ok(other) => Err(self.setting_error(format!("its settings must be named fields, not {other}"))),
            Err(e) => Err(self.setting_error(e.to_string())),
        }
    }

    /// `given` with the defaults of all settings that it leaves out.
    fn complete(&self, given: &Settings) -> Result<Settings> {
        let mut all = self.defaults()?;
        if let Some(key) = given.keys().find(|key| !all.contains_key(*key)) {
            let known = all.keys().map(String::as_str);
            return Err(self.setting_error(format!("there is no setting `{key}`; {}", nearest(key, known, "setting"))));
        }
        all.extend(given.clone());
        Ok(all)
    }

    fn config(&self, choice: &SamplerChoice) -> Result<ConfiguredSampler> {
        let settings = Value::Object(self.complete(&choice.settings)?);
        let ReadSettings { stored, check, build } =
            (self.read)(settings).map_err(|e| self.setting_error(e.to_string()))?;
        check?;
        let settings = self.fields(Ok(stored))?;
        Ok(ConfiguredSampler { choice: SamplerChoice { name: choice.name.clone(), settings }, build })
    }
}

/// `sde (gamma 1.5): what it does`.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let settings = self.defaults().map_err(|_| fmt::Error)?;
        let settings: Vec<String> = settings.iter().map(|(key, value)| format!("{key} {value}")).collect();
        write!(f, "{}", self.name)?;
        for alias in self.aliases {
            write!(f, ", {alias}")?;
        }
        if !settings.is_empty() {
            write!(f, " ({})", settings.join(", "))?;
        }
        write!(f, ": {}", self.summary)
    }
}

/// Reads the settings `T`.
fn read<T: SamplerConfig>(settings: Value) -> serde_json::Result<ReadSettings> {
    let config: T = serde_json::from_value(settings)?;
    let (stored, check) = (serde_json::to_value(&config)?, config.check());
    Ok(ReadSettings { stored, check, build: Box::new(move || config.build()) })
}

/// A sampler with checked settings.
pub struct ConfiguredSampler {
    choice: SamplerChoice,
    build: Build,
}

impl ConfiguredSampler {
    /// The chosen name and the values of all settings, those with their defaults included. Store this with a run.
    pub fn choice(&self) -> &SamplerChoice {
        &self.choice
    }

    /// A fresh sampler, for one run.
    pub fn build(&self) -> Box<dyn Sampler> {
        (self.build)()
    }
}

impl fmt::Debug for ConfiguredSampler {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.choice.fmt(f)
    }
}

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

    /// Adds a sampler. It takes precedence over one of the same name.
    pub fn with(mut self, entry: Entry) -> Self {
        self.entries.insert(0, entry);
        self
    }

    /// All samplers.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// The sampler of a name or alias.
    ///
    /// # Errors
    /// If there is none: the message has the nearest name and all others.
    pub fn entry(&self, name: &str) -> Result<&Entry> {
        self.entries.iter().find(|entry| entry.answers_to(name)).ok_or_else(|| {
            let names = self.entries.iter().flat_map(Entry::names);
            Error::setting("sampler", format!("there is no sampler `{name}`; {}", nearest(name, names, "sampler")))
        })
    }

    /// The sampler that `choice` names, with checked settings.
    ///
    /// # Errors
    /// If there is no sampler of that name, it has no such setting (either message has the nearest name and all others), or a
    /// value is out of its range.
    pub fn config(&self, choice: &SamplerChoice) -> Result<ConfiguredSampler> {
        self.entry(&choice.name)?.config(choice)
    }

    /// Every combination of a choice whose settings may be lists of values, such as `{ name: sde, gamma: [1, 1.5] }`, checked
    /// and complete; the last setting varies fastest. A setting whose default is a list is not expanded, unless it is given a
    /// list of lists.
    ///
    /// # Errors
    /// As [`Registry::config`], or if a list is empty.
    pub fn combinations(&self, choice: &SamplerChoice) -> Result<Vec<SamplerChoice>> {
        let entry = self.entry(&choice.name)?;
        let defaults = entry.defaults()?;
        let mut all = vec![SamplerChoice { name: choice.name.clone(), settings: Map::new() }];
        for (key, value) in &choice.settings {
            let is_list = match (value, defaults.get(key)) {
                (Value::Array(values), Some(Value::Array(_))) => values.iter().all(Value::is_array),
                (value, _) => value.is_array(),
            };
            let values = match value {
                Value::Array(values) if values.is_empty() && is_list => {
                    return Err(
                        entry.setting_error(format!("{key} is an empty list: give it a value, or leave it out"))
                    );
                }
                Value::Array(values) if is_list => values.as_slice(),
                value => std::slice::from_ref(value),
            };
            all = all
                .iter()
                .flat_map(|choice| values.iter().map(|value| choice.clone().with(key, value.clone())))
                .collect();
        }
        all.iter().map(|choice| Ok(entry.config(choice)?.choice)).collect()
    }

    /// All keys of flat configurations that some sampler accepts, with the setting that each means.
    pub fn released_keys(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.entries.iter().flat_map(|entry| entry.released_keys.iter().copied())
    }

    /// The choice that a flat configuration in the released form makes (`sampling_method: sde`, `sde_gamma: 1.5`): the sampler
    /// `name` with those of the keys in `flat` that it accepts. Others are left alone, as in the released code.
    ///
    /// # Errors
    /// If there is no sampler of that name.
    pub fn released(&self, name: &str, flat: &Map<String, Value>) -> Result<SamplerChoice> {
        let keys = self.entry(name)?.released_keys.iter();
        let given = keys.filter_map(|(key, setting)| flat.get(*key).map(|value| (*setting, value)));
        Ok(given.fold(SamplerChoice::named(name), |choice, (setting, value)| choice.with(setting, value.clone())))
    }
}

/// What to use in place of the unknown name `given`: the most similar of the `known` names and all of them.
fn nearest<'k>(given: &str, known: impl Iterator<Item = &'k str>, what: &str) -> String {
    let mut known: Vec<&str> = known.collect();
    let given = given.to_lowercase();
    known.sort_by_key(|name| strsim::damerau_levenshtein(&given, &name.to_lowercase()));
    match known.first() {
        Some(first) => format!("did you mean `{first}`? The {what}s are: {}", known.join(", ")),
        None => format!("there are no {what}s"),
    }
}
