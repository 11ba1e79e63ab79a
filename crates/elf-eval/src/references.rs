//! References of a hypothesis: one text or several.

use rayon::prelude::*;

use crate::{Error, Result};

/// One reference, or several of which the best match counts.
pub trait References: Sync {
    /// The texts, at least one.
    fn texts(&self) -> Vec<&str>;
}

impl References for String {
    fn texts(&self) -> Vec<&str> {
        vec![self.as_str()]
    }
}

impl References for &str {
    fn texts(&self) -> Vec<&str> {
        vec![*self]
    }
}

impl References for Vec<String> {
    fn texts(&self) -> Vec<&str> {
        self.iter().map(String::as_str).collect()
    }
}

impl References for Vec<&str> {
    fn texts(&self) -> Vec<&str> {
        self.clone()
    }
}

/// The number of references of each hypothesis; `None` if it varies.
pub(crate) fn count(references: &[impl References]) -> Option<usize> {
    let first = references.first()?.texts().len();
    references.iter().all(|references| references.texts().len() == first).then_some(first)
}

/// The results of `of` for each hypothesis and its references, in their order; computed on all cores.
///
/// # Errors
/// If the lists differ in length or are empty, or a hypothesis has no reference.
pub(crate) fn of_each<H: AsRef<str> + Sync, R: References, T: Send>(
    hypotheses: &[H],
    references: &[R],
    of: impl Fn(&str, &R) -> T + Sync,
) -> Result<Vec<T>> {
    check(hypotheses, references)?;
    Ok(hypotheses.par_iter().zip(references).map(|(hypothesis, r)| of(hypothesis.as_ref(), r)).collect())
}

/// Refuses lists of different lengths, empty ones, and hypotheses without a reference.
///
/// # Errors
/// An error that says which of these it is.
fn check<H>(hypotheses: &[H], references: &[impl References]) -> Result<()> {
    if hypotheses.len() != references.len() {
        return Err(Error::UnequalLengths {
            left_name: "hypotheses",
            left: hypotheses.len(),
            right_name: "references",
            right: references.len(),
        });
    }
    if hypotheses.is_empty() {
        return Err(Error::Nothing { what: "hypotheses" });
    }
    match references.iter().position(|references| references.texts().is_empty()) {
        Some(row) => Err(Error::NoReference { row: row + 1 }),
        None => Ok(()),
    }
}

/// White space as Python's `str.split` sees it: Unicode's, and the four ASCII separators.
pub(crate) fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}
