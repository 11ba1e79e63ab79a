//! The hub's address, the cache's folder, and the time limits of transfers.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Result};

/// Settings of a [`crate::Fetcher`]. [`Settings::from_env`] reads the variables that other Hugging Face programs read.
#[derive(Clone)]
pub struct Settings {
    /// The hub's address (`HF_ENDPOINT`); without one, that of the `hf-hub` crate.
    pub endpoint: Option<String>,
    /// The cache's folder (`HF_HUB_CACHE`, else `HF_HOME/hub`, else `~/.cache/huggingface/hub`).
    pub cache: PathBuf,
    /// The access token (`HF_TOKEN`, else the file `HF_TOKEN_PATH` or `HF_HOME/token`, where a log-in stores it).
    pub token: Option<String>,
    /// Use the cache only (`HF_HUB_OFFLINE`).
    pub offline: bool,
    /// Longest silence of the server (`HF_HUB_DOWNLOAD_TIMEOUT`, in seconds).
    pub patience: Duration,
    /// Successive attempts without a new byte after which a transfer fails.
    pub attempts: u32,
    /// First wait between two attempts; it doubles with each attempt.
    pub first_wait: Duration,
    /// Longest wait between two attempts. If the server requests a longer one, the transfer fails and its error states the wait.
    pub longest_wait: Duration,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The token must never reach a log.
        f.debug_struct("Settings")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "set"))
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// A cache folder, the usual endpoint, no token.
    pub fn with_cache(cache: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: None,
            cache: cache.into(),
            token: None,
            offline: false,
            patience: Duration::from_secs(30),
            attempts: 5,
            first_wait: Duration::from_millis(500),
            longest_wait: Duration::from_secs(120),
        }
    }

    /// Settings from environment variables.
    ///
    /// # Errors
    /// If a variable has an impossible value, or no home folder is found or set.
    pub fn from_env() -> Result<Self> {
        Self::from_lookup(|name| std::env::var_os(name).filter(|v| !v.is_empty()))
    }

    /// [`Settings::from_env`] with another source of variables.
    ///
    /// # Errors
    /// As [`Settings::from_env`].
    pub fn from_lookup(get: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let path = |name| get(name).map(PathBuf::from);
        let home = path("HF_HOME")
            .or_else(|| Some(path("XDG_CACHE_HOME")?.join("huggingface")))
            .or_else(|| Some(path("HOME").or_else(|| path("USERPROFILE"))?.join(".cache").join("huggingface")));
        let cache =
            path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).or_else(|| Some(home.clone()?.join("hub")));
        let Some(cache) = cache else {
            return Err(Error::Setting {
                name: "HF_HOME",
                value: String::new(),
                why: "there is no home folder, so say where downloads should be kept",
            });
        };
        let token = text(&get, "HF_TOKEN", "it must be plain text")?.or_else(|| {
            let file = path("HF_TOKEN_PATH").or_else(|| Some(home?.join("token")))?;
            std::fs::read_to_string(file).ok()
        });
        let token = token.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty());
        if token.as_ref().is_some_and(|t| !t.chars().all(|c| c.is_ascii_graphic())) {
            return Err(Error::Setting {
                name: "HF_TOKEN",
                value: "...".to_owned(),
                why: "a token has no spaces or control characters",
            });
        }
        let endpoint = text(&get, "HF_ENDPOINT", "it must be an address")?.map(|e| e.trim_end_matches('/').to_owned());
        if let Some(value) = endpoint.as_ref().filter(|e| !e.starts_with("http://") && !e.starts_with("https://")) {
            return Err(Error::Setting {
                name: "HF_ENDPOINT",
                value: value.clone(),
                why: "it must begin with https:// or http://",
            });
        }
        let patience = match text(&get, "HF_HUB_DOWNLOAD_TIMEOUT", "it must be a number of seconds")? {
            None => Duration::from_secs(30),
            Some(value) => match value.trim().parse::<u32>() {
                Ok(seconds) if seconds > 0 => Duration::from_secs(seconds.into()),
                _ => {
                    return Err(Error::Setting {
                        name: "HF_HUB_DOWNLOAD_TIMEOUT",
                        value,
                        why: "it must be a number of seconds",
                    });
                }
            },
        };
        let offline = text(&get, "HF_HUB_OFFLINE", "it must be 0 or 1")?
            .is_some_and(|v| ["1", "true", "yes", "on"].contains(&v.trim().to_lowercase().as_str()));
        Ok(Self { endpoint, token, offline, patience, ..Self::with_cache(cache) })
    }
}

fn text(get: &impl Fn(&str) -> Option<OsString>, name: &'static str, why: &'static str) -> Result<Option<String>> {
    get(name)
        .map(|value| {
            value.into_string().map_err(|v| Error::Setting { name, value: v.to_string_lossy().into_owned(), why })
        })
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Result<Settings> {
        Settings::from_lookup(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into()))
    }

    #[test]
    fn the_cache_is_where_other_programs_look_for_it() {
        let cache = |pairs: &[(&str, &str)]| of(pairs).unwrap().cache;
        let home = ("HOME", "/home/me");
        assert_eq!(cache(&[home]), PathBuf::from("/home/me/.cache/huggingface/hub"));
        assert_eq!(cache(&[home, ("XDG_CACHE_HOME", "/x")]), PathBuf::from("/x/huggingface/hub"));
        assert_eq!(cache(&[home, ("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/hf")]), PathBuf::from("/hf/hub"));
        assert_eq!(cache(&[home, ("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")]), PathBuf::from("/c"));
        assert!(of(&[]).unwrap_err().to_string().contains("HF_HOME"));
    }

    #[test]
    fn odd_values_are_named_and_the_token_is_not_shown() {
        let with = |name, value| of(&[("HOME", "/h"), (name, value)]);
        for (name, value) in [("HF_ENDPOINT", "hub.example"), ("HF_HUB_DOWNLOAD_TIMEOUT", "soon"), ("HF_TOKEN", "a b")]
        {
            assert!(with(name, value).unwrap_err().to_string().contains(name), "{name}");
        }
        let settings = with("HF_TOKEN", " secret\n").unwrap();
        assert_eq!(settings.token.as_deref(), Some("secret"));
        assert!(!format!("{settings:?}").contains("secret"));
        assert!(with("HF_HUB_OFFLINE", "1").unwrap().offline && !with("HF_HUB_OFFLINE", "0").unwrap().offline);
        assert_eq!(with("HF_ENDPOINT", "http://m/").unwrap().endpoint.as_deref(), Some("http://m"));
    }
}
