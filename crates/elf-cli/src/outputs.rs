//! No output is an input. Checked in one place for every command, by what clap knows of its options.

use std::any::TypeId;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{Arg, ArgMatches, Command};
use elf_data::source::DATA_EXTENSIONS;
use elf_files::{is_same, is_special};
use elf_lm::encoder::CorpusText;
use elf_lm::text::text_column::TextColumn;

/// Options that name what is written.
const OUTPUTS: [&str; 2] = ["output", "json"];

/// Options whose folder may be written into: a tokenizer's folder can become an encoder's, samples lie beside one another, and a run
/// goes on in its own folder.
const SHARED: [&str; 3] = ["tokenizer", "samples_folder", "resume"];

/// Options that name models, as positions in the command line do; the others that name files are about texts.
const MODELS: [&str; 5] = ["run", "judge", "guide", "encoder", "from"];

/// Extensions of the files of a model.
const MODEL_EXTENSIONS: [&str; 5] = ["safetensors", "pt", "bin", "yml", "yaml"];

/// Files of a model with other extensions.
const MODEL_FILES: [&str; 2] = ["tokenizer.json", "config.json"];

/// Refuses an output that is also read, under this or another name, before anything is opened.
///
/// # Errors
/// Names both options.
pub fn check(command: &Command, matches: &ArgMatches) -> Result<()> {
    let (mut command, mut matches) = (command, matches);
    while let Some((name, inner)) = matches.subcommand() {
        let Some(found) = command.find_subcommand(name) else { return Ok(()) };
        (command, matches) = (found, inner);
    }
    let (outputs, others): (Vec<&Arg>, Vec<&Arg>) =
        command.get_arguments().partition(|arg| OUTPUTS.contains(&arg.get_id().as_str()));
    for output in outputs {
        for written in values(output, matches) {
            for input in others.iter().filter(|arg| names_files(arg)) {
                if let Some(read) = values(input, matches).find(|read| destroys(&written, read, input)) {
                    bail!(
                        "{} {} is what {} {} reads: writing it would destroy that, so name another file",
                        shown(output),
                        written.display(),
                        shown(input),
                        read.display()
                    );
                }
            }
        }
    }
    Ok(())
}

fn values(arg: &Arg, matches: &ArgMatches) -> impl Iterator<Item = PathBuf> {
    matches.get_raw(arg.get_id().as_str()).into_iter().flatten().map(PathBuf::from)
}

/// Whether an option's values are files, or columns of files.
fn names_files(arg: &Arg) -> bool {
    let kind = arg.get_value_parser().type_id();
    let of_files = [
        TypeId::of::<PathBuf>(),
        TypeId::of::<TextColumn>(),
        TypeId::of::<CorpusText>(),
        TypeId::of::<(String, TextColumn)>(),
    ];
    of_files.iter().any(|of| kind == *of)
}

/// Whether a file that is there would be lost: itself, or one of a folder that is read.
fn destroys(written: &Path, read: &Path, input: &Arg) -> bool {
    if !written.exists() || is_special(written) {
        return false;
    }
    let id = input.get_id().as_str();
    // FILE:COLUMN and COLUMN=FILE:COLUMN.
    let text = read.to_string_lossy();
    let file = text.rsplit_once(':').map_or(&*text, |(file, _)| file);
    let after = file.split_once('=').map_or(file, |(_, file)| file);
    [read, Path::new(file), Path::new(after)].into_iter().any(|read| match (is_same(written, read), read.is_dir()) {
        (true, _) => !(SHARED.contains(&id) && written.is_dir()),
        (false, true) => is_read_from(written, read, MODELS.contains(&id) || input.is_positional()),
        (false, false) => false,
    })
}

/// Whether a file lies in a folder that is read, and is of the kind that is read from it.
fn is_read_from(written: &Path, folder: &Path, model: bool) -> bool {
    let (Ok(file), Ok(folder)) = (written.canonicalize(), folder.canonicalize()) else { return false };
    let extension = written.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let name = written.file_name().unwrap_or_default().to_string_lossy();
    let kind = match model {
        true => MODEL_EXTENSIONS.contains(&&*extension) || MODEL_FILES.contains(&&*name),
        false => DATA_EXTENSIONS.contains(&&*extension),
    };
    written.is_file() && kind && file.starts_with(folder)
}

/// An option as it is typed.
fn shown(arg: &Arg) -> String {
    match (arg.get_long(), arg.get_value_names()) {
        (Some(long), _) => format!("--{long}"),
        (None, Some([name, ..])) => name.to_string(),
        (None, _) => arg.get_id().to_string().to_uppercase(),
    }
}
