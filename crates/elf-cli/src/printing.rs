//! Lines on standard output and standard error. The macros of the standard library panic where a stream cannot be written; these do not.

use std::fmt;
use std::io::{self, Write};

use anyhow::{Context, Result};

/// Nobody reads standard output any more: `head` has seen enough. The program then ends quietly.
#[derive(Debug)]
pub struct ReaderGone;

impl fmt::Display for ReaderGone {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("the reader of standard output is gone")
    }
}

impl std::error::Error for ReaderGone {}

/// Writes a line to standard output; see [`out`].
///
/// # Errors
/// If it cannot be written: [`ReaderGone`], or the system's reason.
pub fn write_line(line: fmt::Arguments) -> Result<()> {
    let mut output = io::stdout().lock();
    checked(writeln!(output, "{line}").and_then(|()| output.flush()))
}

/// The outcome of writing to standard output.
///
/// # Errors
/// As [`write_line`].
pub fn checked(written: io::Result<()>) -> Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ReaderGone.into()),
        written => written.context("cannot write to standard output"),
    }
}

/// Writes a line to standard error; see [`note`]. There is no place left to report a failure to.
pub fn write_note(line: fmt::Arguments) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Writes a line to standard output, with the arguments of `format!`. Returns an error if it cannot be written.
macro_rules! out {
    ($($format:tt)*) => { $crate::printing::write_line(format_args!($($format)*)) };
}

/// Writes a line to standard error, with the arguments of `format!`.
macro_rules! note {
    ($($format:tt)*) => { $crate::printing::write_note(format_args!($($format)*)) };
}

pub(crate) use {note, out};
