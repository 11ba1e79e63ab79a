//! What data sets of others carry along with the token ids: number and texts of a row.

use serde::{Deserialize, Serialize};

/// The column of a row's number.
pub(crate) const INDEX: &str = "index";
/// The column of the input's text.
pub(crate) const INPUT_TEXT: &str = "input";
/// The column of the target's text.
pub(crate) const TARGET_TEXT: &str = "target";

/// Number and texts of a row, as far as the data has them.
///
/// Token shards of the ELF authors' tasks have columns `index`, `input` and `target` beside the ids. The target text, not the
/// decoded ids, is what a generated text should be compared with: ids are cut to a maximum length, and decoding may change spaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedText {
    /// The row's number in its source.
    pub index: Option<i64>,
    /// The text that the condition was made of.
    pub input: Option<String>,
    /// The text that the target was made of.
    pub target: Option<String>,
}
