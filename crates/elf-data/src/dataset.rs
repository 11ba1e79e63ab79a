//! Random access to the rows of token shards.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::shards::reader::{RowGroup, ShardFile};
use crate::shards::{self, ShardMetadata};
use crate::tokenizer::Tokenizer;

/// One row: a target, and its condition where the shards have one. Lengths are as in the shard; collation cuts them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// Ids of the target.
    pub input_ids: Vec<i32>,
    /// Ids of the condition.
    pub condition_ids: Option<Vec<i32>>,
}

/// How much memory a data set may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// Shards whose ids take at most so many bytes (two per id for vocabularies up to 65,536, else four) are held in memory.
    pub memory_limit: u64,
    /// Larger ones stay on disk, and so many bytes of recently used row groups are held.
    pub cache: usize,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { memory_limit: 2 << 30, cache: 512 << 20 }
    }
}

/// Token shards, opened for access by row number.
///
/// Opening reads the footers of all shards and, if the ids are few enough, the ids. It may be shared between threads.
#[derive(Debug)]
pub struct Dataset {
    files: Vec<ShardFile>,
    // All row groups in order, with the number of rows before each.
    groups: Vec<GroupAt>,
    rows: usize,
    vocab_size: Option<usize>,
    store: Store,
}

#[derive(Clone, Copy, Debug)]
struct GroupAt {
    rows_before: usize,
    file: usize,
    group: usize,
}

#[derive(Debug)]
enum Store {
    Memory { input: Compact, condition: Option<Compact> },
    Disk(Mutex<GroupCache>),
}

impl Dataset {
    /// Opens `paths`: folders that [`prepare`](crate::shards::prepare) wrote, folders of Parquet files, or Parquet files.
    ///
    /// # Errors
    /// If a shard is missing, truncated or damaged, the shards do not belong together, or the folder is not fully prepared.
    pub fn open<P: AsRef<Path>>(paths: &[P]) -> Result<Self> {
        Self::open_with(paths, OpenOptions::default())
    }

    /// [`open`](Self::open) with other limits of memory.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with<P: AsRef<Path>>(paths: &[P], options: OpenOptions) -> Result<Self> {
        let found = shards::find(paths)?;
        let files: Vec<ShardFile> = found.par_iter().map(|path| ShardFile::open(path)).collect::<Result<_>>()?;
        for file in &files[1..] {
            if let Some(reason) = difference(&files[0], file) {
                let (first, second) = (files[0].path.clone(), file.path.clone());
                return Err(Error::MixedShards { first, second, reason: reason.to_owned() });
            }
        }
        let mut groups = Vec::new();
        let mut rows = 0usize;
        for (file, shard) in files.iter().enumerate() {
            for (group, &in_group) in shard.rows_of_groups.iter().enumerate() {
                groups.push(GroupAt { rows_before: rows, file, group });
                rows = rows
                    .checked_add(in_group)
                    .ok_or_else(|| Error::Config("the shards claim more rows than can be counted".to_owned()))?;
            }
        }
        if rows == 0 {
            return Err(Error::Config(format!(
                "the token shards hold no rows (first shard: `{}`)",
                files[0].path.display()
            )));
        }
        let vocab_size = files[0].metadata.as_ref().map(|m| m.vocab_size);
        let bytes_per_id = if vocab_size.is_some_and(|size| size <= 1 << 16) { 2 } else { 4 };
        let bytes = files.iter().map(ShardFile::ids).fold(0, u64::saturating_add).saturating_mul(bytes_per_id);
        let store = Store::Disk(Mutex::new(GroupCache::new(options.cache)));
        let mut dataset = Self { files, groups, rows, vocab_size, store };
        if bytes <= options.memory_limit {
            let mut input = Compact::default();
            let mut condition = dataset.is_conditional().then(Compact::default);
            dataset.for_each_group(|group| {
                group.input.rows().for_each(|row| input.push(row));
                if let (Some(to), Some(from)) = (&mut condition, &group.condition) {
                    from.rows().for_each(|row| to.push(row));
                }
            })?;
            dataset.store = Store::Memory { input, condition };
        }
        Ok(dataset)
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Always false: a data set without rows cannot be opened.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Whether rows have conditions.
    pub fn is_conditional(&self) -> bool {
        self.files[0].is_conditional()
    }

