//! Reading texts from JSON Lines: one JSON object a line, blank lines skipped, fields that are not
//! asked for ignored (samples carry their seed and step).

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::{Map, Value};

use crate::{EvalError, Result};

/// Longest line that is read, in bytes.
pub const MAX_LINE: u64 = 64 << 20;

/// A generated text and the text it is held against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Field `prediction`.
    pub prediction: String,
    /// Field `reference`.
    pub reference: String,
}

/// A generated text with what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampleLine {
    /// The text, as [`read_texts`] finds it.
    pub text: String,
    /// Field `input`: what it was generated from.
    pub input: Option<String>,
    /// Field `reference`: what a good answer would be.
    pub reference: Option<String>,
}

/// Texts with their inputs and references, where lines have them.
///
/// # Errors
/// If the file cannot be read, is empty, or a line has no text; the line is named.
pub fn read_samples(path: impl AsRef<Path>) -> Result<Vec<SampleLine>> {
    read(path.as_ref(), |line| {
        let mut optional = |name: &str| match line.object.get_mut(name) {
            Some(Value::String(text)) => Some(std::mem::take(text)),
            _ => None,
        };
        let (input, reference) = (optional("input"), optional("reference"));
        Ok(SampleLine { text: line.text()?, input, reference })
    })
}

/// The field `text` of every line; where there is none, `prediction`, or `generated` as the released code writes it.
///
/// # Errors
/// If the file cannot be read, is empty, or a line lacks the field; the line is named.
pub fn read_texts(path: impl AsRef<Path>) -> Result<Vec<String>> {
    read(path.as_ref(), |line| line.text())
}

/// The fields `prediction` and `reference` of every line.
///
/// # Errors
/// If the file cannot be read, is empty, or a line lacks a field; the line is named.
pub fn read_pairs(path: impl AsRef<Path>) -> Result<Vec<Pair>> {
    read(path.as_ref(), |line| {
        Ok(Pair {
            prediction: line.take("prediction", "'prediction'")?,
            reference: line.take("reference", "'reference'")?,
        })
    })
}

/// The field `reference` of every line, or none if no line has one.
///
/// # Errors
/// If the file cannot be read, is empty, or only some lines have the field; a line without it is named.
pub fn read_references(path: impl AsRef<Path>) -> Result<Option<Vec<String>>> {
    let mut named = false;
    let found = read(path.as_ref(), |line| {
        named |= line.object.contains_key("reference");
        Ok(line.take("reference", "'reference', which other lines have"))
    })?;
    if named { found.into_iter().collect::<Result<_>>().map(Some) } else { Ok(None) }
}

struct Line<'a> {
    path: &'a Path,
    number: u64,
    object: Map<String, Value>,
}

impl Line<'_> {
    fn text(&mut self) -> Result<String> {
        let names = ["text", "prediction", "generated"];
        let name = names.into_iter().find(|name| self.object.contains_key(*name)).unwrap_or("text");
        self.take(name, "'text', 'prediction' or 'generated'")
    }

    fn take(&mut self, name: &str, wanted: &'static str) -> Result<String> {
        if let Some(Value::String(text)) = self.object.get_mut(name) {
            return Ok(std::mem::take(text));
        }
        let names: Vec<&str> = self.object.keys().map(String::as_str).collect();
        Err(EvalError::LineField {
            path: self.path.into(),
            line: self.number,
            wanted,
            found: if names.is_empty() { "none".into() } else { names.join(", ") },
        })
    }
}

fn read<T>(path: &Path, mut parse: impl FnMut(&mut Line) -> Result<T>) -> Result<Vec<T>> {
    let read_error = |source| EvalError::Read { path: path.into(), source };
    let mut file = BufReader::new(File::open(path).map_err(read_error)?);
    let mut items = Vec::new();
    let mut bytes = Vec::new();
    let mut number = 0;
    loop {
        bytes.clear();
        number += 1;
        // One byte more than allowed tells a line that is too long from one that just fits.
        let n = (&mut file).take(MAX_LINE + 1).read_until(b'\n', &mut bytes).map_err(read_error)?;
        if n == 0 {
            break;
        }
        if n as u64 > MAX_LINE {
            return Err(EvalError::LineTooLong { path: path.into(), line: number, limit: MAX_LINE });
        }
        // Windows editors start a file with a byte order mark.
        let line = match number {
            1 => bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes),
            _ => &bytes,
        };
        if line.trim_ascii().is_empty() {
            continue;
        }
        let object = serde_json::from_slice(line).map_err(|source| EvalError::LineNotJson {
            path: path.into(),
            line: number,
            source,
        })?;
        items.push(parse(&mut Line { path, number, object })?);
    }
    if items.is_empty() {
        return Err(EvalError::NoLines { path: path.into() });
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(content: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        file
    }

    #[test]
    fn texts() {
        let file = file(
            "\u{feff}{\"text\": \"a\\nb\", \"seed\": 1}\n\n{\"prediction\": \"日本\"}\r\n{\"text\":\"\"}\n{\"id\": 4, \"generated\": \"b\"}".as_bytes(),
        );
        assert_eq!(read_texts(file.path()).unwrap(), ["a\nb", "日本", "", "b"]);
    }

    #[test]
    fn pairs() {
        let file = file(b"{\"prediction\": \"a\", \"reference\": \"b\", \"source\": \"c\"}\n");
        let pair = Pair { prediction: "a".into(), reference: "b".into() };
        assert_eq!(read_pairs(file.path()).unwrap(), [pair]);
    }

    #[test]
    fn references_of_all_lines_or_none() {
        let with = file(b"{\"text\": \"a\", \"reference\": \"x\"}\n{\"text\": \"b\", \"reference\": \"\"}\n");
        assert_eq!(read_references(with.path()).unwrap().unwrap(), ["x", ""]);
        let without = file(b"{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
        assert_eq!(read_references(without.path()).unwrap(), None);
    }

    #[test]
    fn errors_name_the_line_and_what_is_wrong() {
        for (content, message) in [
            (
                &b"{\"text\": \"a\"}\n\n{\"txt\": \"a\", \"n\": 1}\n"[..],
                "line 3: no string field 'text', 'prediction' or 'generated' (the fields are: n, txt)",
            ),
            (b"{\"text\": 5}\n", "line 1: no string field 'text'"),
            (b"{}\n", "(the fields are: none)"),
            (b"{\"text\": \"a\"}\n{\"text\": \"a\n", "line 2: not a JSON object"),
            (b"[\"a\"]\n", "line 1: not a JSON object"),
            (b"{\"text\": \"\xff\"}\n", "line 1: not a JSON object"),
            (b"\n \n", "holds no texts"),
        ] {
            let file = file(content);
            let error = read_texts(file.path()).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
            assert!(error.contains(&file.path().display().to_string()), "{error}");
        }
        let mixed = file(b"{\"text\": \"a\", \"reference\": \"x\"}\n{\"text\": \"b\"}\n");
        let error = read_references(mixed.path()).unwrap_err().to_string();
        assert!(error.contains("line 2: no string field 'reference'"), "{error}");
        let half = file(b"{\"prediction\": \"a\"}\n");
        let error = read_pairs(half.path()).unwrap_err().to_string();
        assert!(error.contains("no string field 'reference'"), "{error}");
        let error = read_texts("/nowhere/x.jsonl").unwrap_err().to_string();
        assert!(error.contains("cannot read /nowhere/x.jsonl"), "{error}");
    }
}
