//! Files of generated texts, and of the finished batches of an interrupted generation.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::Result;
use crate::error::{Context, fail};
use serde::{Deserialize, Serialize};

use crate::fingerprint::{Difference, Fingerprint};
use crate::text::generated::{GeneratedText, Generation};

/// Writes texts as JSON lines to a temporary file and renames it.
///
/// # Errors
/// If the file cannot be written.
pub fn write_texts(path: &Path, texts: &[GeneratedText]) -> Result<()> {
    let mut lines = Vec::new();
    for text in texts {
        serde_json::to_writer(&mut lines, text)?;
        lines.push(b'\n');
    }
    elf_files::write(path, &lines).with_context(|| cannot(path))
}

fn cannot(path: &Path) -> String {
    format!("the texts could not be written to {}", path.display())
}

/// Checks that a file can be written, before hours are spent on its content. Creates no folders.
///
/// # Errors
/// If it is a folder, or its folder is not writable.
pub fn check_writable(path: &Path) -> Result<()> {
    if elf_files::is_special(path) {
        return Ok(());
    }
    if path.is_dir() {
        fail!(place(path), "{} could not be written: it is a folder; name a file in it", path.display());
    }
    let folder = elf_files::folder_of(path);
    let there = folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    let beside = tempfile::Builder::new().prefix(".writing-").tempfile_in(there);
    beside.map(drop).with_context(|| format!("{} could not be written", path.display()))
}

/// The first line of a file of unfinished texts.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    texts_of: Fingerprint,
}

/// The finished batches of an incomplete generation, in `texts.jsonl.partial` beside `texts.jsonl`. A later call with
/// the same fingerprint continues from them. The first line is the fingerprint; each further line is a batch.
#[derive(Debug)]
pub struct Unfinished {
    path: PathBuf,
    /// Locked while it is open.
    file: File,
    before: Vec<Generation>,
    stop: Arc<AtomicBool>,
    interrupted: bool,
}

impl Unfinished {
    /// Creates the file beside `output`, or opens it to continue. Generation ends early when `stop` is set. `None` if
    /// `output` is not a regular file, such as a pipe.
    ///
    /// # Errors
    /// If it cannot be read or written, is in use, or has another fingerprint.
    pub fn beside(output: &Path, origin: Fingerprint, stop: Arc<AtomicBool>) -> Result<Option<Self>> {
        if elf_files::is_special(output) {
            return Ok(None);
        }
        let mut name = output.file_name().with_context(|| cannot(output))?.to_owned();
        name.push(".partial");
        let path = output.with_file_name(name);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| cannot(output))?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| cannot(&path))?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            fail!(
                place(output),
                "another process is writing {}: wait for it or end it, or choose another --output",
                output.display()
            );
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).with_context(|| format!("cannot read {}", path.display()))?;
        // A line without a line end was cut off in writing.
        let mut lines = text.split_inclusive(|&b| b == b'\n').filter(|line| line.ends_with(b"\n"));
        let mut whole = 0;
        let mut before = Vec::new();
        if let Some(first) = lines.next() {
            let Head { texts_of } = serde_json::from_slice(first)
                .with_context(|| format!("{} holds no unfinished texts of this program: remove it", path.display()))?;
            if let Some(Difference { name, .. }) = origin.first_difference(&texts_of) {
                fail!(
                    place(&path),
                    "{} holds unfinished texts of another call, which differs in {name}: make that call again to go on with them, or \
                     remove the file",
                    path.display()
                );
            }
            whole = first.len();
            for line in lines {
                let Ok(batch) = serde_json::from_slice::<Generation>(line) else {
                    break;
                };
                before.push(batch);
                whole += line.len();
            }
        }
        file.set_len(whole as u64).and_then(|()| file.seek(SeekFrom::End(0))).with_context(|| cannot(&path))?;
        let mut unfinished = Self { path, file, before, stop, interrupted: false };
        if whole == 0 {
            unfinished.write(&Head { texts_of: origin })?;
        }
        Ok(Some(unfinished))
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the batches of earlier calls, in order. A second call returns nothing.
    pub fn take_before(&mut self) -> Vec<Generation> {
        std::mem::take(&mut self.before)
    }

    /// Number of positions in the batches of earlier calls, before they are taken.
    pub fn positions_before(&self) -> u64 {
        self.before.iter().map(|batch| batch.cost.positions).sum()
    }

    /// Whether to generate another batch: `false` after `stop` is set.
    pub fn go_on(&mut self) -> bool {
        self.interrupted |= self.stop.load(Ordering::SeqCst);
        !self.interrupted
    }

    /// Whether `stop` was set before the last batch.
    pub fn was_interrupted(&self) -> bool {
        self.interrupted
    }

    /// Appends a finished batch.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn keep(&mut self, batch: &Generation) -> Result<()> {
        self.write(batch)
    }

    fn write(&mut self, value: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        self.file.write_all(&line).with_context(|| cannot(&self.path))
    }

    /// Removes the file, after the texts have been written to the output.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path).with_context(|| format!("cannot remove {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(positions: u64) -> Generation {
        let mut batch = Generation::default();
        batch.cost.positions = positions;
        batch
    }

    fn open(output: &Path, seed: &str) -> Result<Unfinished> {
        let origin = Fingerprint::default().with("--seed", seed);
        Unfinished::beside(output, origin, Arc::default()).map(Option::unwrap)
    }

    #[test]
    fn whole_batches_are_found_again_and_half_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("new/texts.jsonl");
        let mut unfinished = open(&output, "1").unwrap();
        let message = open(&output, "1").unwrap_err().to_string();
        assert!(message.contains("another process") && message.contains("texts.jsonl"), "{message}");
        unfinished.keep(&batch(3)).unwrap();
        unfinished.keep(&batch(4)).unwrap();
        let path = unfinished.path().to_owned();
        drop(unfinished);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&whole[..], b"{\"texts\": ["].concat()).unwrap();
        assert!(open(&output, "2").unwrap_err().to_string().contains("differs in --seed"));
        let mut again = open(&output, "1").unwrap();
        assert_eq!((again.positions_before(), again.take_before().len()), (7, 2));
        again.keep(&batch(5)).unwrap();
        drop(again);
        assert_eq!(open(&output, "1").unwrap().positions_before(), 12);
        // A first line that was cut off is ignored.
        std::fs::write(&path, &whole[..5]).unwrap();
        assert_eq!(open(&output, "2").unwrap().positions_before(), 0);
        std::fs::write(&path, "words\n").unwrap();
        assert!(open(&output, "2").unwrap_err().to_string().contains("remove it"));
    }

    #[test]
    fn what_cannot_be_written_is_known_before() {
        let folder = tempfile::tempdir().unwrap();
        check_writable(&folder.path().join("a/b/texts.jsonl")).unwrap();
        assert!(!folder.path().join("a").exists());
        assert!(check_writable(folder.path()).unwrap_err().to_string().contains("it is a folder"));
        std::fs::write(folder.path().join("file"), "").unwrap();
        assert!(check_writable(&folder.path().join("file/texts.jsonl")).is_err());
    }
}
