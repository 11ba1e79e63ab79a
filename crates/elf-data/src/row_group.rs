//! Decoded rows of token ids: the part of a file that is decoded at once.

/// Rows of different lengths in one vector.
#[derive(Debug, Default)]
pub(crate) struct Ragged {
    pub(crate) ids: Vec<i32>,
    /// Row i is `ids[ends[i - 1]..ends[i]]`, the first row begins at 0.
    pub(crate) ends: Vec<usize>,
}

impl Ragged {
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn row(&self, i: usize) -> &[i32] {
        let begin = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.ids[begin..self.ends[i]]
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = &[i32]> {
        (0..self.len()).map(|i| self.row(i))
    }

    /// Adds a row whose ids `fill` appends; nothing is added if it fails.
    pub(crate) fn push_with<E>(&mut self, fill: impl FnOnce(&mut Vec<i32>) -> Result<(), E>) -> Result<(), E> {
        let before = self.ids.len();
        match fill(&mut self.ids) {
            Ok(()) => self.ends.push(self.ids.len()),
            Err(e) => {
                self.ids.truncate(before);
                return Err(e);
            }
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.ids.len() * size_of::<i32>() + self.ends.len() * size_of::<usize>()
    }
}

/// A group of rows: targets, and conditions where the file has them.
#[derive(Debug, Default)]
pub(crate) struct RowGroup {
    pub(crate) input: Ragged,
    pub(crate) condition: Option<Ragged>,
}

impl RowGroup {
    pub(crate) fn bytes(&self) -> usize {
        self.input.bytes() + self.condition.as_ref().map_or(0, Ragged::bytes)
    }
}
