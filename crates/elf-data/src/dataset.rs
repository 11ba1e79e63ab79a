//! Random access to rows of token ids: shards, Arrow files, or rows made in memory.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use crate::collate::CollateConfig;
use crate::compact_rows::CompactRows;
use crate::data_file::DataFile;
use crate::error::{Error, Result};
use crate::evaluation::EvaluationPair;
use crate::example::{CarriedText, Example};
use crate::group_cache::GroupCache;
use crate::row_group::RowGroup;
use crate::shards::{self, EosOptions, ShardMetadata};
use crate::tokenizer::Tokenizer;

/// Memory limits of a data set, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// Shards whose ids need at most this many bytes (two per id for vocabularies up to 65,536, else four) are held in memory.
    pub memory_limit: u64,
    /// Larger shards stay on disk; recently used row groups of up to this many bytes are held.
    pub cache: usize,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { memory_limit: 2 << 30, cache: 512 << 20 }
    }
}

/// Token shards, opened for access by row number. Can be shared between threads.
///
/// Opening reads the footers of all Parquet shards and, if they fit into the memory limit, the ids. Arrow files are mapped into
/// memory: opening one notes where its batches lie and reads no row.
#[derive(Debug)]
pub struct Dataset {
    // Empty for rows made in memory.
    files: Vec<DataFile>,
    conditional: bool,
    // Texts of rows made in memory.
    carried: Vec<CarriedText>,
    // Whether the files are small enough to be read completely for a check of all rows.
    small: bool,
    // All row groups in order, with the number of rows before each.
    groups: Vec<GroupAt>,
    rows: usize,
    vocab_size: Option<usize>,
    store: Store,
}

#[derive(Clone, Copy, Debug)]
struct GroupAt {
    rows_before: usize,
    /// Rows before the group in its own file.
    before_in_file: usize,
    file: usize,
    group: usize,
}

#[derive(Debug)]
enum Store {
    Memory { input: CompactRows, condition: Option<CompactRows> },
    Disk(Mutex<GroupCache>),
}

impl Dataset {
    /// Opens `paths`: folders that [`prepare`](crate::shards::prepare) wrote, folders of Parquet or Arrow files, Hugging Face
    /// `save_to_disk` folders, single files, or splits: `folder/train` for the shards `train-*` of `folder`, or for the split
    /// `train` of a saved `DatasetDict`.
    ///
    /// # Errors
    /// If a shard is missing, truncated or damaged, the shards do not belong together, or the folder is not fully prepared.
    pub fn open<P: AsRef<Path>>(paths: &[P]) -> Result<Self> {
        Self::open_with(paths, OpenOptions::default())
    }

