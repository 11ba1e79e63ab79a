//! References to repositories on the hub: `org/name@revision:file`.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// A repository on the hub at a revision, or a file or folder of it: `org/name[@revision][:file]`. The oldest names, such
/// as `gpt2`, have no organisation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    id: String,
    revision: Option<String>,
    file: Option<String>,
}

/// Longest id in characters, by the hub's rules.
const LONGEST_ID: usize = 96;

impl Reference {
    /// Parses a reference. Whether the repository exists is checked when it is fetched.
    ///
    /// # Errors
    /// If the text cannot be a reference; the message states the reason.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |why: &'static str| Error::NoReference { text: text.to_owned(), why };
        let (repository, file) = match text.split_once(':') {
            Some((repository, file)) => (repository, Some(file.trim_end_matches('/'))),
            None => (text, None),
        };
        let (id, revision) = match repository.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (repository, None),
        };
        if id.is_empty() || id.len() > LONGEST_ID {
            return Err(wrong("a name has 1 to 96 characters"));
        }
        if id.split('/').count() > 2 {
            return Err(wrong("a repository is `name` or `org/name`; a file in it follows after a colon"));
        }
        if !id.split('/').all(is_name) || id.contains("--") || id.contains("..") {
            return Err(wrong(
                "names consist of letters, digits and single `-`, `_` or `.`, and begin and end with a letter, digit or `_`",
            ));
        }
        if revision.is_some_and(|r| !is_revision(r)) {
            return Err(wrong("a branch, a tag or a commit must follow `@`"));
        }
        if file.is_some_and(|f| !is_inner_path(f)) {
            return Err(wrong("a file of the repository must follow `:`, without `..` and not beginning with `/`"));
        }
        Ok(Self { id: id.to_owned(), revision: revision.map(str::to_owned), file: file.map(str::to_owned) })
    }

    /// `org/name`, or `name`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Branch, tag or commit; `main` by default.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// The file or folder in the repository, if one was named.
    pub fn file(&self) -> Option<&str> {
        self.file.as_deref()
    }

    /// Whether the revision is a full commit, which never changes.
    pub(crate) fn names_commit(&self) -> bool {
        is_commit(self.revision())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        if let Some(file) = &self.file {
            write!(f, ":{file}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

fn is_name(name: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    edge(name.chars().next())
        && edge(name.chars().last())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn is_revision(revision: &str) -> bool {
    is_inner_path(revision) && revision.chars().all(|c| c.is_ascii_graphic() && !"@:?#%*[~^".contains(c))
}

/// Whether a revision is a full commit: forty hexadecimal digits.
pub(crate) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether a relative path stays inside the folder that it is joined to, on every system. Names of files in listings are
/// checked as well.
pub(crate) fn is_inner_path(path: &str) -> bool {
    !path.is_empty()
        && !path.contains(['\\', ':', '\0'])
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_parts_are_taken_apart() {
        let whole = Reference::parse("org/name@refs/pr/3:data/train.parquet").unwrap();
        assert_eq!((whole.id(), whole.revision(), whole.file()), ("org/name", "refs/pr/3", Some("data/train.parquet")));
        let plain = Reference::parse("t5-small").unwrap();
        assert_eq!((plain.id(), plain.revision(), plain.file()), ("t5-small", "main", None));
        assert_eq!(Reference::parse("a/b:folder/").unwrap().file(), Some("folder"));
    }

    #[test]
    fn what_cannot_be_an_id_is_refused_with_a_reason() {
        for (text, part) in [
            ("", "1 to 96"),
            ("a/b/c", "colon"),
            ("./runs", "letters"),
            ("../x", "letters"),
            ("/absolute", "letters"),
            ("a//b", "colon"),
            ("a--b/c", "letters"),
            ("a/b@", "branch"),
            ("a/b@x/../y", "branch"),
            ("a/b:", "file"),
            ("a/b:../secret", "file"),
            ("a/b:/etc/passwd", "file"),
            ("a/b:c\\..\\d", "file"),
            ("white space/x", "letters"),
        ] {
            let message = Reference::parse(text).unwrap_err().to_string();
            assert!(message.contains(part) && message.contains(text), "{text}: {message}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_printing_is_its_inverse(text in "[a-z./@:\\\\ -]{0,24}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(&Reference::parse(&reference.to_string()).unwrap(), &reference);
                let file = reference.file().unwrap_or("x");
                prop_assert!(!file.split('/').any(|p| p == "..") && !file.starts_with('/'));
            }
        }
    }
}
