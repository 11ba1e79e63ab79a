//! Reading configurations from YAML with overrides. Unknown keys are refused.

use std::path::Path;

use crate::error::{Context, fail};
use crate::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use serde_saphyr::UserMessageFormatter;

use super::fitting::fitted;

/// Keys of the released code without a counterpart here, with the reason; a warning names them.
const NO_COUNTERPART: &[(&str, &str)] = &[
    ("use_compile", "nothing is compiled at run time"),
    ("use_wandb", "metrics go to metrics.jsonl"),
    ("hf_repo_id", "nothing is uploaded"),
    ("num_workers", "one prefetch thread is enough"),
    ("attn_dropout", "it has no effect in the released code"),
    ("sampling_configs", "the released code reads its settings from sampling_configs_path, too"),
    ("teacher_path", DISTILLATION),
    ("teacher_use_ema", DISTILLATION),
    ("initialize_student_from_teacher", DISTILLATION),
    ("student_init_from_checkpoint", DISTILLATION),
    ("pd_teacher_steps", DISTILLATION),
    ("pd_step_size", DISTILLATION),
    ("pd_student_schedule", DISTILLATION),
    ("pd_teacher_schedule", DISTILLATION),
];
const DISTILLATION: &str = "about distillation only";
const ENCODER_WEIGHTS: &str = "encoder_checkpoint";

/// Settings that take precedence over a file's, in order; later values win.
#[derive(Debug, Clone, Default)]
pub struct Overrides(Vec<(String, Value)>);

impl Overrides {
    /// Parses texts of the form `key=value`, whose values are YAML.
    ///
    /// # Errors
    /// If a text does not have that form; the message names it.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self> {
        let mut all = Vec::with_capacity(texts.len());
        for text in texts.iter().map(T::as_ref) {
            let Some((key, value)) = text.split_once('=') else {
                fail!(setting(text), "the override `{text}` is not of the form key=value");
            };
            let value = parse_yaml(value).with_context(|| format!("the override `{text}`: its value is not YAML"))?;
            all.push((key.trim().to_owned(), value));
        }
        Ok(Self(all))
    }

    /// Adds a setting, unless `value` is `None`.
    ///
    /// # Errors
    /// If the value cannot be written as YAML, such as a path that is not Unicode.
    pub fn with(mut self, key: &str, value: Option<impl Serialize>) -> Result<Self> {
        if let Some(value) = value {
            self.0.push((key.to_owned(), serde_json::to_value(value).with_context(|| format!("the value of {key}"))?));
        }
        Ok(self)
    }

    fn apply(&self, map: &mut Map<String, Value>) {
        map.extend(self.0.iter().cloned());
    }
}

/// Parses any YAML value. An error has only the first line of the parser's message, which states position and problem.
pub(crate) fn parse_yaml(text: &str) -> Result<Value> {
    serde_saphyr::from_str(text).map_err(|e| {
        let message = e.render_with_formatter(&UserMessageFormatter);
        let first = message.lines().next().unwrap_or_default();
        Error::request(first.trim_start_matches("error: "))
    })
}

/// Reads a YAML mapping into a configuration: defaults, then the file, then the overrides. Keys of the released code
/// without a counterpart are passed to `warn` in one line. Other unknown keys are refused, with the nearest known one.
///
/// # Errors
/// If the file or a value is invalid, or a key is unknown; the message names file, key and remedy.
pub fn read_yaml<T>(path: Option<&Path>, overrides: &Overrides, warn: impl FnOnce(String)) -> Result<T>
where
    T: Default + Serialize + DeserializeOwned,
{
    let (origin, mut map) = load(path, overrides)?;
    let ignored = take_without_counterpart::<T>(&mut map)?;
    if !ignored.is_empty() {
        warn(format!("{origin}: ignored, because they have no counterpart here: {}", ignored.join("; ")));
    }
    check_keys::<T>(&map, &origin)?;
    fitted(map, &origin)
}

/// [`read_yaml`] for a file that another program wrote beside its checkpoint: its unknown keys are passed to `warn`,
/// too, instead of being refused. Unknown keys in the overrides are still refused.
///
/// # Errors
/// As [`read_yaml`], except for unknown keys in the file.
pub fn read_record<T>(path: &Path, overrides: &Overrides, warn: impl FnOnce(String)) -> Result<T>
where
    T: Default + Serialize + DeserializeOwned,
{
    let (_, given) = load(None, overrides)?;
    check_keys::<T>(&given, "the command line")?;
    let (origin, mut map) = load(Some(path), overrides)?;
    let mut ignored: Vec<String> = take_without_counterpart::<T>(&mut map)?;
    let known = keys_of::<T>()?;
    let unknown: Vec<String> = map.keys().filter(|key| !known.contains_key(*key)).cloned().collect();
    for key in unknown {
        map.remove(&key);
        ignored.push(key);
    }
    if !ignored.is_empty() {
        warn(format!("{origin}: ignored, because they have no counterpart here: {}", ignored.join("; ")));
    }
    fitted(map, &origin).with_context(|| {
        format!("{origin}, which lies beside the checkpoint, does not fit: name another file with --config")
    })
}

