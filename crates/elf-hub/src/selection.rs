//! The files of a repository that are needed for a purpose.

mod checkpoint;
mod chosen;
mod folder;
#[cfg(test)]
mod tests;
mod what;

use crate::error::{Error, Result};
use crate::listing::{Listing, RemoteFile};
use crate::reference::Reference;
use chosen::Fetch;
pub(crate) use chosen::Selection;
use folder::Folder;
pub use what::What;

/// Chooses files.
///
/// # Errors
/// If the repository lacks a file, with a list of its files; and those of `fetch`.
pub(crate) fn select(what: What, reference: &Reference, listing: &Listing, fetch: &mut Fetch) -> Result<Selection> {
    let prefix = match reference.file() {
        None => String::new(),
        Some(file) => match listing.get(file) {
            Some(found) => return one_file(what, reference, listing, found),
            None => format!("{file}/"),
        },
    };
    let folder = Folder { what, reference, listing, prefix };
    if folder.files().next().is_none()
        && let Some(name) = reference.file()
    {
        return match what {
            What::Dataset => folder.whole().split(name),
            _ => Err(folder.lacks("file or folder of that name", &[])),
        };
    }
    let files = match what {
        What::File => {
            return Err(Error::Lacks {
                what: reference.to_string(),
                missing: "file in its name".to_owned(),
                remedy: "write which one is meant: org/name:file".to_owned(),
            });
        }
        What::Tokenizer => {
            let file = folder.needed("tokenizer.json")?;
            let result = file.path.clone();
            return Ok(Selection { files: vec![file], result });
        }
        What::Encoder => folder.encoder(fetch)?,
        What::Gpt2 => {
            let mut files = vec![folder.needed("config.json")?, folder.needed("tokenizer.json")?];
            files.extend(folder.weights(fetch)?);
            files
        }
        What::Dataset => folder.data()?,
        What::ElfCheckpoint => return folder.checkpoint(fetch),
    };
    Ok(Selection { files, result: folder.path() })
}

/// The selection of a reference that names one file.
fn one_file(what: What, reference: &Reference, listing: &Listing, file: &RemoteFile) -> Result<Selection> {
    if matches!(what, What::Encoder | What::Gpt2) {
        return Err(Error::Lacks {
            what: reference.to_string(),
            missing: "folder of that name, but a file".to_owned(),
            remedy: format!("{} is a repository or a folder in one: leave `:{}` out", what.noun(), file.path),
        });
    }
    // The released code's checkpoints do not contain their settings; a file in their folder does.
    let folder = file.path.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
    let record = listing.get(&format!("{folder}{}", folder::RECORD)).filter(|_| what == What::ElfCheckpoint);
    let files = record.into_iter().filter(|record| *record != file).chain([file]).cloned().collect();
    Ok(Selection { files, result: file.path.clone() })
}
