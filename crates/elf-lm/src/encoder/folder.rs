//! The folder of an encoder that was made here.

use std::fs;
use std::path::{Path, PathBuf};

use elf_data::Tokenizer;

use crate::Result;
use crate::error::{Context, fail};
use crate::text::text_latents::is_stats_file;

/// The files of an encoder.
const FILES: [&str; 3] = ["config.json", "model.safetensors", "tokenizer.json"];

/// Whether a file is about an encoder, and does not hold for another one in its place: its card, or statistics of a layer.
fn is_about(name: &str) -> bool {
    name == "README.md" || is_stats_file(name)
}

/// Where an encoder is written to.
#[derive(Debug, Clone)]
pub struct Destination {
    /// The folder.
    pub folder: PathBuf,
    /// Whether another encoder in it is replaced, with the statistics measured on it.
    pub overwrite: bool,
}

impl Destination {
    /// Writes an encoder's folder, whole or not at all: `save` writes the encoder's own files. A folder that holds the same encoder
    /// stays as it is, with what was measured on it, or gets the files that it lacks.
    ///
    /// # Errors
    /// If the folder holds something else and is not to be overwritten, or a file cannot be written.
    pub(super) fn write(&self, tokenizer: &Tokenizer, save: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let output = &self.folder;
        let cannot = || format!("cannot write {}", output.display());
        let aside = elf_files::begin_folder(output).with_context(cannot)?;
        save(aside.path())?;
        tokenizer.save(aside.path().join("tokenizer.json"))?;
        if !is_taken(output) {
            return elf_files::finish_folder(aside, output).with_context(cannot);
        }
        let there = FILES.map(|name| fs::read(output.join(name)).ok());
        let mut wanted = Vec::new();
        for name in FILES {
            wanted.push(fs::read(aside.path().join(name)).with_context(cannot)?);
        }
        let same = there.iter().zip(&wanted).filter(|(there, wanted)| there.as_ref() == Some(wanted)).count();
        if same == FILES.len() {
            return Ok(());
        }
        let half = same > 0 && same == there.iter().flatten().count();
        if !half && !self.overwrite {
            fail!(
                place(output),
                "{} already exists and is not this encoder: choose another --output, or write over it with --overwrite",
                output.display()
            );
        }
        for entry in fs::read_dir(output).with_context(cannot)? {
            let entry = entry.with_context(cannot)?;
            if entry.file_name().to_str().is_some_and(is_about) {
                fs::remove_file(entry.path()).with_context(cannot)?;
            }
        }
        FILES.iter().try_for_each(|name| fs::rename(aside.path().join(name), output.join(name))).with_context(cannot)
    }
}

/// Whether there is a file of this name, or a folder with something in it.
pub(super) fn is_taken(folder: &Path) -> bool {
    folder.is_file() || fs::read_dir(folder).is_ok_and(|mut inside| inside.next().is_some())
}
