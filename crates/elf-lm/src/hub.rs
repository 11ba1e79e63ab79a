//! Local paths of files and folders that a user names by a path or by a Hugging Face id.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Result;
use crate::error::{Context, fail};
use elf_data::source::DATA_EXTENSIONS;
use elf_hub::{Event, Fetcher, Settings, What};

/// Extensions of file names, in addition to [`DATA_EXTENSIONS`]. A name that ends in one is never looked up on the hub,
/// so that a mistyped path fails at once.
const OTHER_EXTENSIONS: [&str; 4] = ["yml", "yaml", "safetensors", "pt"];

/// A callback for each event of a download.
type Listener = Arc<dyn Fn(&Event) + Send + Sync>;

/// Finds local files and folders by name, and fetches missing ones.
#[derive(Clone, Default)]
pub struct Hub {
    settings: Option<Settings>,
    listener: Option<Listener>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Hub").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Hub {
    /// A hub with these settings. The default hub reads them from the environment at the first fetch.
    pub fn new(settings: Settings) -> Self {
        Self { settings: Some(settings), listener: None }
    }

    /// Sets a listener for the events of downloads.
    pub fn with_listener(self, listener: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        Self { listener: Some(Arc::new(listener)), ..self }
    }

    /// The local path of a name: the name itself if it is an existing path, otherwise that of what is fetched from the
    /// hub.
    ///
    /// # Errors
    /// If the name is neither a local path nor on the hub.
    pub fn locate(&self, name: impl AsRef<Path>, what: What) -> Result<PathBuf> {
        let path = name.as_ref();
        // Local paths need no hub settings, and a name that is not Unicode is not an id.
        match path.to_str() {
            // A split of a local folder: `FOLDER/SPLIT`.
            Some(_) if what == What::Dataset && !path.exists() && elf_data::is_split(path) => Ok(path.to_owned()),
            Some(text) if !path.exists() => {
                if path
                    .extension()
                    .is_some_and(|ending| DATA_EXTENSIONS.iter().chain(&OTHER_EXTENSIONS).any(|known| ending == *known))
                {
                    fail!(place(path), "the {} {}: there is no such file", noun(what), path.display());
                }
                let mut settings = self.settings()?;
                let siblings = sibling_names(path);
                if siblings.is_some() {
                    // The parent folder exists, so the name is probably a mistyped path: no retries.
                    settings.attempts = 1;
                }
                self.fetcher_with(settings)?.locate(text, what).with_context(|| match siblings {
                    Some(names) => {
                        format!("the {}: its parent folder has {names}", noun(what))
                    }
                    None => format!("the {}", noun(what)),
                })
            }
            _ => Ok(path.to_owned()),
        }
    }

    /// [`Hub::locate`] for each.
    ///
    /// # Errors
    /// If a name is neither a local path nor on the hub.
    pub fn locate_all(&self, names: &[PathBuf], what: What) -> Result<Vec<PathBuf>> {
        names.iter().map(|name| self.locate(name, what)).collect()
    }

    /// A fetcher with these settings.
    ///
    /// # Errors
    /// If a setting is invalid.
    pub fn fetcher(&self) -> Result<Fetcher> {
        self.fetcher_with(self.settings()?)
    }

    fn settings(&self) -> Result<Settings> {
        match &self.settings {
            Some(settings) => Ok(settings.clone()),
            None => Settings::from_env().context("the settings for the Hugging Face hub"),
        }
    }

    fn fetcher_with(&self, settings: Settings) -> Result<Fetcher> {
        let fetcher = Fetcher::new(settings)?;
        Ok(match self.listener.clone() {
            Some(listener) => fetcher.with_listener(move |event| listener(event)),
            None => fetcher,
        })
    }
}

/// The names in the parent folder of `path`, the most similar first, for an error message; `None` if `path` names no
/// parent or it does not exist.
fn sibling_names(path: &Path) -> Option<String> {
    const SHOWN: usize = 6;
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty())?;
    let wanted = path.file_name()?.to_string_lossy();
    let mut names = std::fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|name| !name.starts_with('.'))
        .map(|name| (strsim::damerau_levenshtein(&name, &wanted), name))
        .collect::<Vec<_>>();
    names.sort();
    let more = match names.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let shown = names.into_iter().take(SHOWN).map(|(_, name)| name).collect::<Vec<_>>();
    Some(if shown.is_empty() { "nothing in it".to_owned() } else { shown.join(", ") + &more })
}

fn noun(what: What) -> &'static str {
    match what {
        What::Encoder => "text encoder",
        What::Gpt2 => "judge",
        What::Tokenizer => "tokenizer",
        What::Dataset => "data",
        What::File => "file",
        What::ElfCheckpoint => "model",
    }
}
