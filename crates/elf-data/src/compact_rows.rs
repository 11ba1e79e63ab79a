//! Rows of token ids held in memory.

use std::ops::Range;

/// Rows of ids in one vector. Ids take two bytes each while all are below 65,536, four bytes afterwards.
#[derive(Debug)]
pub(crate) struct CompactRows {
    ids: CompactIds,
    ends: Vec<u64>,
}

#[derive(Debug)]
enum CompactIds {
    U16(Vec<u16>),
    I32(Vec<i32>),
}

impl Default for CompactRows {
    fn default() -> Self {
        Self { ids: CompactIds::U16(Vec::new()), ends: Vec::new() }
    }
}

impl CompactRows {
    pub(crate) fn push(&mut self, row: &[i32]) {
        if let CompactIds::U16(ids) = &mut self.ids {
            if row.iter().all(|&id| u16::try_from(id).is_ok()) {
                ids.extend(row.iter().map(|&id| id as u16));
            } else {
                self.ids = CompactIds::I32(ids.iter().map(|&id| i32::from(id)).collect());
            }
        }
        let len = match &mut self.ids {
            CompactIds::U16(ids) => ids.len(),
            CompactIds::I32(ids) => {
                ids.extend_from_slice(row);
                ids.len()
            }
        };
        self.ends.push(len as u64);
    }

    fn range(&self, row: usize) -> Range<usize> {
        let begin = if row == 0 { 0 } else { self.ends[row - 1] as usize };
        begin..self.ends[row] as usize
    }

    pub(crate) fn len_of(&self, row: usize) -> usize {
        self.range(row).len()
    }

    pub(crate) fn row(&self, row: usize) -> Vec<i32> {
        let range = self.range(row);
        match &self.ids {
            CompactIds::U16(ids) => ids[range].iter().map(|&id| i32::from(id)).collect(),
            CompactIds::I32(ids) => ids[range].to_vec(),
        }
    }

    /// Row and value of the first id that is `bound` or more.
    pub(crate) fn first_at_least(&self, bound: usize) -> Option<(usize, i64)> {
        let found = match &self.ids {
            CompactIds::U16(ids) => {
                ids.iter().position(|&id| usize::from(id) >= bound).map(|at| (at, i64::from(ids[at])))
            }
            CompactIds::I32(ids) => ids.iter().position(|&id| id as usize >= bound).map(|at| (at, i64::from(ids[at]))),
        };
        found.map(|(at, id)| (self.ends.partition_point(|&end| end <= at as u64), id))
    }
}
