//! Minimum Bayes risk: of several candidates, the one that is most like all others.
//!
//! The candidates are samples of what a model holds possible, so the mean similarity of one of them to the others estimates its
//! expected quality under the model. Kumar and Byrne, "Minimum Bayes-risk decoding for statistical machine translation",
//! NAACL 2004.

use crate::bleu::Bleu;

/// The place of the candidate with the highest mean sentence BLEU (lower case, effective order) against all others; the first of
/// equals. `None` without candidates. A candidate that several samples agree on counts as often as it occurs.
pub fn least_risk<S: AsRef<str>>(candidates: &[S]) -> Option<usize> {
    let bleu = Bleu::lowercase_effective();
    let likeness = |place: usize| -> f64 {
        let others = candidates.iter().enumerate().filter(|(other, _)| *other != place);
        others.map(|(_, other)| bleu.sentence(candidates[place].as_ref(), &other.as_ref()).score).sum()
    };
    let mut best: Option<(usize, f64)> = None;
    for (place, found) in (0..candidates.len()).map(|place| (place, likeness(place))) {
        if best.is_none_or(|(_, most)| found > most) {
            best = Some((place, found));
        }
    }
    best.map(|(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_text_in_the_middle_is_chosen() {
        let candidates = ["a cat sat on the mat", "the dog ran home", "the cat sat on the mat", "the cat sat on a mat"];
        assert_eq!(least_risk(&candidates), Some(2));
        assert_eq!(least_risk::<&str>(&[]), None);
        assert_eq!(least_risk(&["alone"]), Some(0));
        assert_eq!(least_risk(&["", "", "x y"]), Some(0), "the first of equals");
    }

    proptest! {
        /// A text that most candidates share is always chosen, wherever it is.
        #[test]
        fn a_majority_wins(common in "[a-d]{1,3}( [a-d]{1,3}){3,6}", other in "[e-h]{1,3}( [e-h]{1,3}){0,6}", place in 0..4usize) {
            let mut candidates = vec![common.clone(); 4];
            candidates.insert(place, other);
            prop_assert_eq!(&candidates[least_risk(&candidates).unwrap()], &common);
        }
    }
}
