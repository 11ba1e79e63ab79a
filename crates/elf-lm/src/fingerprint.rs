//! Fingerprints: named values that determine the result of an operation.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

/// Named values that determine a result. Operations with equal fingerprints give equal results, so that one can
/// continue with the files of the other.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(IndexMap<String, String>);

/// An entry in which two fingerprints differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The entry's name.
    pub name: String,
    /// Its value in this fingerprint; `None` if it has no such entry.
    pub own: Option<String>,
    /// Its value in the other fingerprint; `None` if it has no such entry.
    pub other: Option<String>,
}

impl Fingerprint {
    /// Adds an entry.
    pub fn with(mut self, name: impl Into<String>, value: impl ToString) -> Self {
        self.0.insert(name.into(), value.to_string());
        self
    }

    /// The entries in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The first entry that differs, in the order of this fingerprint, or `None` if the two are equal.
    pub fn first_difference(&self, other: &Self) -> Option<Difference> {
        let name = self.0.keys().chain(other.0.keys()).find(|&name| self.0.get(name) != other.0.get(name))?;
        Some(Difference { name: name.clone(), own: self.0.get(name).cloned(), other: other.0.get(name).cloned() })
    }

    /// The entries whose names `other` has as well, for a comparison with a fingerprint of fewer entries.
    pub fn known_to(&self, other: &Self) -> Self {
        let known = self.0.iter().filter(|(name, _)| other.0.contains_key(*name));
        Self(known.map(|(name, value)| (name.clone(), value.clone())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_named_with_both_values() {
        let own = Fingerprint::default().with("seed", 1).with("data", "a").with("steps", 3);
        assert_eq!(own.first_difference(&own.clone()), None);
        let other = Fingerprint::default().with("data", "b").with("steps", 4).with("seed", 1);
        let difference = own.first_difference(&other).unwrap();
        assert_eq!((difference.name.as_str(), difference.own.as_deref()), ("data", Some("a")));
        assert_eq!(difference.other.as_deref(), Some("b"));
        // An entry that one side lacks is a difference, unless only common entries are compared.
        let less = Fingerprint::default().with("seed", 1).with("data", "a");
        assert_eq!(own.first_difference(&less).unwrap().other, None);
        assert_eq!(less.first_difference(&own).unwrap().own, None);
        assert_eq!(own.known_to(&less).first_difference(&less), None);
        let stored = serde_json::to_string(&own).unwrap();
        assert_eq!(serde_json::from_str::<Fingerprint>(&stored).unwrap(), own);
    }
}
