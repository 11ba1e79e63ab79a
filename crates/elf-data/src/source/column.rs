//! Names of text columns, and their values.

use std::fmt;

/// The name of a column. `translation.en` is the field `en` of a column `translation`, unless a column has that whole name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ColumnPath(String);

impl ColumnPath {
    pub(super) fn new(name: &str) -> Self {
        Self(name.to_owned())
    }

    pub(super) fn name(&self) -> &str {
        &self.0
    }

    /// The column and the fields that lead to the value.
    pub(super) fn parts(&self) -> impl Iterator<Item = &str> {
        self.0.split('.')
    }
}

impl fmt::Display for ColumnPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The value of a text column in one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    /// One text.
    Text(String),
    /// A list of texts, such as several references.
    Texts(Vec<String>),
}

impl Cell {
    /// The text; `None` for a list.
    pub(super) fn text(self) -> Option<String> {
        match self {
            Cell::Text(text) => Some(text),
            Cell::Texts(_) => None,
        }
    }

    /// One or more texts.
    pub(super) fn texts(self) -> Vec<String> {
        match self {
            Cell::Text(text) => vec![text],
            Cell::Texts(texts) => texts,
        }
    }
}
