//! The extent of rows that are encoded piece by piece, for texts that are being written.

use tch::Tensor;

use crate::text_encoder::check_ids;
use crate::{Error, Result};

/// How many rows there are, how long they are and may become.
#[derive(Debug)]
pub(crate) struct Extent {
    rows: i64,
    capacity: i64,
    encoded: i64,
}

impl Extent {
    pub(crate) fn new(rows: i64, capacity: i64) -> Self {
        Self { rows, capacity, encoded: 0 }
    }

    /// The most positions.
    pub(crate) fn capacity(&self) -> i64 {
        self.capacity
    }

    /// Checks a piece; returns N.
    pub(crate) fn check(&mut self, from: i64, ids: &Tensor, mask: &Tensor, vocab_size: i64) -> Result<i64> {
        let (b, n) = check_ids(ids, vocab_size)?;
        let end = from.saturating_add(n);
        if b != self.rows || !(0..=self.encoded).contains(&from) || end > self.capacity {
            let expected = format!(
                "[{}, N] behind at most {} positions encoded before, of {} in all; it is for positions from {from} on",
                self.rows, self.encoded, self.capacity
            );
            return Err(Error::shape("a piece of growing rows", ids, expected));
        }
        if mask.size() != [b, n, end] {
            return Err(Error::shape("the encoder's mask", mask, format!("[{b}, {n}, {end}]")));
        }
        self.encoded = end;
        Ok(n)
    }
}
