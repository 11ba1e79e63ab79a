//! `-` in place of a file: standard input where a file is read, standard output where one is written.

use std::any::TypeId;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{Arg, Command};
use elf_files::lines::Lines;
use tempfile::TempDir;

/// Options that name files of texts or settings to read; models, tokenizers and shards are folders.
const INPUTS: [&str; 6] = ["input", "samples", "references", "training", "config", "sampling_config"];

/// A temporary folder and the copy of standard input in it, once standard input was read. A copy is needed because readers choose
/// a format by the file's name, and because some files are read twice.
static COPY: Mutex<Option<(TempDir, PathBuf)>> = Mutex::new(None);

/// A command all of whose options, and those of its subcommands, take `-` in this way.
pub fn understood_by(command: Command) -> Command {
    command.mut_args(of_option).mut_subcommands(understood_by)
}

fn of_option(arg: Arg) -> Arg {
    let (id, kind) = (arg.get_id().as_str(), arg.get_value_parser().type_id());
    if kind != TypeId::of::<PathBuf>() || !INPUTS.contains(&id) {
        return arg;
    }
    arg.value_parser(PathBufValueParser::new().try_map(read))
}

/// The file that a value stands for.
fn read(path: PathBuf) -> Result<PathBuf, String> {
    if path != Path::new("-") {
        return Ok(path);
    }
    let mut copy = COPY.lock().unwrap_or_else(PoisonError::into_inner);
    if copy.is_none() {
        *copy = Some(copied(io::stdin()).map_err(|error| format!("standard input cannot be read: {error}"))?);
    }
    Ok(copy.as_ref().map_or(path, |(_, file)| file.clone()))
}

/// A copy in a folder of its own, under a name that tells its format.
fn copied(mut input: impl Read) -> io::Result<(TempDir, PathBuf)> {
    let folder = TempDir::with_prefix("elf-")?;
    let file = folder.path().join("standard-input");
    io::copy(&mut input, &mut File::create(&file)?)?;
    let mut beginning = Vec::new();
    File::open(&file)?.take(4).read_to_end(&mut beginning)?;
    let first = || Lines::open(&file).ok()?.find_map(|line| line.ok().filter(|line| !line.trim().is_empty()));
    let extension = match first() {
        _ if beginning == b"PAR1" => "parquet",
        Some(line) if line.trim_start().starts_with('{') => "jsonl",
        _ => "txt",
    };
    let named = file.with_extension(extension);
    fs::rename(&file, &named)?;
    Ok((folder, named))
}

/// Standard input for a program that takes the place of this one: a copy of what was read, which nothing has to remove.
///
/// # Errors
/// If the copy cannot be opened.
pub fn again() -> io::Result<Stdio> {
    let copy = COPY.lock().unwrap_or_else(PoisonError::into_inner).take();
    copy.map_or(Ok(Stdio::inherit()), |(_folder, file)| File::open(file).map(Stdio::from))
}

/// Removes the copy of standard input.
pub fn forget() {
    COPY.lock().unwrap_or_else(PoisonError::into_inner).take();
}

/// The file to write that a value stands for.
pub fn output(path: PathBuf) -> PathBuf {
    if path == Path::new("-") { PathBuf::from("/dev/stdout") } else { path }
}

/// Whether a file is standard output, on which nothing else may then be written.
pub fn is_output(path: &Path) -> bool {
    path == Path::new("/dev/stdout")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_named_by_what_it_holds() {
        let gzip = {
            use std::io::Write;
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(b"{\"text\": \"a\"}\n").unwrap();
            gzip.finish().unwrap()
        };
        for (bytes, extension) in [
            (&b"PAR1..."[..], "parquet"),
            (b"{\"text\": \"a\"}\n", "jsonl"),
            (b"\xef\xbb\xbf\n {\"text\": \"a\"}\n", "jsonl"),
            (&gzip, "jsonl"),
            (b"a text\n", "txt"),
            (b"", "txt"),
            (b"\xff\xfe", "txt"),
        ] {
            let (_folder, file) = copied(bytes).unwrap();
            assert_eq!(file.extension().unwrap(), extension);
            assert_eq!(fs::read(file).unwrap(), bytes);
        }
    }
}