    /// [`open`](Self::open) with other memory limits.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with<P: AsRef<Path>>(paths: &[P], options: OpenOptions) -> Result<Self> {
        let found = shards::find(paths)?;
        let files: Vec<DataFile> = found.par_iter().map(|path| DataFile::open(path)).collect::<Result<_>>()?;
        for file in &files[1..] {
            if let Some(reason) = difference(&files[0], file) {
                let (first, second) = (files[0].path().to_owned(), file.path().to_owned());
                return Err(Error::MixedShards { first, second, reason: reason.to_owned() });
            }
        }
        let mut groups = Vec::new();
        let mut rows = 0usize;
        for (file, shard) in files.iter().enumerate() {
            let file_begins = rows;
            for (group, in_group) in shard.rows_of_groups().into_iter().enumerate() {
                groups.push(GroupAt { rows_before: rows, before_in_file: rows - file_begins, file, group });
                rows = rows
                    .checked_add(in_group)
                    .ok_or_else(|| Error::Config("the shards claim more rows than can be counted".to_owned()))?;
            }
        }
        if rows == 0 {
            return Err(Error::Config(format!(
                "the token shards hold no rows (first shard: `{}`)",
                files[0].path().display()
            )));
        }
        let vocab_size = files[0].metadata().map(|m| m.vocab_size);
        let bytes_per_id = if vocab_size.is_some_and(|size| size <= 1 << 16) { 2 } else { 4 };
        let bytes = files.iter().map(DataFile::ids).fold(0, u64::saturating_add).saturating_mul(bytes_per_id);
        let store = Store::Disk(Mutex::new(GroupCache::new(options.cache)));
        let conditional = files[0].is_conditional();
        let mapped = files.iter().all(DataFile::is_mapped);
        let small = bytes <= options.memory_limit;
        let carried = Vec::new();
        let mut dataset = Self { files, conditional, carried, small, groups, rows, vocab_size, store };
        if small && !mapped {
            let mut input = CompactRows::default();
            let mut condition = dataset.is_conditional().then(CompactRows::default);
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

    /// Pairs of texts as rows held in memory: inputs become conditions, expected texts targets. `eos` should equal that of the
    /// training data.
    ///
    /// # Errors
    /// If there are no pairs, or a text cannot be tokenised.
    pub fn from_pairs(pairs: Vec<EvaluationPair>, tokenizer: &Tokenizer, eos: EosOptions) -> Result<Self> {
        if pairs.is_empty() {
            return Err(Error::Config("no pairs of texts were given: give at least one".to_owned()));
        }
        let eos_id = if eos.target || eos.condition { Some(tokenizer.eos_id()?) } else { None };
        let compact = |texts: Vec<&str>, eos: bool| -> Result<CompactRows> {
            let mut rows = CompactRows::default();
            for mut ids in tokenizer.encode_batch(&texts)? {
                ids.extend(eos_id.filter(|_| eos));
                rows.push(&ids);
            }
            Ok(rows)
        };
        let targets = pairs.iter().map(|pair| pair.target.as_deref().unwrap_or_default()).collect();
        let input = compact(targets, eos.target)?;
        let condition = Some(compact(pairs.iter().map(|pair| pair.input.as_str()).collect(), eos.condition)?);
        let carried = |pair: EvaluationPair| CarriedText {
            index: Some(pair.index),
            input: Some(pair.input),
            target: pair.target,
        };
        Ok(Self {
            files: Vec::new(),
            conditional: true,
            small: true,
            groups: Vec::new(),
            rows: pairs.len(),
            vocab_size: Some(tokenizer.vocab_size()),
            carried: pairs.into_iter().map(carried).collect(),
            store: Store::Memory { input, condition },
        })
    }

    /// Rows made by the caller, held in memory: targets alone, or targets with conditions.
    ///
    /// # Errors
    /// If there are no rows, or only some of them have a condition.
    pub fn from_examples(examples: &[Example]) -> Result<Self> {
        let with_condition = examples.iter().filter(|e| e.condition_ids.is_some()).count();
        if examples.is_empty() || !(with_condition == 0 || with_condition == examples.len()) {
            return Err(Error::Config(format!(
                "{with_condition} of {} rows have a condition: a data set needs rows, and a condition in all of them or in none",
                examples.len()
            )));
        }
        let compact = |rows: &mut dyn Iterator<Item = &Vec<i32>>| {
            let mut all = CompactRows::default();
            rows.for_each(|ids| all.push(ids));
            all
        };
        let input = compact(&mut examples.iter().map(|e| &e.input_ids));
        let condition = compact(&mut examples.iter().filter_map(|e| e.condition_ids.as_ref()));
        Ok(Self {
            files: Vec::new(),
            conditional: with_condition > 0,
            small: true,
            groups: Vec::new(),
            rows: examples.len(),
            vocab_size: None,
            carried: Vec::new(),
            store: Store::Memory { input, condition: (with_condition > 0).then_some(condition) },
        })
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
        self.conditional
    }

    /// The first shard's metadata, whose counts are of that shard alone. Shards of other tools have none.
    pub fn metadata(&self) -> Option<&ShardMetadata> {
        self.files.first().and_then(DataFile::metadata)
    }

    /// The shard files.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(DataFile::path)
    }

