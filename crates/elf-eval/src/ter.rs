//! Translation edit rate (TER), with the numbers of sacreBLEU: the least insertions, deletions, substitutions and shifts of words
//! that turn a text into a reference, over the reference's words. Snover et al., "A Study of Translation Edit Rate with Targeted
//! Human Annotation", AMTA 2006.
//!
//! Shifts are searched for greedily, with the limits and the order of Tercom, as sacreBLEU does.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::references::{self, References, is_python_space};

/// Most words of one shift.
const SHIFT_WORDS: usize = 10;
/// Farthest shift, in words.
const SHIFT_DISTANCE: usize = 50;
/// Shifts of one text that are tried.
const SHIFT_CANDIDATES: usize = 1000;
/// Half the width of the band around the diagonal in which texts are aligned.
const BAND: usize = 25;
const UNREACHED: usize = usize::MAX / 2;

/// Settings of TER. The default is sacreBLEU's: lower case, punctuation as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ter {
    /// Compare in lower case.
    pub lowercase: bool,
}

impl Default for Ter {
    fn default() -> Self {
        Self { lowercase: true }
    }
}

/// Counts that determine TER. Those of several examples are added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct TerCounts {
    /// Edits to the nearest reference.
    pub edits: u64,
    /// Words of a reference, averaged over the references.
    pub reference_words: f64,
}

impl std::iter::Sum for TerCounts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |sum, counts| Self {
            edits: sum.edits + counts.edits,
            reference_words: sum.reference_words + counts.reference_words,
        })
    }
}

impl Ter {
    /// Corpus TER in percent, 0 for equal texts, with one or several references per hypothesis.
    ///
    /// # Errors
    /// If the lists differ in length or are empty, or a hypothesis has no reference.
    pub fn corpus<H: AsRef<str> + Sync>(&self, hypotheses: &[H], references: &[impl References]) -> Result<f64> {
        Ok(self.score(&self.counts_per_pair(hypotheses, references)?.into_iter().sum()))
    }

    /// TER of one sentence.
    pub fn sentence(&self, hypothesis: &str, references: &impl References) -> f64 {
        self.score(&self.counts(hypothesis, &references.texts()))
    }

    /// The counts of each hypothesis, for example for a bootstrap over examples.
    ///
    /// # Errors
    /// As [`corpus`](Self::corpus).
    pub fn counts_per_pair<H: AsRef<str> + Sync>(
        &self,
        hypotheses: &[H],
        references: &[impl References],
    ) -> Result<Vec<TerCounts>> {
        references::of_each(hypotheses, references, |hypothesis, r| self.counts(hypothesis, &r.texts()))
    }

    /// TER from counts.
    pub fn score(&self, counts: &TerCounts) -> f64 {
        match (counts.edits, counts.reference_words > 0.0) {
            (edits, true) => 100.0 * (edits as f64 / counts.reference_words),
            (0, false) => 0.0,
            (_, false) => 100.0,
        }
    }

    /// All settings that are needed to compute the same number, in sacreBLEU's notation with this crate's version.
    pub fn signature(&self, references: &[impl References]) -> String {
        format!(
            "nrefs:{}|case:{}|tok:tercom|norm:no|punct:yes|asian:no|version:elf-eval-{}",
            references::count(references).map_or("var".to_owned(), |n| n.to_string()),
            if self.lowercase { "lc" } else { "mixed" },
            env!("CARGO_PKG_VERSION"),
        )
    }

    fn counts(&self, hypothesis: &str, references: &[&str]) -> TerCounts {
        let cased = |text: &str| if self.lowercase { text.to_lowercase() } else { text.to_owned() };
        let hypothesis = cased(hypothesis);
        let hypothesis = words(&hypothesis);
        let (mut edits, mut length) = (usize::MAX, 0);
        for reference in references {
            let reference = cased(reference);
            let reference = words(&reference);
            edits = edits.min(edits_to(&hypothesis, &reference));
            length += reference.len();
        }
        TerCounts { edits: edits as u64, reference_words: length as f64 / references.len() as f64 }
    }
}

fn words(text: &str) -> Vec<&str> {
    text.split(is_python_space).filter(|word| !word.is_empty()).collect()
}

