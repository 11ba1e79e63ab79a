//! Reading texts from JSON Lines: one JSON object a line, blank lines skipped, fields that are not
//! asked for ignored (samples carry their seed and step).

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Result};

/// Longest line that is read, in bytes.
pub const MAX_LINE: u64 = 64 << 20;

/// A generated text with what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampleLine {
    /// The text: field `text`; where there is none, `prediction`, or `generated` as the released code writes it.
    pub text: String,
    /// Field `input`: what it was generated from.
    pub input: Option<String>,
    /// Field `reference`: what a good answer would be.
    pub reference: Option<String>,
}

/// Texts with their inputs, where lines have them, and their references, which all lines have or none.
///
/// # Errors
/// If the file cannot be read, is empty, or a line has no text, or no reference although others have one; the line is named.
pub fn read_samples(path: impl AsRef<Path>) -> Result<Vec<SampleLine>> {
    let mut named = false;
    let found = read(path.as_ref(), |line| {
        named |= line.object.contains_key("reference");
        let text = line.text()?;
        let input = line.take("input", "'input'").ok();
        // Only the last line tells whether it should have been there.
        let reference = line.take("reference", "'reference', which other lines have");
        Ok((text, input, reference))
    })?;
    let line = |(text, input, reference): (String, Option<String>, Result<String>)| {
        let reference = if named { Some(reference?) } else { None };
        Ok(SampleLine { text, input, reference })
    };
    found.into_iter().map(line).collect()
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
        Err(Error::LineField {
            path: self.path.into(),
            line: self.number,
            wanted,
            found: if names.is_empty() { "none".into() } else { names.join(", ") },
        })
    }
}

fn read<T>(path: &Path, mut parse: impl FnMut(&mut Line) -> Result<T>) -> Result<Vec<T>> {
    let read_error = |source| Error::Read { path: path.into(), source };
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
            return Err(Error::LineTooLong { path: path.into(), line: number, limit: MAX_LINE });
        }
        // Windows editors start a file with a byte order mark.
        let line = match number {
            1 => bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes),
            _ => &bytes,
        };
        if line.trim_ascii().is_empty() {
            continue;
        }
        let object = serde_json::from_slice(line).map_err(|source| Error::LineNotJson {
            path: path.into(),
            line: number,
            source,
        })?;
        items.push(parse(&mut Line { path, number, object })?);
    }
    if items.is_empty() {
        return Err(Error::NoLines { path: path.into() });
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
            reference: Some(reference.into()),
        };
        assert_eq!(read_samples(with.path()).unwrap(), [line("a", None, "x"), line("b", Some("c"), "")]);
        let without = file(b"{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
        assert!(read_samples(without.path()).unwrap().iter().all(|line| line.reference.is_none()));
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
        let error = read_samples(mixed.path()).unwrap_err().to_string();
        assert!(error.contains("line 2: no string field 'reference'"), "{error}");
        let error = read_texts("/nowhere/x.jsonl").unwrap_err().to_string();
        assert!(error.contains("cannot read /nowhere/x.jsonl"), "{error}");
    }
}
