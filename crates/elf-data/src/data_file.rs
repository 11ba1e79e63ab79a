//! One file of token ids, Parquet or Arrow.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use crate::arrow_stream::{self, ArrowFile};
use crate::error::{Error, Result};
use crate::example::CarriedText;
use crate::row_group::RowGroup;
use crate::shards::ShardMetadata;
use crate::shards::reader::ShardFile;

/// An opened file of token ids.
#[derive(Debug)]
pub(crate) enum DataFile {
    /// Read by row group.
    Parquet(Box<ShardFile>),
    /// Mapped, and read by row.
    Arrow(ArrowFile),
}

impl DataFile {
    /// Opens a file; its first bytes decide its kind.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut beginning = Vec::new();
        let file = File::open(path).map_err(Error::io("open the shard", path))?;
        file.take(8).read_to_end(&mut beginning).map_err(Error::io("read", path))?;
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        let is_parquet = beginning.starts_with(b"PAR1");
        if arrow_stream::is_arrow(&beginning) || (extension == "arrow" && !is_parquet) {
            return ArrowFile::open(path).map(DataFile::Arrow);
        }
        if !is_parquet && ["jsonl", "ndjson", "json", "txt"].contains(&extension.as_str()) {
            return Err(Error::Config(format!(
                "`{}` holds text, not token ids: make token shards of it with `elf data prepare`",
                path.display()
            )));
        }
        ShardFile::open(path).map(|shard| DataFile::Parquet(Box::new(shard)))
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            DataFile::Parquet(shard) => &shard.path,
            DataFile::Arrow(file) => &file.path,
        }
    }

    pub(crate) fn metadata(&self) -> Option<&ShardMetadata> {
        match self {
            DataFile::Parquet(shard) => shard.metadata.as_ref(),
            DataFile::Arrow(_) => None,
        }
    }

    pub(crate) fn is_conditional(&self) -> bool {
        match self {
            DataFile::Parquet(shard) => shard.is_conditional(),
            DataFile::Arrow(file) => file.is_conditional(),
        }
    }

    /// Whether rows are read from a memory mapping, which makes a copy in memory needless.
    pub(crate) fn is_mapped(&self) -> bool {
        matches!(self, DataFile::Arrow(_))
    }

    pub(crate) fn rows_of_groups(&self) -> Vec<usize> {
        match self {
            DataFile::Parquet(shard) => shard.rows_of_groups.clone(),
            DataFile::Arrow(file) => file.rows_of_groups(),
        }
    }

    /// Number of ids in both columns, to decide whether they fit into memory.
    pub(crate) fn ids(&self) -> u64 {
        match self {
            DataFile::Parquet(shard) => shard.ids(),
            DataFile::Arrow(file) => file.ids(),
        }
    }

    /// Decodes group `group`. Every id is checked against `vocab_size`.
    pub(crate) fn read(&self, group: usize, vocab_size: usize) -> Result<RowGroup> {
        match self {
            DataFile::Parquet(shard) => shard.read(group, vocab_size),
            DataFile::Arrow(file) => file.read(group, vocab_size),
        }
    }

    /// Numbers and texts of rows `rows` of group `group`, which begins at row `before` of the file.
    pub(crate) fn carried(&self, group: usize, before: usize, rows: Range<usize>) -> Result<Vec<CarriedText>> {
        match self {
            DataFile::Parquet(shard) => shard.carried(group, rows),
            DataFile::Arrow(file) => rows.map(|row| file.carried(before + row)).collect(),
        }
    }
}