/// Edits that turn a hypothesis into a reference.
fn edits_to<'a>(hypothesis: &[&'a str], reference: &[&'a str]) -> usize {
    if reference.is_empty() {
        return hypothesis.len();
    }
    let mut words = hypothesis.to_vec();
    let (mut shifts, mut tried) = (0, 0);
    loop {
        let best = best_shift(&words, reference, &mut tried);
        match best {
            Some(shift) if tried < SHIFT_CANDIDATES && shift.gain > 0 => {
                shifts += 1;
                words = shift.words;
            }
            _ => return shifts + align(&words, reference).0,
        }
    }
}

/// One way to shift words.
#[derive(PartialEq, Eq)]
struct Shift<'a> {
    /// Edits that are saved.
    gain: i64,
    length: usize,
    start: usize,
    target: usize,
    /// The words after it.
    words: Vec<&'a str>,
}

impl Shift<'_> {
    /// The most edits saved, then the longest, then from and to the earliest place.
    fn order(&self, other: &Self) -> Ordering {
        let by_place = || (other.start, other.target).cmp(&(self.start, self.target));
        (self.gain, self.length)
            .cmp(&(other.gain, other.length))
            .then_with(by_place)
            .then_with(|| self.words.cmp(&other.words))
    }
}

fn best_shift<'a>(words: &[&'a str], reference: &[&str], tried: &mut usize) -> Option<Shift<'a>> {
    let (before, edits) = align(words, reference);
    let Alignment { place, wrong_word, wrong_reference } = Alignment::of(&edits);
    let mut best: Option<Shift> = None;
    for (start, at, length) in shared_runs(words, reference) {
        let is_right = |wrong: &[bool], from: usize| !wrong[from..from + length].contains(&true);
        let moves_within = (start as i64..(start + length) as i64).contains(&place[at]);
        if is_right(&wrong_word, start) || is_right(&wrong_reference, at) || moves_within {
            continue;
        }
        let mut last = None;
        for before_word in (at as i64 - 1)..(at + length) as i64 {
            let target = match usize::try_from(before_word) {
                Err(_) => 0,
                Ok(word) => match place.get(word) {
                    Some(place) => (place + 1) as usize,
                    None => break,
                },
            };
            if last.replace(target) == Some(target) {
                continue;
            }
            let shifted = shifted(words, start, length, target);
            let gain = before as i64 - align(&shifted, reference).0 as i64;
            let shift = Shift { gain, length, start, target, words: shifted };
            *tried += 1;
            if best.as_ref().is_none_or(|best| shift.order(best) == Ordering::Greater) {
                best = Some(shift);
            }
        }
        if *tried >= SHIFT_CANDIDATES {
            break;
        }
    }
    best
}

/// Runs of words that a text and a reference share, shorter before longer: where they begin in both, and their length.
fn shared_runs(words: &[&str], reference: &[&str]) -> Vec<(usize, usize, usize)> {
    let mut runs = Vec::new();
    for start in 0..words.len() {
        for at in 0..reference.len() {
            if start.abs_diff(at) > SHIFT_DISTANCE {
                continue;
            }
            let same = words[start..].iter().zip(&reference[at..]).take_while(|(one, other)| one == other).count();
            runs.extend((1..=same.min(SHIFT_WORDS)).map(|length| (start, at, length)));
        }
    }
    runs
}

/// Words with `length` of them, from `start` on, moved before the word at `target`.
fn shifted<'a>(words: &[&'a str], start: usize, length: usize, target: usize) -> Vec<&'a str> {
    let end = start + length;
    let run = &words[start..end];
    if target < start {
        [&words[..target], run, &words[target..start], &words[end..]].concat()
    } else if target > end {
        [&words[..start], &words[end..target], run, &words[target..]].concat()
    } else {
        let cut = (length + target).min(words.len());
        [&words[..start], &words[end..cut], run, &words[cut..]].concat()
    }
}

/// One edit of an alignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edit {
    Keep,
    Substitute,
    /// A word of the reference that the text lacks.
    Insert,
    /// A word of the text that the reference lacks.
    Delete,
}

/// Where the words of a text and a reference lie in each other, and which are wrong.
struct Alignment {
    /// For each word of the reference, the place of the text's word that stands for it, or of the last one before it; -1 before the first.
    place: Vec<i64>,
    wrong_word: Vec<bool>,
    wrong_reference: Vec<bool>,
}