    /// Checks that the shards were made with `tokenizer`. Shards of other tools have no fingerprint: their ids are compared with the
    /// vocabulary's size, those on disk whenever they are read.
    ///
    /// # Errors
    /// [`Error::TokenizerMismatch`] or [`Error::IdOutOfRange`].
    pub fn check_tokenizer(&mut self, tokenizer: &Tokenizer) -> Result<()> {
        if let Some(metadata) = self.metadata() {
            if metadata.tokenizer == tokenizer.fingerprint() {
                return Ok(());
            }
            let short = |fingerprint: &str| fingerprint.chars().take(12).collect();
            let path = self.folder();
            return Err(Error::TokenizerMismatch {
                path,
                shards: short(&metadata.tokenizer),
                tokenizer: short(tokenizer.fingerprint()),
            });
        }
        let vocab_size = tokenizer.vocab_size();
        if let Store::Memory { input, condition } = &self.store {
            for compact in std::iter::once(input).chain(condition) {
                if let Some((row, id)) = compact.first_at_least(vocab_size) {
                    let (path, row) = self.place_of(row);
                    return Err(Error::IdOutOfRange { path, row, id, vocab_size });
                }
            }
        }
        self.vocab_size = Some(vocab_size);
        if self.small && self.files.iter().any(DataFile::is_mapped) {
            // Every id is checked as it is read; this reports a wrong one now, not hours later.
            self.for_each_group(drop)?;
        }
        Ok(())
    }

    /// Which columns end in EOS, by the shards' metadata. Shards of other tools have none: there, most of the first 64 rows must end
    /// in EOS. (Rows that were cut to a length have lost theirs.)
    ///
    /// # Errors
    /// If the tokenizer has no EOS, or a row cannot be read.
    pub fn eos_options(&self, tokenizer: &Tokenizer) -> Result<EosOptions> {
        if let Some(metadata) = self.metadata() {
            return Ok(metadata.eos);
        }
        let eos_id = tokenizer.eos_id()?;
        let asked = self.rows.min(64);
        let (mut targets, mut conditions) = (0, 0);
        for row in 0..asked {
            let Example { input_ids, condition_ids } = self.example(row)?;
            targets += usize::from(input_ids.last() == Some(&eos_id));
            conditions += usize::from(condition_ids.as_ref().and_then(|ids| ids.last()) == Some(&eos_id));
        }
        Ok(EosOptions { target: 2 * targets > asked, condition: 2 * conditions > asked })
    }

    fn folder(&self) -> PathBuf {
        self.files.first().and_then(|file| file.path().parent()).unwrap_or(Path::new(".")).to_owned()
    }

    /// The file that holds `row`, and the row's number in it.
    fn place_of(&self, row: usize) -> (PathBuf, usize) {
        if self.files.is_empty() {
            return (PathBuf::from("memory"), row);
        }
        let at = self.locate(row);
        (self.files[at.file].path().to_owned(), at.before_in_file + (row - at.rows_before))
    }

