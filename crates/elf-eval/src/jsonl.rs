//! Reading samples from JSON lines. Fields that are not needed, such as seed and step, are ignored.

use std::path::Path;

use elf_files::lines::JsonLines;
use serde_json::{Map, Value};

use crate::{Error, Result};

/// A generated text, its input and its references.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampleLine {
    /// The text: field `text`, or else `prediction`, or `generated` as the released code writes it.
    pub text: String,
    /// Field `input`: the text that it was generated from.
    pub input: Option<String>,
    /// Field `reference`: the expected text, or a list of several.
    pub references: Option<Vec<String>>,
    /// Fields `filled` and `hidden`: what was written into each gap of a text, and what it hides of a known one.
    pub gaps: Vec<FilledGap>,
}

/// A gap of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilledGap {
    /// What was written into it.
    pub filled: String,
    /// What it hides.
    pub hidden: String,
}

/// Texts with their inputs, where lines have them, and their references, which all lines must have or none.
///
/// # Errors
/// If the file cannot be read or is empty, a line has no text, or only some lines have a reference; the message names the line.
pub fn read_samples(path: impl AsRef<Path>) -> Result<Vec<SampleLine>> {
    let path = path.as_ref();
    let mut lines: Vec<(SampleLine, u64, String)> = Vec::new();
    for line in JsonLines::open(path)? {
        let (number, mut object) = line?;
        let found = names(&object);
        let field = |wanted| Error::LineField { path: path.into(), line: number, wanted, found: found.clone() };
        let text = ["text", "prediction", "generated"].into_iter().find(|name| object.contains_key(*name));
        let text = text.and_then(|name| take(&mut object, name));
        let text = text.ok_or_else(|| field("'text', 'prediction' or 'generated'"))?;
        let input = take(&mut object, "input");
        let references = match object.get("reference") {
            None => None,
            Some(value) => Some(texts(value).ok_or_else(|| field("'reference', nor a list of strings"))?),
        };
        let gaps = match object.get("hidden") {
            None => Vec::new(),
            Some(hidden) => gaps(hidden, object.get("filled"))
                .ok_or_else(|| field("'hidden', nor a list of strings, as many as 'filled' has"))?,
        };
        lines.push((SampleLine { text, input, references, gaps }, number, found));
    }
    if lines.is_empty() {
        return Err(Error::NoLines { path: path.into() });
    }
    let named = lines.iter().any(|(line, ..)| line.references.is_some());
    let complete = |(line, number, found): (SampleLine, u64, String)| {
        let wanted = "'reference', which other lines have";
        match named && line.references.is_none() {
            true => Err(Error::LineField { path: path.into(), line: number, wanted, found }),
            false => Ok(line),
        }
    };
    lines.into_iter().map(complete).collect()
}

fn take(object: &mut Map<String, Value>, name: &str) -> Option<String> {
    match object.get_mut(name)? {
        Value::String(text) => Some(std::mem::take(text)),
        _ => None,
    }
}

/// One text or a list of at least one.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(members) if !members.is_empty() => {
            members.iter().map(|member| member.as_str().map(str::to_owned)).collect()
        }
        _ => None,
    }
}

/// Gaps, of which both sides have all.
fn gaps(hidden: &Value, filled: Option<&Value>) -> Option<Vec<FilledGap>> {
    let (hidden, filled) = (texts(hidden)?, texts(filled?)?);
    let gap = |(filled, hidden)| FilledGap { filled, hidden };
    (hidden.len() == filled.len()).then(|| filled.into_iter().zip(hidden).map(gap).collect())
}

fn names(object: &Map<String, Value>) -> String {
    let names: Vec<&str> = object.keys().map(String::as_str).collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
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

    fn read_texts(path: impl AsRef<Path>) -> Result<Vec<String>> {
        Ok(read_samples(path)?.into_iter().map(|line| line.text).collect())
    }

    #[test]
    fn texts() {
        let file = file(
            "\u{feff}{\"text\": \"a\\nb\", \"seed\": 1}\n\n{\"prediction\": \"日本\"}\r\n{\"text\":\"\"}\n{\"id\": 4, \"generated\": \"b\"}".as_bytes(),
        );
        assert_eq!(read_texts(file.path()).unwrap(), ["a\nb", "日本", "", "b"]);
    }

    #[test]
    fn references_of_all_lines_or_none() {
        let with = file(
            b"{\"text\": \"a\", \"reference\": \"x\"}\n{\"text\": \"b\", \"input\": \"c\", \"reference\": \"\"}\n",
        );
        let line = |text: &str, input: Option<&str>, reference: &str| SampleLine {
            text: text.into(),
            input: input.map(str::to_owned),
            references: Some(vec![reference.into()]),
            gaps: vec![],
        };
        assert_eq!(read_samples(with.path()).unwrap(), [line("a", None, "x"), line("b", Some("c"), "")]);
        let without = file(b"{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
        assert!(read_samples(without.path()).unwrap().iter().all(|line| line.references.is_none()));
        let several =
            file(b"{\"text\": \"a\", \"reference\": [\"x\", \"y\"]}\n{\"text\": \"b\", \"reference\": \"z\"}\n");
        let several: Vec<_> =
            read_samples(several.path()).unwrap().into_iter().map(|line| line.references.unwrap()).collect();
        assert_eq!(several, [vec!["x", "y"], vec!["z"]]);
    }

    #[test]
    fn gaps_have_two_sides() {
        let file = file(b"{\"text\": \"a\", \"filled\": [\"x\", \"y z\"], \"hidden\": [\"x\", \"y\"]}\n{\"text\": \"a\", \"filled\": [\"x\"]}\n");
        let lines = read_samples(file.path()).unwrap();
        let gap = |filled: &str, hidden: &str| FilledGap { filled: filled.into(), hidden: hidden.into() };
        assert_eq!(lines[0].gaps, [gap("x", "x"), gap("y z", "y")]);
        assert!(lines[1].gaps.is_empty());
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
            (b"{\"text\": \"a\"}\n{\"text\": \"a", "line 2, the last, breaks off"),
            (b"{\"text\": \"a\", \"reference\": null}\n", "line 1: no string field 'reference'"),
            (b"{\"text\": \"a\", \"hidden\": [\"b\"]}\n", "line 1: no string field 'hidden', nor a list"),
            (b"{\"text\": \"a\", \"hidden\": [\"b\"], \"filled\": [\"b\", \"c\"]}\n", "as many as 'filled' has"),
            (b"{\"text\": \"a\", \"reference\": []}\n", "line 1: no string field 'reference'"),
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
        let error = read_samples(mixed.path()).unwrap_err().to_string();
        assert!(error.contains("line 2: no string field 'reference'"), "{error}");
        let error = read_texts("/nowhere/x.jsonl").unwrap_err().to_string();
        assert!(error.contains("cannot read `/nowhere/x.jsonl`"), "{error}");
    }
}
