//! Places that a user names by a path or by a Hugging Face id: local ones first, others are fetched.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Result;
use crate::error::{Context, fail};
use elf_data::source::DATA_EXTENSIONS;
use elf_hub::{Event, Fetcher, Settings, What};

/// Besides those of [`DATA_EXTENSIONS`]: names that end so are of files. Nobody gives them to a repository, and a mistyped path should not
/// wait for a network.
const OTHER_EXTENSIONS: [&str; 4] = ["yml", "yaml", "safetensors", "pt"];

/// A callback for each event of a download.
type Listener = Arc<dyn Fn(&Event) + Send + Sync>;

/// The way from names to local files, with a listener for what is fetched.
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
    /// A hub with these settings. By default `elf_hub` reads them from the environment at the first fetch.
    pub fn new(settings: Settings) -> Self {
        Self { settings: Some(settings), listener: None }
    }

    /// Hands what happens while something is fetched to a listener.
    pub fn with_listener(self, listener: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        Self { listener: Some(Arc::new(listener)), ..self }
    }

    /// The place of a name: a local path if there is one, otherwise a file or folder fetched from the hub.
    ///
    /// # Errors
    /// If it is neither.
    pub fn locate(&self, name: impl AsRef<Path>, what: What) -> Result<PathBuf> {
        let path = name.as_ref();
        // Settings are not even looked for with local paths; and a name that is no Unicode is no id.
        match path.to_str() {
            // A split of a local folder: `FOLDER/SPLIT`.
            Some(_) if what == What::Dataset && !path.exists() && elf_data::is_split(path) => Ok(path.to_owned()),
            Some(text) if !path.exists() => {
                if path
                    .extension()
                    .is_some_and(|ending| DATA_EXTENSIONS.iter().chain(&OTHER_EXTENSIONS).any(|known| ending == *known))
                {
                    fail!(place(path), "the {} {} is not there: there is no such file", noun(what), path.display());
                }
                let mut settings = self.settings()?;
                let beside = beside(path);
                if beside.is_some() {
                    // More likely a mistyped path than an id: no long waits for a network that may not be there.
                    settings.attempts = 1;
                }
                self.fetcher_with(settings)?.locate(text, what).with_context(|| match beside {
                    Some(names) => {
                        format!("the {}: the folder it would be in has {names}", noun(what))
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
    /// If one is neither here nor on the hub.
    pub fn locate_all(&self, names: &[PathBuf], what: What) -> Result<Vec<PathBuf>> {
        names.iter().map(|name| self.locate(name, what)).collect()
    }

    /// What fetches by id.
    ///
    /// # Errors
    /// If a setting makes no sense.
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

/// What the folder has in which `path` would be, the names most like it first; none if that folder is not there either, or
/// is not named.
fn beside(path: &Path) -> Option<String> {
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
