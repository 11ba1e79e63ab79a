//! Joining documents to rows of equal length.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How documents become rows of a token shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Packing {
    /// One row per document, of any length; collation cuts it.
    #[default]
    None,
    /// Documents are joined, each with its EOS, and cut to rows of `max_length` tokens.
    ///
    /// No token is lost: the last row of each shard may be shorter, and collation pads it. With the default of 50,000 documents per
    /// shard, one row in many thousands is short.
    Concat {
        /// Tokens per row.
        max_length: usize,
    },
}

/// Joins the documents of one shard to rows. The rows, concatenated, equal the documents, concatenated.
#[derive(Debug)]
pub struct Packer {
    packing: Packing,
    open: Vec<i32>,
}

impl Packer {
    /// A packer without an unfinished row.
    ///
    /// # Errors
    /// If rows of length 0 are requested.
    pub fn new(packing: Packing) -> Result<Self> {
        if packing == (Packing::Concat { max_length: 0 }) {
            return Err(Error::Config("packing to rows of max_length 0 is impossible: choose 1 or more".to_owned()));
        }
        Ok(Self { packing, open: Vec::new() })
    }

    /// Adds a document's ids (with its EOS, if it has one) and passes the rows that it completes to `emit`.
    ///
    /// # Errors
    /// Those of `emit`.
    pub fn push(&mut self, document: Vec<i32>, mut emit: impl FnMut(&[i32]) -> Result<()>) -> Result<()> {
        match self.packing {
            Packing::None => emit(&document),
            Packing::Concat { max_length } => {
                self.open.extend_from_slice(&document);
                let whole = self.open.len() - self.open.len() % max_length;
                self.open[..whole].chunks_exact(max_length).try_for_each(&mut emit)?;
                self.open.drain(..whole);
                Ok(())
            }
        }
    }

    /// The last, shorter row, if there is one.
    pub fn finish(self) -> Option<Vec<i32>> {
        (!self.open.is_empty()).then_some(self.open)
    }
}