    /// The first shard's metadata; its counts are that shard's. Shards of other tools have none.
    pub fn metadata(&self) -> Option<&ShardMetadata> {
        self.files[0].metadata.as_ref()
    }

    /// The shard files.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// Checks that `tokenizer` is the one the shards were made with. Shards of other tools do not say; for them, ids are held
    /// against the vocabulary's size, those on disk as they are read.
    ///
    /// # Errors
    /// [`Error::TokenizerMismatch`] or [`Error::IdOutOfRange`].
    pub fn check_tokenizer(&mut self, tokenizer: &Tokenizer) -> Result<()> {
        if let Some(metadata) = self.metadata() {
            if metadata.tokenizer == tokenizer.fingerprint() {
                return Ok(());
            }
            let short = |fingerprint: &str| fingerprint.chars().take(12).collect();
            let path = self.files[0].path.parent().unwrap_or(Path::new(".")).to_owned();
            return Err(Error::TokenizerMismatch {
                path,
                shards: short(&metadata.tokenizer),
                tokenizer: short(tokenizer.fingerprint()),
            });
        }
        if let Store::Memory { input, condition } = &self.store {
            let vocab_size = tokenizer.vocab_size();
            for compact in std::iter::once(input).chain(condition) {
                if let Some((row, id)) = compact.first_at_least(vocab_size) {
                    let at = self.locate(row);
                    let before = self.files[..at.file].iter().map(ShardFile::rows).sum::<usize>();
                    let path = self.files[at.file].path.clone();
                    return Err(Error::IdOutOfRange { path, row: row - before, id, vocab_size });
                }
            }
        }
        self.vocab_size = Some(tokenizer.vocab_size());
        Ok(())
    }

    /// One row.
    ///
    /// # Errors
    /// If there is no such row, or it cannot be read.
    pub fn example(&self, row: usize) -> Result<Example> {
        if row >= self.rows {
            return Err(Error::RowOutOfRange { row, rows: self.rows });
        }
        match &self.store {
            Store::Memory { input, condition } => {
                Ok(Example { input_ids: input.row(row), condition_ids: condition.as_ref().map(|c| c.row(row)) })
            }
            Store::Disk(cache) => {
                let at = self.locate(row);
                let group = self.group(at, cache)?;
                let within = row - at.rows_before;
                Ok(Example {
                    input_ids: group.input.row(within).to_vec(),
                    condition_ids: group.condition.as_ref().map(|c| c.row(within).to_vec()),
                })
            }
        }
    }

    /// Many rows, in the order asked for; row groups that must be read from disk are read on all cores.
    ///
    /// # Errors
    /// As [`example`](Self::example).
    pub fn examples(&self, rows: &[usize]) -> Result<Vec<Example>> {
        match &self.store {
            Store::Memory { .. } => rows.iter().map(|&row| self.example(row)).collect(),
            Store::Disk(_) => rows.par_iter().map(|&row| self.example(row)).collect(),
        }
    }

    /// Visits all row groups in order, a few at a time decoded on all cores.
    pub(crate) fn for_each_group(&self, mut visit: impl FnMut(RowGroup)) -> Result<()> {
        for some in self.groups.chunks(2 * rayon::current_num_threads()) {
            let decoded: Vec<RowGroup> = some.par_iter().map(|at| self.read(*at)).collect::<Result<_>>()?;
            decoded.into_iter().for_each(&mut visit);
        }
        Ok(())
    }

    /// The row group that holds `row`. Empty groups are passed over: of several that begin at the same row the last one holds it.
    fn locate(&self, row: usize) -> GroupAt {
        self.groups[self.groups.partition_point(|at| at.rows_before <= row) - 1]
    }

