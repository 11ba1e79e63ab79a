//! Lines of text files.
//!
//! A line ends with a line feed, with or without a carriage return before it; the last line may lack its end. A line is a row: an
//! empty line is an empty text, and a final line end begins no further row. A byte order mark is not text. Files compressed with gzip
//! or zstd are decompressed; their first bytes decide, not their names.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// Longest line in bytes.
pub const MAX_LINE: u64 = 64 << 20;

const BUFFER: usize = 1 << 20;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Text without the byte order mark that may precede it.
pub fn without_byte_order_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text)
}

/// Why lines cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LineError {
    /// The file could not be opened or read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file is a stand-in for a file that was not downloaded.
    #[error("`{}` {}", path.display(), crate::LFS_POINTER_REMEDY)]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// A line is not UTF-8.
    #[error("`{}`, line {line}: not UTF-8: convert the file, for example with iconv", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: u64,
    },
    /// A line is far too long to be a text.
    #[error("`{}`, line {line}: longer than {MAX_LINE} bytes; is this a file of lines?", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: u64,
    },
    /// A line is not a JSON object.
    #[error("`{}`, line {line}: not a JSON object ({source}): every line must be one", path.display())]
    NotAnObject {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: u64,
        /// The parser's reason.
        source: serde_json::Error,
    },
    /// The last line ends in the middle of a JSON object.
    #[error("`{}` is truncated or damaged (line {line}, the last, breaks off): copy the file again, or remove that line", path.display())]
    CutOff {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: u64,
    },
}

/// A reader of lines.
pub struct Lines {
    reader: Box<dyn BufRead + Send>,
    path: PathBuf,
    line: Vec<u8>,
    number: u64,
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines").field("path", &self.path).field("number", &self.number).finish_non_exhaustive()
    }
}

impl Lines {
    /// The lines of a file.
    ///
    /// # Errors
    /// If it cannot be opened, or is a Git LFS pointer.
    pub fn open(path: &Path) -> Result<Self, LineError> {
        let read = |source| LineError::Read { path: path.to_owned(), source };
        Self::of(File::open(path).map_err(read)?, path)
    }

    /// The lines of any reader, such as standard input. `name` stands for its path in messages.
    ///
    /// # Errors
    /// If its beginning cannot be read, or is that of a Git LFS pointer.
    pub fn of(reader: impl Read + Send + 'static, name: &Path) -> Result<Self, LineError> {
        let read = |source| LineError::Read { path: name.to_owned(), source };
        let mut plain = BufReader::with_capacity(BUFFER, reader);
        let begins_with = |plain: &mut BufReader<_>, mark: &[u8]| plain.fill_buf().map(|bytes| bytes.starts_with(mark));
        let reader: Box<dyn BufRead + Send> = if begins_with(&mut plain, b"\x1f\x8b").map_err(read)? {
            Box::new(BufReader::with_capacity(BUFFER, flate2::bufread::MultiGzDecoder::new(plain)))
        } else if begins_with(&mut plain, b"\x28\xb5\x2f\xfd").map_err(read)? {
            let decoder = zstd::stream::read::Decoder::with_buffer(plain).map_err(read)?;
            Box::new(BufReader::with_capacity(BUFFER, decoder))
        } else {
            if crate::is_lfs_pointer(plain.fill_buf().map_err(read)?) {
                return Err(LineError::LfsPointer { path: name.to_owned() });
            }
            Box::new(plain)
        };
        Ok(Self { reader, path: name.to_owned(), line: Vec::new(), number: 0 })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of the line that was read last, from 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Reads the next line into `self.line`, without its end. Returns whether the line had an end; `None` after the last line.
    fn advance(&mut self) -> Result<Option<bool>, LineError> {
        self.line.clear();
        // One byte more than a line may have, with its end, distinguishes a line that is too long from one that just fits.
        let mut limited = (&mut self.reader).take(MAX_LINE + 3);
        let read = limited.read_until(b'\n', &mut self.line);
        if read.map_err(|source| LineError::Read { path: self.path.clone(), source })? == 0 {
            return Ok(None);
        }
        self.number += 1;
        let ended = self.line.last() == Some(&b'\n');
        if ended {
            self.line.pop();
        }
        if self.line.last() == Some(&b'\r') {
            self.line.pop();
        }
        if self.number == 1 && self.line.starts_with(BYTE_ORDER_MARK) {
            self.line.drain(..BYTE_ORDER_MARK.len());
        }
        if self.line.len() as u64 > MAX_LINE {
            return Err(LineError::TooLong { path: self.path.clone(), line: self.number });
        }
        // A byte order mark alone, without a line end, is an empty file.
        Ok((ended || !self.line.is_empty() || self.number > 1).then_some(ended))
    }
}

impl Iterator for Lines {
    type Item = Result<String, LineError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.advance() {
            Ok(None) => None,
            Err(e) => Some(Err(e)),
            Ok(Some(_)) => {
                let line = String::from_utf8(std::mem::take(&mut self.line));
                Some(line.map_err(|_| LineError::NotUtf8 { path: self.path.clone(), line: self.number }))
            }
        }
    }
}