/// The name of the source for messages, and the file's mapping after the overrides.
fn load(path: Option<&Path>, overrides: &Overrides) -> Result<(String, Map<String, Value>)> {
    let origin = path.map_or("the command line".to_owned(), |p| p.display().to_string());
    let mut map = match path {
        None => Map::new(),
        Some(path) => {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("cannot read the configuration {origin}"))?;
            match parse_yaml(&text).with_context(|| format!("{origin} is not YAML"))? {
                Value::Object(map) => map,
                Value::Null => Map::new(),
                _ => fail!(request, "{origin} must be a mapping of keys to values"),
            }
        }
    };
    overrides.apply(&mut map);
    Ok((origin, map))
}

fn keys_of<T: Default + Serialize>() -> Result<Map<String, Value>> {
    match serde_json::to_value(T::default())? {
        Value::Object(known) => Ok(known),
        _ => fail!(request, "a configuration must be a mapping"),
    }
}

/// Removes the keys without a counterpart, and returns them with their reasons.
fn take_without_counterpart<T: Default + Serialize>(map: &mut Map<String, Value>) -> Result<Vec<String>> {
    let known = keys_of::<T>()?;
    let mut ignored = Vec::new();
    for (key, why) in NO_COUNTERPART {
        if !known.contains_key(*key) && map.remove(*key).is_some() {
            ignored.push(format!("{key} ({why})"));
        }
    }
    // The released conditional recipes name the encoder's weights a second time, as a pickle for JAX.
    let is_pickle = |value: &Value| value.as_str().is_some_and(|name| name.ends_with(".pkl"));
    if map.get(ENCODER_WEIGHTS).is_some_and(is_pickle) {
        map.remove(ENCODER_WEIGHTS);
        ignored.push(format!(
            "{ENCODER_WEIGHTS} (a pickle for JAX; the weights of encoder_model_name are taken, as the released PyTorch code does)"
        ));
    }
    let wandb: Vec<String> = map.keys().filter(|k| k.starts_with("wandb_")).cloned().collect();
    for key in wandb {
        map.remove(&key);
        ignored.push(key);
    }
    Ok(ignored)
}

/// Refuses keys that `T` does not have.
fn check_keys<T: Default + Serialize>(map: &Map<String, Value>, origin: &str) -> Result<()> {
    let known = keys_of::<T>()?;
    check_known(map, &known.keys().map(String::as_str).collect::<Vec<_>>(), origin)
}

/// Refuses unknown keys with the nearest known one: the released code ignores a misspelt key silently.
pub(crate) fn check_known(map: &Map<String, Value>, known: &[&str], origin: &str) -> Result<()> {
    for key in map.keys() {
        if known.contains(&key.as_str()) {
            continue;
        }
        let likeness = |known: &str| strsim::jaro_winkler(key, known);
        let nearest = known.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        match nearest.filter(|nearest| likeness(nearest) > 0.85) {
            Some(nearest) => fail!(setting(key), "{origin}: there is no key `{key}`; did you mean `{nearest}`?"),
            None => fail!(setting(key), "{origin}: there is no key `{key}`; the keys are: {}", known.join(", ")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RunConfig;

    fn read(overrides: &[&str]) -> (Result<RunConfig>, Vec<String>) {
        let mut warnings = Vec::new();
        let config = Overrides::parse(overrides).and_then(|given| read_yaml(None, &given, |w| warnings.push(w)));
        (config, warnings)
    }

    #[test]
    fn overrides_are_yaml_and_later_ones_win() {
        let (config, _) =
            read(&["max_length=64", "denoiser_p_mean=-1", "max_length=96", "warmup_steps=-1", "model=ELF-L"]);
        let config = config.unwrap();
        assert_eq!((config.data.max_length, config.flow.denoiser_p_mean, config.length.warmup_steps), (96, -1.0, -1));
        assert_eq!(config.network.model, "ELF-L");
    }

    #[test]
    fn a_misspelt_key_is_refused_with_the_nearest_right_one() {
        let message = read(&["denoiser_p_maen=0"]).0.unwrap_err().to_string();
        assert!(message.contains("`denoiser_p_maen`") && message.contains("`denoiser_p_mean`"), "{message}");
        let message = read(&["xyzzy=0"]).0.unwrap_err().to_string();
        assert!(message.contains("the keys are") && message.contains("max_length"), "{message}");
        assert!(read(&["max_length"]).0.unwrap_err().to_string().contains("key=value"));
    }

    #[test]
    fn yaml_is_refused_in_a_users_words() {
        let message = parse_yaml("lr: 1\nlr: 2\n").unwrap_err().to_string();
        assert!(message.contains("lr") && message.contains("line 2") && !message.contains("Policy"), "{message}");
        for value in [".nan", ".inf", "1e400", "\"a", "[1", "{a: 1, a: 2}"] {
            let message = Overrides::parse(&[format!("lr={value}")]).unwrap_err().report();
            assert!(message.contains("lr=") && !message.contains("Policy"), "{message}");
        }
    }

    #[test]
    fn keys_without_meaning_are_named_in_one_line() {
        let (config, warnings) = read(&["use_wandb=true", "wandb_project=elf", "use_compile=true"]);
        config.unwrap();
        assert_eq!(warnings.len(), 1);
        for key in ["use_wandb", "wandb_project", "use_compile"] {
            assert!(warnings[0].contains(key), "{}", warnings[0]);
        }
    }
}
