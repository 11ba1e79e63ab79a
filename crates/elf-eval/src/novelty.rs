//! The parts of samples that are copied from training texts.
//!
//! A [`CopyIndex`] is a suffix array over the training documents' tokens: exact, without the false hits of hashed n-grams,
//! with 8 bytes per token plus the vocabulary. Of a corpus beyond the given limit it holds the first documents; report this
//! with the number, because copies of the other documents are not found.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::hash::Hash;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The token between documents, so that no run crosses their border.
const BORDER: u32 = u32::MAX;
/// A token that the training text does not have.
const UNKNOWN: u32 = u32::MAX - 1;

/// Longest copied run that is measured, in tokens; longer ones are reported with this length. The bound keeps sorting fast
/// on a corpus with many equal documents.
pub const LONGEST_RUN: usize = 1024;

/// An index of training documents that finds copied runs of tokens.
#[derive(Debug)]
pub struct CopyIndex<T> {
    vocabulary: HashMap<T, u32>,
    /// Documents with a border before, between and after them.
    text: Vec<u32>,
    documents: usize,
    /// Start positions in `text`, ordered by what follows them, up to `LONGEST_RUN` + 2 tokens.
    order: Vec<u32>,
}

/// Copies in a set of samples.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Novelty {
    /// Share of samples that equal a training document token for token, 0 to 1.
    pub exact_copies: f64,
    /// Mean over samples of the longest copied run, in tokens.
    pub mean_longest_run: f64,
    /// Longest copied run of all, in tokens.
    pub longest_run: usize,
    /// Longest copied run of each sample, in tokens.
    pub runs: Vec<usize>,
    /// Whether each sample equals a training document.
    pub copies: Vec<bool>,
}

impl<T: Eq + Hash + Sync> CopyIndex<T> {
    /// Indexes the first training documents that have at most `max_tokens` tokens together, counting one border per
    /// document. Later documents are not read.
    pub fn new<D, I>(documents: D, max_tokens: usize) -> Self
    where
        D: IntoIterator<Item = I>,
        I: IntoIterator<Item = T>,
    {
        // Positions and ids are stored in 32 bits; the two largest ids are reserved.
        let limit = max_tokens.min(UNKNOWN as usize - 1);
        let mut vocabulary = HashMap::new();
        let mut text = vec![BORDER];
        let mut whole = 0;
        'documents: for document in documents {
            let begin = text.len();
            for token in document {
                if text.len() >= limit {
                    text.truncate(begin);
                    break 'documents;
                }
                let next = vocabulary.len() as u32;
                text.push(*vocabulary.entry(token).or_insert(next));
            }
            text.push(BORDER);
            whole += 1;
        }
        let mut order: Vec<u32> = (0..text.len() as u32).collect();
        order.par_sort_unstable_by(|a, b| suffix(&text, *a).cmp(suffix(&text, *b)));
        Self { vocabulary, text, documents: whole, order }
    }

    /// Number of documents in the index.
    pub fn documents(&self) -> usize {
        self.documents
    }

    /// Length of the longest run of tokens that a training document contains too.
    pub fn longest_run(&self, sample: &[T]) -> usize {
        let ids = self.ids(sample);
        let mut longest = 0;
        for start in 0..ids.len() {
            if ids.len() - start <= longest {
                break;
            }
            let pattern = &ids[start..ids.len().min(start + LONGEST_RUN)];
            let at = self.order.partition_point(|p| suffix(&self.text, *p) < pattern);
            // In sorted order, the best match is next to the pattern's place.
            for neighbour in [at.checked_sub(1), Some(at)].into_iter().flatten() {
                if let Some(position) = self.order.get(neighbour) {
                    let common = suffix(&self.text, *position).iter().zip(pattern).take_while(|(a, b)| a == b).count();
                    longest = longest.max(common);
                }
            }
        }
        longest
    }

    /// Whether a training document equals the sample. An empty sample equals an empty document.
    pub fn is_copy(&self, sample: &[T]) -> bool {
        let mut whole = vec![BORDER];
        whole.extend(self.ids(sample));
        whole.push(BORDER);
        let pattern = &whole[..whole.len().min(LONGEST_RUN + 2)];
        let compare = |position: &u32| {
            let suffix = suffix(&self.text, *position);
            suffix[..suffix.len().min(pattern.len())].cmp(pattern)
        };
        let first = self.order.partition_point(|p| compare(p) == Ordering::Less);
        self.order[first..]
            .iter()
            .take_while(|p| compare(p) == Ordering::Equal)
            .any(|p| self.text[*p as usize..].starts_with(&whole))
    }

    /// Both measures over a set of samples.
    ///
    /// # Errors
    /// If there are no samples.
    pub fn novelty<S: AsRef<[T]> + Sync>(&self, samples: &[S]) -> Result<Novelty> {
        if samples.is_empty() {
            return Err(Error::Nothing { what: "samples" });
        }
        let found: Vec<(usize, bool)> =
            samples.par_iter().map(|s| (self.longest_run(s.as_ref()), self.is_copy(s.as_ref()))).collect();
        let n = samples.len() as f64;
        let runs: Vec<usize> = found.iter().map(|(run, _)| *run).collect();
        Ok(Novelty {
            exact_copies: found.iter().filter(|(_, copy)| *copy).count() as f64 / n,
            mean_longest_run: runs.iter().map(|r| *r as f64).sum::<f64>() / n,
            longest_run: runs.iter().copied().max().unwrap_or(0),
            runs,
            copies: found.into_iter().map(|(_, copy)| copy).collect(),
        })
    }

    fn ids(&self, sample: &[T]) -> Vec<u32> {
        sample.iter().map(|t| self.vocabulary.get(t).copied().unwrap_or(UNKNOWN)).collect()
    }
}

