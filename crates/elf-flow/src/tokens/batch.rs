//! Batches of token ids, the input of a token objective.

use elf_core::Error as CoreError;
use tch::{Device, Kind, Tensor};

use crate::Result;

/// A batch of token ids, `condition ++ text ++ filling` in each row, ready for an objective.
///
/// It stays on the CPU, where it is decided which positions need which work; only those are sent to the network's device.
#[derive(Debug)]
pub struct TokenBatch {
    /// Token ids, `[B, S]`, i64, on the CPU.
    pub ids: Tensor,
    /// The position at which each row's text begins, `[B]`: the length of its condition.
    pub starts: Vec<i64>,
    /// One past the last token of each row's text, its first EOS included, `[B]`. Later tokens are filling.
    pub ends: Vec<i64>,
}

impl TokenBatch {
    /// `(B, S)`.
    ///
    /// # Errors
    /// If the parts do not fit together.
    pub fn sizes(&self) -> Result<(i64, i64)> {
        let wrong = |what: &str, found: Vec<i64>, expected: String| {
            crate::Error::from(CoreError::Shape { what: what.to_owned(), found, expected })
        };
        let (b, s) = match self.ids.size()[..] {
            [b, s] if self.ids.kind() == Kind::Int64 && self.ids.device() == Device::Cpu => (b, s),
            _ => return Err(wrong("ids", self.ids.size(), "[B, S] of int64 on the CPU".into())),
        };
        for (what, places) in [("starts", &self.starts), ("ends", &self.ends)] {
            if places.len() as i64 != b {
                return Err(wrong(what, vec![places.len() as i64], format!("[{b}]")));
            }
        }
        let within = |(&start, &end): (&i64, &i64)| 0 <= start && start <= end && end <= s;
        match self.starts.iter().zip(&self.ends).all(within) {
            true => Ok((b, s)),
            false => Err(crate::Error::setting("starts and ends", format!("0 <= start <= end <= {s} is needed"))),
        }
    }

    /// Tokens of all texts, the first EOS of each included.
    pub fn text_tokens(&self) -> i64 {
        self.starts.iter().zip(&self.ends).map(|(start, end)| end - start).sum()
    }
}