    fn read(&self, at: GroupAt) -> Result<RowGroup> {
        self.files[at.file].read(at.group, self.vocab_size.unwrap_or(i32::MAX as usize))
    }

    fn group(&self, at: GroupAt, cache: &Mutex<GroupCache>) -> Result<Arc<RowGroup>> {
        // A thread that panicked while it held the lock left a cache that is at worst incomplete.
        let lock = || cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(group) = lock().get((at.file, at.group)) {
            return Ok(group);
        }
        // Decoded without the lock: now and then two threads decode the same group, but none waits for another.
        let group = Arc::new(self.read(at)?);
        lock().insert((at.file, at.group), group.clone());
        Ok(group)
    }
}

fn difference(first: &ShardFile, other: &ShardFile) -> Option<&'static str> {
    if first.is_conditional() != other.is_conditional() {
        return Some("only one of them has conditions");
    }
    match (&first.metadata, &other.metadata) {
        (Some(a), Some(b)) => a.difference(b),
        (None, None) => None,
        _ => Some("only one of them was written by `elf data prepare`"),
    }
}

/// Rows of ids in one vector, two bytes per id as long as all fit.
#[derive(Debug)]
struct Compact {
    ids: CompactIds,
    ends: Vec<u64>,
}

#[derive(Debug)]
enum CompactIds {
    U16(Vec<u16>),
    I32(Vec<i32>),
}

impl Default for Compact {
    fn default() -> Self {
        Self { ids: CompactIds::U16(Vec::new()), ends: Vec::new() }
    }
}

impl Compact {
    fn push(&mut self, row: &[i32]) {
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

    fn row(&self, row: usize) -> Vec<i32> {
        let begin = if row == 0 { 0 } else { self.ends[row - 1] as usize };
        let range = begin..self.ends[row] as usize;
        match &self.ids {
            CompactIds::U16(ids) => ids[range].iter().map(|&id| i32::from(id)).collect(),
            CompactIds::I32(ids) => ids[range].to_vec(),
        }
    }

    /// Row and id of the first id that is `bound` or more.
    fn first_at_least(&self, bound: usize) -> Option<(usize, i64)> {
        let found = match &self.ids {
            CompactIds::U16(ids) => {
                ids.iter().position(|&id| usize::from(id) >= bound).map(|at| (at, i64::from(ids[at])))
            }
            CompactIds::I32(ids) => ids.iter().position(|&id| id as usize >= bound).map(|at| (at, i64::from(ids[at]))),
        };
        found.map(|(at, id)| (self.ends.partition_point(|&end| end <= at as u64), id))
    }
}

/// The most recently used row groups, up to a number of bytes.
#[derive(Debug)]
struct GroupCache {
    limit: usize,
    bytes: usize,
    clock: u64,
    held: HashMap<(usize, usize), (Arc<RowGroup>, u64)>,
}

impl GroupCache {
    fn new(limit: usize) -> Self {
        Self { limit, bytes: 0, clock: 0, held: HashMap::new() }
    }

    fn get(&mut self, key: (usize, usize)) -> Option<Arc<RowGroup>> {
        self.clock += 1;
        let (group, used) = self.held.get_mut(&key)?;
        *used = self.clock;
        Some(group.clone())
    }

    fn insert(&mut self, key: (usize, usize), group: Arc<RowGroup>) {
        self.clock += 1;
        self.bytes += group.bytes();
        if let Some((replaced, _)) = self.held.insert(key, (group, self.clock)) {
            self.bytes -= replaced.bytes();
        }
        // A linear search for the oldest is cheap beside the decoding that led here.
        while self.bytes > self.limit {
            let Some(oldest) = self.held.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key) else { break };
            if let Some((gone, _)) = self.held.remove(&oldest) {
                self.bytes -= gone.bytes();
            }
        }
    }
}