/// The tokens from a position on, as far as they are compared: enough for a whole document of `LONGEST_RUN` tokens with its
/// two borders.
fn suffix(text: &[u32], position: u32) -> &[u32] {
    let start = position as usize;
    &text[start..text.len().min(start + LONGEST_RUN + 2)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diversity::words;

    fn index(documents: &[&'static str]) -> CopyIndex<&'static str> {
        CopyIndex::new(documents.iter().map(|d| words(d)), 1_000_000)
    }

    #[test]
    fn runs_and_copies_by_hand() {
        let index = index(&["the cat sat on the mat", "a dog barks", "a dog barks"]);
        for (sample, run, copy) in [
            ("the cat sat on the mat", 6, true),
            ("the cat sat on the", 5, false),
            ("and the cat sat down on the mat", 3, false),
            ("mat a dog", 2, false), // the run ends at the border between documents
            ("a dog barks", 3, true),
            ("new words only", 0, false),
            ("", 0, false),
        ] {
            assert_eq!(index.longest_run(&words(sample)), run, "{sample}");
            assert_eq!(index.is_copy(&words(sample)), copy, "{sample}");
        }
        let novelty = index.novelty(&[words("a dog barks"), words("dog and dog")]).unwrap();
        assert_eq!(novelty.runs, [3, 1]);
        assert_eq!(novelty.copies, [true, false]);
        assert_eq!((novelty.exact_copies, novelty.mean_longest_run), (0.5, 2.0));
        assert_eq!(novelty.longest_run, 3);
        assert!(index.novelty::<Vec<&str>>(&[]).is_err());
    }

    #[test]
    fn unknown_words_do_not_match_one_another_or_a_border() {
        let index = index(&["a b"]);
        assert_eq!(index.longest_run(&["x", "y"]), 0);
        assert_eq!(index.longest_run(&["a", "b", "x"]), 2);
    }

    #[test]
    fn documents_longer_than_the_longest_run() {
        let long: Vec<u32> = (0..3 * LONGEST_RUN as u32).collect();
        let mut other = long.clone();
        other.push(7);
        let index = CopyIndex::new([long.clone(), other], 1_000_000);
        assert_eq!(index.longest_run(&long), LONGEST_RUN);
        assert!(index.is_copy(&long));
        assert!(!index.is_copy(&long[..long.len() - 1]));
    }

    #[test]
    fn an_empty_corpus_and_one_too_large() {
        let empty = CopyIndex::<u32>::new(Vec::<Vec<u32>>::new(), 10);
        assert_eq!((empty.longest_run(&[1]), empty.documents()), (0, 0));
        assert!(!empty.is_copy(&[]) && !empty.is_copy(&[1]));
        let first = CopyIndex::new([vec![1, 2, 3], vec![4; 11], vec![5]], 10);
        assert_eq!((first.documents(), first.longest_run(&[1, 2, 3]), first.longest_run(&[4])), (1, 3, 0));
        assert!(first.is_copy(&[1, 2, 3]) && !first.is_copy(&[5]));
    }
}
