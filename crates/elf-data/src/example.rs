//! One row of token data, and the texts that it was made of.

use serde::{Deserialize, Serialize};

/// The column of a row's number.
pub(crate) const INDEX: &str = "index";
/// The column of the input's text.
pub(crate) const INPUT_TEXT: &str = "input";
/// The column of the target's text.
pub(crate) const TARGET_TEXT: &str = "target";

/// Token ids of one row: a target, and its condition where the data has one. Rows have any length; collation cuts them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// Ids of the target.
    pub input_ids: Vec<i32>,
    /// Ids of the condition.
    pub condition_ids: Option<Vec<i32>>,
}

/// Number and texts of a row, where the data has them.
///
/// Token shards of the ELF authors' tasks have the columns `index`, `input` and `target` in addition to the ids. A generated text
/// is compared with the target text, not with the decoded ids: ids are cut to a maximum length, and decoding may change spaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarriedText {
    /// The row's number in its source.
    pub index: Option<i64>,
    /// The text that the condition was made of.
    pub input: Option<String>,
    /// The text that the target was made of.
    pub target: Option<String>,
}
