//! Files written atomically, and lines of JSON.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde_json::Value;

use crate::Result;
use crate::error::Context;

/// Writes a value as JSON to a temporary file and renames it.
///
/// # Errors
/// If the file cannot be written.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    write(path, serde_json::to_vec_pretty(value)?)
}

/// Writes a temporary file and renames it.
///
/// # Errors
/// If it cannot be written.
pub fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    elf_files::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

/// Appends one line of JSON.
///
/// # Errors
/// If it cannot be written.
pub fn append_json(file: &mut File, value: &Value) -> Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    file.write_all(&line).context("cannot write metrics.jsonl")
}
