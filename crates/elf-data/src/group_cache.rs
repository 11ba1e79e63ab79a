//! Recently decoded row groups.

use std::collections::HashMap;
use std::sync::Arc;

use crate::row_group::RowGroup;

/// The most recently used row groups, up to a number of bytes. A key is a file and a group in it.
#[derive(Debug)]
pub(crate) struct GroupCache {
    limit: usize,
    bytes: usize,
    clock: u64,
    held: HashMap<(usize, usize), (Arc<RowGroup>, u64)>,
}

impl GroupCache {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, bytes: 0, clock: 0, held: HashMap::new() }
    }

    pub(crate) fn get(&mut self, key: (usize, usize)) -> Option<Arc<RowGroup>> {
        self.clock += 1;
        let (group, used) = self.held.get_mut(&key)?;
        *used = self.clock;
        Some(group.clone())
    }

    pub(crate) fn insert(&mut self, key: (usize, usize), group: Arc<RowGroup>) {
        self.clock += 1;
        self.bytes += group.bytes();
        if let Some((replaced, _)) = self.held.insert(key, (group, self.clock)) {
            self.bytes -= replaced.bytes();
        }
        // A linear search for the oldest group is cheap compared with decoding one.
        while self.bytes > self.limit {
            let Some(oldest) = self.held.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key) else { break };
            if let Some((gone, _)) = self.held.remove(&oldest) {
                self.bytes -= gone.bytes();
            }
        }
    }
}