    /// Numbers and texts of `rows`. They are read from the files on every call, from a Parquet shard one row group at a time: meant
    /// for evaluation, not for every training step.
    ///
    /// # Errors
    /// If there are no such rows, or they cannot be read.
    pub fn carried(&self, rows: Range<usize>) -> Result<Vec<CarriedText>> {
        if rows.start > rows.end || rows.end > self.rows {
            return Err(Error::RowOutOfRange { row: rows.start.max(rows.end.saturating_sub(1)), rows: self.rows });
        }
        if self.files.is_empty() {
            return Ok(self.carried[rows].to_vec());
        }
        let mut carried = Vec::with_capacity(rows.len());
        let mut row = rows.start;
        while row < rows.end {
            let group = self.groups.partition_point(|at| at.rows_before <= row);
            let at = self.groups[group - 1];
            let group_end = self.groups.get(group).map_or(self.rows, |next| next.rows_before);
            let end = rows.end.min(group_end);
            let within = row - at.rows_before..end - at.rows_before;
            carried.extend(self.files[at.file].carried(at.group, at.before_in_file, within)?);
            row = end;
        }
        Ok(carried)
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
                let within = row - at.rows_before;
                if let DataFile::Arrow(file) = &self.files[at.file] {
                    let (input_ids, condition_ids) = file.row(at.before_in_file + within, self.bound())?;
                    return Ok(Example { input_ids, condition_ids });
                }
                let group = self.group(at, cache)?;
                Ok(Example {
                    input_ids: group.input.row(within).to_vec(),
                    condition_ids: group.condition.as_ref().map(|c| c.row(within).to_vec()),
                })
            }
        }
    }

    /// Many rows, in the given order. Row groups on disk are read on all cores.
    ///
    /// # Errors
    /// As [`example`](Self::example).
    pub fn examples(&self, rows: &[usize]) -> Result<Vec<Example>> {
        match &self.store {
            Store::Memory { .. } => rows.iter().map(|&row| self.example(row)).collect(),
            Store::Disk(_) => rows.par_iter().map(|&row| self.example(row)).collect(),
        }
    }

    /// Each row's number of tokens after `config` has cut it, condition included and filling excluded: its later
    /// [`Batch::valid_len`](crate::Batch::valid_len). Reads all rows once.
    ///
    /// # Errors
    /// If `max_input_length` is set and there are no conditions, or a row cannot be read.
    pub fn lengths(&self, config: CollateConfig) -> Result<Vec<u32>> {
        Ok(self.lengths_of_parts(config)?.into_iter().map(|[condition, target]| condition + target).collect())
    }

    /// Each row's number of condition tokens and of target tokens after `config` has cut them. Reads all rows once.
    ///
    /// # Errors
    /// As [`Dataset::lengths`].
    pub fn lengths_of_parts(&self, config: CollateConfig) -> Result<Vec<[u32; 2]>> {
        if config.max_input_length.is_some() && !self.conditional {
            return Err(Error::NoCondition);
        }
        let cut = |target: usize, condition: Option<usize>| {
            let (condition, target) = config.cut(condition.unwrap_or(0), target);
            [condition as u32, target as u32]
        };
        if let Store::Memory { input, condition } = &self.store {
            return Ok((0..self.rows)
                .map(|row| cut(input.len_of(row), condition.as_ref().map(|c| c.len_of(row))))
                .collect());
        }
        let mut lengths = Vec::with_capacity(self.rows);
        self.for_each_group(|group| {
            let RowGroup { input, condition } = &group;
            lengths
                .extend((0..input.len()).map(|i| cut(input.row(i).len(), condition.as_ref().map(|c| c.row(i).len()))));
        })?;
        Ok(lengths)
    }

    /// Visits all row groups in order, a few at a time decoded on all cores.
    pub(crate) fn for_each_group(&self, mut visit: impl FnMut(RowGroup)) -> Result<()> {
        for some in self.groups.chunks(2 * rayon::current_num_threads()) {
            let decoded: Vec<RowGroup> = some.par_iter().map(|at| self.read(*at)).collect::<Result<_>>()?;
            decoded.into_iter().for_each(&mut visit);
        }
        Ok(())
    }

    /// The row group that holds `row`. Of several groups that begin at the same row, all but the last are empty.
    fn locate(&self, row: usize) -> GroupAt {
        self.groups[self.groups.partition_point(|at| at.rows_before <= row) - 1]
    }

    /// The vocabulary's size, or else the largest possible one. Every id is below it.
    fn bound(&self) -> usize {
        self.vocab_size.unwrap_or(i32::MAX as usize)
    }

    fn read(&self, at: GroupAt) -> Result<RowGroup> {
        self.files[at.file].read(at.group, self.bound())
    }

    fn group(&self, at: GroupAt, cache: &Mutex<GroupCache>) -> Result<Arc<RowGroup>> {
        // A thread that panicked with the lock left a cache that is at worst incomplete.
        let lock = || cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(group) = lock().get((at.file, at.group)) {
            return Ok(group);
        }
        // Decoded without the lock: two threads may decode the same group, but none waits for another.
        let group = Arc::new(self.read(at)?);
        lock().insert((at.file, at.group), group.clone());
        Ok(group)
    }
}

fn difference(first: &DataFile, other: &DataFile) -> Option<&'static str> {
    if first.is_conditional() != other.is_conditional() {
        return Some("only one of them has conditions");
    }
    match (first.metadata(), other.metadata()) {
        (Some(a), Some(b)) => a.difference(b),
        (None, None) => None,
        _ => Some("only one of them was written by `elf data prepare`"),
    }
}
