//! A summary of token shards.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::ShardMetadata;
use crate::dataset::{Dataset, OpenOptions};
use crate::error::Result;
use crate::example::Example;

/// A summary of token shards.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The shard files.
    pub shards: Vec<PathBuf>,
    /// Rows of all shards.
    pub rows: usize,
    /// Target ids of all shards.
    pub tokens: u64,
    /// Condition ids of all shards.
    pub condition_tokens: u64,
    /// Lengths of the targets.
    pub target_lengths: Lengths,
    /// Lengths of the conditions, if there are any.
    pub condition_lengths: Option<Lengths>,
    /// The first shard's metadata, whose counts are of that shard alone. Shards of other tools have none.
    pub metadata: Option<ShardMetadata>,
    /// The first rows.
    pub first: Vec<Example>,
}

/// Lengths of rows in tokens. A percentile is the smallest length that this share of the rows does not exceed (nearest rank).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Lengths {
    /// The shortest.
    pub min: usize,
    /// The 10th percentile.
    pub p10: usize,
    /// The median.
    pub p50: usize,
    /// The 90th percentile.
    pub p90: usize,
    /// The 99th percentile.
    pub p99: usize,
    /// The longest.
    pub max: usize,
    /// The mean.
    pub mean: f64,
}

impl Lengths {
    /// From the number of rows of each length.
    fn of(counts: &BTreeMap<usize, u64>) -> Self {
        let rows: u64 = counts.values().sum();
        let total: f64 = counts.iter().map(|(&length, &n)| length as f64 * n as f64).sum();
        let percentile = |percent: u64| {
            let rank = (rows * percent).div_ceil(100).max(1);
            let mut seen = 0;
            let found = counts.iter().find(|(_, n)| {
                seen += **n;
                seen >= rank
            });
            found.map_or(0, |(&length, _)| length)
        };
        Self {
            min: percentile(0),
            p10: percentile(10),
            p50: percentile(50),
            p90: percentile(90),
            p99: percentile(99),
            max: percentile(100),
            mean: if rows == 0 { 0.0 } else { total / rows as f64 },
        }
    }
}

/// Reads all shards of `paths` once, in constant memory, and summarises them. The first `first` rows are returned in full.
///
/// # Errors
/// As [`Dataset::open`], and if any row is damaged: a summary without error means that all rows can be read.
pub fn inspect<P: AsRef<Path>>(paths: &[P], first: usize) -> Result<Summary> {
    // Nothing is kept in memory, so that folders of any size can be summarised.
    let dataset = Dataset::open_with(paths, OpenOptions { memory_limit: 0, cache: 0 })?;
    let mut targets: BTreeMap<usize, u64> = BTreeMap::new();
    let mut conditions: BTreeMap<usize, u64> = BTreeMap::new();
    dataset.for_each_group(|group| {
        group.input.rows().for_each(|row| *targets.entry(row.len()).or_default() += 1);
        for row in group.condition.iter().flat_map(|condition| condition.rows()) {
            *conditions.entry(row.len()).or_default() += 1;
        }
    })?;
    let ids = |counts: &BTreeMap<usize, u64>| counts.iter().map(|(&length, &n)| length as u64 * n).sum();
    let shown: Vec<usize> = (0..first.min(dataset.len())).collect();
    Ok(Summary {
        shards: dataset.files().map(Path::to_owned).collect(),
        rows: dataset.len(),
        tokens: ids(&targets),
        condition_tokens: ids(&conditions),
        target_lengths: Lengths::of(&targets),
        condition_lengths: dataset.is_conditional().then(|| Lengths::of(&conditions)),
        metadata: dataset.metadata().cloned(),
        first: dataset.examples(&shown)?,
    })
}