/// All rows of a file: one text per line, empty ones included.
///
/// # Errors
/// If it cannot be read, or a line is not UTF-8.
pub fn rows(path: &Path) -> Result<Vec<String>, LineError> {
    Lines::open(path)?.collect()
}

/// A reader of JSON objects, one per line, each with the number of its line. Blank lines are skipped.
#[derive(Debug)]
pub struct JsonLines(Lines);

impl JsonLines {
    /// The objects of a file.
    ///
    /// # Errors
    /// As [`Lines::open`].
    pub fn open(path: &Path) -> Result<Self, LineError> {
        Lines::open(path).map(Self)
    }

    /// The objects of any reader. `name` stands for its path in messages.
    ///
    /// # Errors
    /// As [`Lines::of`].
    pub fn of(reader: impl Read + Send + 'static, name: &Path) -> Result<Self, LineError> {
        Lines::of(reader, name).map(Self)
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Iterator for JsonLines {
    type Item = Result<(u64, Map<String, Value>), LineError>;

    fn next(&mut self) -> Option<Self::Item> {
        let lines = &mut self.0;
        loop {
            let ended = match lines.advance() {
                Ok(None) => return None,
                Err(e) => return Some(Err(e)),
                Ok(Some(ended)) => ended,
            };
            if lines.line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let (path, line) = (lines.path.clone(), lines.number);
            return Some(match serde_json::from_slice(&lines.line) {
                Ok(object) => Ok((line, object)),
                Err(source) if source.is_eof() && !ended => Err(LineError::CutOff { path, line }),
                Err(source) => Err(LineError::NotAnObject { path, line, source }),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn lines(bytes: &[u8]) -> Vec<String> {
        Lines::of(io::Cursor::new(bytes.to_vec()), Path::new("x")).unwrap().collect::<Result<_, _>>().unwrap()
    }

    fn objects(bytes: &[u8]) -> Result<Vec<u64>, LineError> {
        let lines = JsonLines::of(io::Cursor::new(bytes.to_vec()), Path::new("x.jsonl"))?;
        lines.map(|line| line.map(|(number, _)| number)).collect()
    }

    #[test]
    fn a_line_is_a_row() {
        for (bytes, expected) in [
            (&b""[..], &[][..]),
            (b"\n", &[""]),
            (b"a\n\nb\n", &["a", "", "b"]),
            (b"a\n\nb", &["a", "", "b"]),
            (b"a\n\n\n", &["a", "", ""]),
            (b"a\r\n\r\nb\r\n", &["a", "", "b"]),
            (b"a\rb\r\r\nc", &["a\rb\r", "c"]),
            (b"\xef\xbb\xbfa\nb", &["a", "b"]),
            (b"\xef\xbb\xbf\na", &["", "a"]),
            (b"\xef\xbb\xbf", &[]),
            (b"a\n\xef\xbb\xbfb", &["a", "\u{feff}b"]),
            (b" a \n", &[" a "]),
        ] {
            assert_eq!(lines(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn compressed_files_are_read_by_their_first_bytes() {
        let text = "\u{feff}eins\r\nzwei\n".as_bytes();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(text).unwrap();
        let gzip = gzip.finish().unwrap();
        // Two members one after another, as `cat a.gz b.gz` makes them.
        assert_eq!(lines(&[&gzip[..], &gzip].concat()).len(), 4);
        for bytes in [gzip, zstd::encode_all(text, 1).unwrap()] {
            assert_eq!(lines(&bytes), ["eins", "zwei"]);
            let cut = Lines::of(io::Cursor::new(bytes[..bytes.len() - 3].to_vec()), Path::new("x"));
            assert!(cut.unwrap().any(|line| line.is_err()));
        }
    }

    #[test]
    fn json_lines_skip_blank_lines_and_name_faults() {
        assert_eq!(objects(b"\xef\xbb\xbf{}\r\n\r\n  \n{\"a\": 1}").unwrap(), [1, 4]);
        for (bytes, message) in [
            (&b"{}\n{\"a\": "[..], "`x.jsonl` is truncated or damaged (line 2"),
            (b"{}\n{\"a\": \n{}", "`x.jsonl`, line 2: not a JSON object"),
            (b"[1]\n", "line 1: not a JSON object"),
            (b"{\"a\": \"\xff\"}\n", "line 1: not a JSON object"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git lfs pull"),
        ] {
            let error = objects(bytes).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn text_in_another_encoding_and_endless_lines_are_named() {
        let mut latin1 = Lines::of(io::Cursor::new(b"gut\nsch\xf6n\n".to_vec()), Path::new("l")).unwrap();
        assert_eq!(latin1.next().unwrap().unwrap(), "gut");
        assert!(latin1.next().unwrap().unwrap_err().to_string().contains("line 2: not UTF-8"));
        let mut endless = Lines::of(io::repeat(b'a'), Path::new("endless")).unwrap();
        assert!(endless.next().unwrap().unwrap_err().to_string().contains("longer than"));
        let missing = Lines::open(Path::new("/nowhere/x")).unwrap_err().to_string();
        assert!(missing.contains("cannot read `/nowhere/x`"), "{missing}");
    }
}
