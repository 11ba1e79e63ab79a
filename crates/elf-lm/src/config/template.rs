//! Configurations as YAML files with a comment for every key.

use crate::{Error, Result};
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

/// Maximum width of a comment, in columns.
const WIDTH: usize = 100;

/// `config` as a YAML file: every key with its value, after a comment with its description and, for an enumeration, its
/// values. Reading the file gives `config`.
///
/// # Errors
/// If a value cannot be written as YAML.
pub fn template<T: JsonSchema + Serialize>(config: &T) -> Result<String> {
    let schema = schemars::schema_for!(T).to_value();
    let values: IndexMap<String, Value> = serde_json::from_str(&serde_json::to_string(config)?)?;
    let mut file = String::new();
    for (key, value) in values {
        let property = &schema["properties"][&key];
        let mut meaning = property["description"].as_str().unwrap_or_default().replace('\n', " ");
        let choices = choices(property, &schema);
        if !choices.is_empty() {
            meaning.push_str(&format!(" One of: {}.", choices.join(", ")));
        }
        for line in textwrap::wrap(&meaning, WIDTH) {
            file.push_str(&format!("# {line}\n"));
        }
        let value =
            serde_saphyr::to_string(&value).map_err(|e| Error::setting(&key, format!("the value of {key}: {e}")))?;
        file.push_str(&format!("{key}: {}\n", value.trim_end()));
    }
    Ok(file)
}

/// The values of an enumeration, or nothing for other schemas. References are resolved in `root`.
fn choices(schema: &Value, root: &Value) -> Vec<String> {
    if let Some(path) = schema["$ref"].as_str() {
        return root
            .pointer(path.trim_start_matches('#'))
            .map_or_else(Vec::new, |definition| choices(definition, root));
    }
    let of_all = ["anyOf", "oneOf"].into_iter().filter_map(|key| schema[key].as_array()).flatten();
    let of_all = of_all.flat_map(|schema| choices(schema, root));
    let here = schema["enum"].as_array().into_iter().flatten().chain(schema.get("const"));
    of_all.chain(here.filter_map(Value::as_str).map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::config::{Overrides, RunConfig, read_yaml};

    fn read(text: &str) -> RunConfig {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        read_yaml(Some(file.path()), &Overrides::default(), |warning| panic!("{warning}")).unwrap()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let default = RunConfig::default();
        assert_eq!(read(&template(&default).unwrap()), default);
        let other = RunConfig::default().with(|c| {
            c.data.data_path = Some("a: b # c".into());
            c.output.output_dir = Some("null".into());
            c.optimization.lr = Some(1e-7);
            c.length.max_steps = Some(3);
        });
        assert_eq!(read(&template(&other).unwrap()), other);
    }

    #[test]
    fn every_key_is_explained_and_choices_are_named() {
        let text = template(&RunConfig::default()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("# "), "{text}");
        for pair in lines.windows(2) {
            assert!(pair[0].starts_with("# ") || pair[1].starts_with("# "), "no word about {}", pair[1]);
        }
        // By itself, behind `null`, and without a description of its values.
        for choice in ["One of: elf, gpt2, mdlm.", "One of: pad, eos.", "One of: muon, adamw."] {
            assert!(text.replace("\n# ", " ").contains(choice), "{choice}: {text}");
        }
        assert!(lines.iter().all(|line| line.chars().count() <= WIDTH + 2), "{text}");
    }
}
