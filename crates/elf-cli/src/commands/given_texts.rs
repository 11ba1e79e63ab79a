//! Texts that a user gives on the command line or in a file.

use std::path::Path;

use anyhow::{Context, Result, bail};
use elf_data::source::{PlainText, Source};
use elf_hub::What;

use crate::hub;

/// The texts of `--input`, if it is given, or those of the command line.
pub struct GivenTexts<'a> {
    /// Those of the command line.
    pub texts: &'a [String],
    /// The file of `--input`.
    pub input: Option<&'a Path>,
    /// The column of `--input-column`.
    pub column: &'a str,
    /// At most so many of the file.
    pub limit: Option<usize>,
}

impl GivenTexts<'_> {
    /// Reads them. `missing` is the message if there are none.
    ///
    /// # Errors
    /// If there are none, or the file cannot be read.
    pub fn read(&self, missing: &str) -> Result<Vec<String>> {
        let texts = match self.input {
            None => self.texts.to_vec(),
            Some(path) => {
                let file = hub::locate(path, What::Dataset)?;
                let source = Source::open(&[file], &[self.column], PlainText::EveryLine)
                    .context("--input (its column is named by --input-column)")?;
                source.texts().take(self.limit.unwrap_or(usize::MAX)).collect::<Result<_, _>>()?
            }
        };
        match texts.is_empty() {
            true => bail!("{missing}"),
            false => Ok(texts),
        }
    }
}
