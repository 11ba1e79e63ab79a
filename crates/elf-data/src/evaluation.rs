//! Pairs of texts to evaluate with: JSONL with `input` and `output` on each line, as the ELF authors publish their test sets.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::source::JsonLines;

/// One thing to generate: the input's text, and the text that is expected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvaluationPair {
    /// The pair's number: `index` where the file has it, else the number among the pairs, from 0.
    pub index: i64,
    /// The input's text.
    pub input: String,
    /// The expected text; none in a file that has inputs only.
    pub target: Option<String>,
}

/// Whether `path` is named as a file of pairs: `.jsonl`, `.ndjson` or `.json`.
pub fn is_pairs(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    ["jsonl", "ndjson", "json"].contains(&extension.as_str())
}

/// Reads all pairs of a JSONL file. The expected text is called `output` or `target`; a line with both is refused, if they differ.
/// Other keys are left alone.
///
/// # Errors
/// If the file cannot be read, breaks off, holds no pairs, or a line is not such an object; the line is named.
pub fn read_pairs(path: &Path) -> Result<Vec<EvaluationPair>> {
    let mut pairs: Vec<EvaluationPair> = Vec::new();
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
        pairs.push(EvaluationPair { index, input, target: output.or(target) });
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

fn text(object: &Map<String, Value>, key: &str) -> std::result::Result<Option<String>, String> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(format!("`{key}` is not a string")),
    }
}
