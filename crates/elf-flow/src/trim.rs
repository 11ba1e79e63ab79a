//! From decoded positions to the tokens of a text.

use serde::{Deserialize, Serialize};

/// How decoded rows are cut to texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trim {
    /// The token that ends a text.
    pub eos: i64,
    /// The token that fills a text up to its full length.
    pub pad: i64,
    /// The longest condition in training, in positions; 0 for unconditional models. Generated text is at most that much
    /// shorter than a row, for conditions of any length.
    pub max_input_length: usize,
}

impl Trim {
    /// The text of one decoded row of S positions, of which the first `condition` were given: S - `max_input_length` tokens,
    /// padded from the first EOS on.
    pub fn row(&self, ids: &[i64], condition: usize) -> Vec<i64> {
        let mut text = shift_left(ids, condition, self.pad);
        text.truncate(ids.len().saturating_sub(self.max_input_length));
        pad_from_eos(&mut text, self.eos, self.pad);
        text
    }
}

/// `ids` without the first `by`, padded to the old length.
pub fn shift_left(ids: &[i64], by: usize, pad: i64) -> Vec<i64> {
    let mut shifted = ids[by.min(ids.len())..].to_vec();
    shifted.resize(ids.len(), pad);
    shifted
}

/// Replaces the first EOS and all after it by padding.
pub fn pad_from_eos(ids: &mut [i64], eos: i64, pad: i64) {
    if let Some(end) = ids.iter().position(|&id| id == eos) {
        ids[end..].fill(pad);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_text_ends_once(ids in proptest::collection::vec(0i64..6, 0..40), condition in 0usize..50, max_input in 0usize..50) {
            let trim = Trim { eos: 1, pad: 0, max_input_length: max_input };
            let text = trim.row(&ids, condition);
            prop_assert_eq!(text.len(), ids.len().saturating_sub(max_input));
            prop_assert!(!text.contains(&1));
            let expected: Vec<i64> = ids.iter().copied().skip(condition).take(text.len()).take_while(|&id| id != 1).collect();
            prop_assert_eq!(&text[..expected.len()], &expected[..]);
            prop_assert!(text[expected.len()..].iter().all(|&id| id == 0));
        }
    }
}
