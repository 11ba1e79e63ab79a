//! Pairs of texts to evaluate with: JSON lines with `input` and `output`, as the ELF authors publish their test sets.

use std::path::Path;

use elf_files::lines::JsonLines;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// An input's text, and the text that is expected for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvaluationPair {
    /// The pair's number: the line's `index`, or else its position among the pairs, from 0.
    pub index: i64,
    /// The input's text.
    pub input: String,
    /// The expected text; `None` in a file that has inputs only.
    pub target: Option<String>,
}

/// Whether `path` has the name of a file of pairs: `.jsonl`, `.ndjson` or `.json`.
pub fn is_pairs(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    ["jsonl", "ndjson", "json"].contains(&extension.as_str())
}

/// Reads all pairs of a file of JSON lines. The expected text is the field `output` or `target`; a line where both are there and
/// differ is refused. Other fields are ignored.
///
/// # Errors
/// If the file cannot be read, breaks off or holds no pairs, a line is not such an object, a text is null, or only some lines have an
/// expected text; the message names the line.
pub fn read_pairs(path: &Path) -> Result<Vec<EvaluationPair>> {
    let mut pairs: Vec<EvaluationPair> = Vec::new();
    // Whether the first line has a target, and so must all others.
    let mut with_targets = None;
    for line in JsonLines::open(path)? {
        let (number, object) = line?;
        let bad = |reason: String| Error::BadRecord { path: path.to_owned(), place: format!("line {number}"), reason };
        let input = text(&object, "input").map_err(bad)?.ok_or_else(|| bad("the object has no `input`".to_owned()))?;
        let (output, target) = (text(&object, "output").map_err(bad)?, text(&object, "target").map_err(bad)?);
        if output.is_some() && target.is_some() && output != target {
            return Err(bad("`output` and `target` differ: keep one of them".to_owned()));
        }
        let index = match object.get("index") {
            None | Some(Value::Null) => pairs.len() as i64,
            Some(value) => value.as_i64().ok_or_else(|| bad("`index` is not an integer".to_owned()))?,
        };
        let target = output.or(target);
        match (*with_targets.get_or_insert(target.is_some()), target.is_some()) {
            (true, false) => {
                return Err(bad(
                    "the object has no `output`, but the first one has: fill or remove such lines".to_owned()
                ));
            }
            (false, true) => {
                return Err(bad(
                    "the object has an `output`, but the first one has none: fill or remove such lines".to_owned()
                ));
            }
            _ => pairs.push(EvaluationPair { index, input, target }),
        }
    }
    if pairs.is_empty() {
        return Err(Error::NothingFound {
            what: "pairs of texts",
            path: path.to_owned(),
            remedy: "every line should be an object with `input` and `output`".to_owned(),
        });
    }
    Ok(pairs)
}

/// The text of a field, if the object has the field. A null is no text: it hides that something is missing.
fn text(object: &Map<String, Value>, key: &str) -> std::result::Result<Option<String>, String> {
    match object.get(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Null) => {
            Err(format!("`{key}` is null: fill or remove such lines, or leave the field out of all of them"))
        }
        Some(_) => Err(format!("`{key}` is not a string")),
    }
}