impl Alignment {
    fn of(edits: &[Edit]) -> Self {
        let mut all = Self { place: Vec::new(), wrong_word: Vec::new(), wrong_reference: Vec::new() };
        for edit in edits {
            let wrong = *edit != Edit::Keep;
            if *edit != Edit::Insert {
                all.wrong_word.push(wrong);
            }
            if *edit != Edit::Delete {
                all.place.push(all.wrong_word.len() as i64 - 1);
                all.wrong_reference.push(wrong);
            }
        }
        all
    }
}

/// The least number of edits without shifts, near the diagonal, and these edits in their order.
fn align(words: &[&str], reference: &[&str]) -> (usize, Vec<Edit>) {
    let (rows, columns) = (words.len(), reference.len() + 1);
    let mut cells = vec![(UNREACHED, Edit::Keep); (rows + 1) * columns];
    for (j, cell) in cells[..columns].iter_mut().enumerate() {
        *cell = (j, Edit::Insert);
    }
    let ratio = if rows > 0 { reference.len() as f64 / rows as f64 } else { 1.0 };
    // Where lengths differ by far, neighbouring rows must still overlap.
    let band = if (BAND as f64) < ratio / 2.0 { (ratio / 2.0 + BAND as f64).ceil() as usize } else { BAND };
    for i in 1..=rows {
        let diagonal = (i as f64 * ratio).floor() as usize;
        let end = if i == rows { columns } else { columns.min(diagonal + band) };
        for j in diagonal.saturating_sub(band)..end {
            let above = cells[(i - 1) * columns + j].0;
            cells[i * columns + j] = match j.checked_sub(1) {
                None => (above + 1, Edit::Delete),
                Some(left) => {
                    let same = words[i - 1] == reference[left];
                    let edit = if same { Edit::Keep } else { Edit::Substitute };
                    let mut least = (cells[(i - 1) * columns + left].0 + usize::from(!same), edit);
                    for other in [(above + 1, Edit::Delete), (cells[i * columns + left].0 + 1, Edit::Insert)] {
                        if other.0 < least.0 {
                            least = other;
                        }
                    }
                    least
                }
            };
        }
    }
    let (mut i, mut j) = (rows, reference.len());
    let mut edits = Vec::new();
    while i > 0 || j > 0 {
        let edit = cells[i * columns + j].1;
        edits.push(edit);
        i -= usize::from(edit != Edit::Insert);
        j -= usize::from(edit != Edit::Delete);
    }
    edits.reverse();
    (cells[rows * columns + reference.len()].0, edits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let ter = Ter::default();
        for (hypothesis, reference, edits, words) in [
            ("a b c", "a b c", 0, 3),
            ("a x c", "a b c", 1, 3),
            ("a c", "a b c", 1, 3),
            ("a b b c", "a b c", 1, 3),
            // One shift of two words, in place of four edits.
            ("c d a b", "a b c d", 1, 4),
            ("d a b x c", "a b c d", 2, 4),
            ("", "a b", 2, 2),
            ("a b", "", 2, 0),
            ("A B", "a b", 0, 2),
        ] {
            let counts = ter.counts(hypothesis, &[reference]);
            assert_eq!(counts, TerCounts { edits, reference_words: f64::from(words) }, "{hypothesis} / {reference}");
        }
        assert_eq!(Ter { lowercase: false }.sentence("A B", &"a b"), 100.0);
        assert_eq!((ter.sentence("a", &""), ter.sentence("", &"")), (100.0, 0.0));
        // The nearest reference, over the mean length.
        assert!((ter.sentence("a b", &vec!["a b c d", "a x"]) - 100.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn lengths_that_differ_by_far_are_aligned() {
        let long = vec!["w"; 400].join(" ");
        assert_eq!(Ter::default().counts("w w", &[long.as_str()]).edits, 398);
        assert_eq!(Ter::default().counts(&long, &["w w"]).edits, 398);
    }

    #[test]
    fn signatures() {
        let signature = Ter::default().signature(&["a"]);
        assert!(
            signature.starts_with("nrefs:1|case:lc|tok:tercom|norm:no|punct:yes|asian:no|version:elf-eval-"),
            "{signature}"
        );
    }
}
