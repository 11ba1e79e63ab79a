//! Reading one shard, one row group at a time.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::buffer::NullBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelector,
};

use super::{CONDITION_INPUT_IDS, FORMAT_VERSION, INPUT_IDS, METADATA_KEY, ShardMetadata};
use crate::error::{Error, Result};
use crate::example::{CarriedText, INDEX, INPUT_TEXT, TARGET_TEXT};
use crate::parquet_file::{self, fault};
use crate::row_group::{Ragged, RowGroup};

const REMEDY: &str = "copy or download it again, or prepare the data again";

/// An opened shard: only its footer has been read.
#[derive(Debug)]
pub(crate) struct ShardFile {
    pub(crate) path: PathBuf,
    footer: ArrowReaderMetadata,
    conditional: bool,
    pub(crate) metadata: Option<ShardMetadata>,
    pub(crate) rows_of_groups: Vec<usize>,
}

impl ShardFile {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = parquet_file::open(path)?;
        let footer = ArrowReaderMetadata::load(&file, ArrowReaderOptions::new()).map_err(|e| fault(path, &e))?;
        let schema = footer.schema();
        let present: Vec<String> = schema.fields().iter().map(|f| f.name().clone()).collect();
        let input = schema.field_with_name(INPUT_IDS).map_err(|_| Error::missing_column(path, INPUT_IDS, &present))?;
        let condition = schema.field_with_name(CONDITION_INPUT_IDS).ok();
        for field in [Some(input), condition].into_iter().flatten() {
            if !is_list_of_integers(field.data_type()) {
                return Err(Error::WrongType {
                    path: path.to_owned(),
                    column: field.name().clone(),
                    found: field.data_type().to_string(),
                    wanted: "lists of integers",
                });
            }
        }
        let conditional = condition.is_some();
        let metadata = metadata(path, &footer)?;
        let rows = |group: &parquet::file::metadata::RowGroupMetaData| {
            usize::try_from(group.num_rows())
                .map_err(|_| damaged(path, "a row group has a negative number of rows".to_owned()))
        };
        let rows_of_groups = footer.metadata().row_groups().iter().map(rows).collect::<Result<Vec<_>>>()?;
        let total = rows_of_groups.iter().try_fold(0usize, |sum, &n| sum.checked_add(n));
        match (&metadata, total) {
            (_, None) => return Err(damaged(path, "impossible numbers of rows".to_owned())),
            (Some(m), Some(rows)) if m.rows != rows as u64 => {
                return Err(damaged(path, format!("{rows} rows where its metadata says {}", m.rows)));
            }
            _ => {}
        }
        Ok(Self { path: path.to_owned(), footer, conditional, metadata, rows_of_groups })
    }

    pub(crate) fn is_conditional(&self) -> bool {
        self.conditional
    }

    /// Number of ids in both columns, as the footer states it.
    pub(crate) fn ids(&self) -> u64 {
        let groups = self.footer.metadata().row_groups().iter();
        let columns = groups.flat_map(|group| group.columns()).filter(|column| {
            column.column_path().parts().first().is_some_and(|root| root == INPUT_IDS || root == CONDITION_INPUT_IDS)
        });
        columns.map(|column| u64::try_from(column.num_values()).unwrap_or(u64::MAX)).fold(0, u64::saturating_add)
    }

    /// Decodes row group `group`. Every id is checked against `vocab_size`.
    pub(crate) fn read(&self, group: usize, vocab_size: usize) -> Result<RowGroup> {
        let file = File::open(&self.path).map_err(Error::io("open the shard", &self.path))?;
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.footer.clone());
        let schema = self.footer.schema();
        let wanted = [INPUT_IDS, CONDITION_INPUT_IDS].into_iter().filter_map(|name| schema.index_of(name).ok());
        let mask = ProjectionMask::roots(builder.parquet_schema(), wanted);
        let reader = builder
            .with_row_groups(vec![group])
            .with_projection(mask)
            .with_batch_size(8192)
            .build()
            .map_err(|e| fault(&self.path, &e))?;
        let mut rows = RowGroup { input: Ragged::default(), condition: self.conditional.then(Ragged::default) };
        for batch in reader {
            let batch = batch.map_err(|e| fault(&self.path, &e))?;
            self.append(&batch, group, INPUT_IDS, &mut rows.input)?;
            if let Some(condition) = &mut rows.condition {
                self.append(&batch, group, CONDITION_INPUT_IDS, condition)?;
            }
        }
        if rows.input.len() != self.rows_of_groups[group] {
            let reason =
                format!("row group {group} has {} rows instead of {}", rows.input.len(), self.rows_of_groups[group]);
            return Err(damaged(&self.path, reason));
        }
        for ragged in std::iter::once(&rows.input).chain(&rows.condition) {
            if let Some(bad) = ragged.ids.iter().position(|&id| id < 0 || id as usize >= vocab_size) {
                let before: usize = self.rows_of_groups[..group].iter().sum();
                let row = before + ragged.ends.partition_point(|&end| end <= bad);
                return Err(Error::IdOutOfRange {
                    path: self.path.clone(),
                    row,
                    id: i64::from(ragged.ids[bad]),
                    vocab_size,
                });
            }
        }
        Ok(rows)
    }

    /// Numbers and texts of rows `rows` of row group `group`.
    pub(crate) fn carried(&self, group: usize, rows: Range<usize>) -> Result<Vec<CarriedText>> {
        let schema = self.footer.schema();
        let column = |name: &str, fits: fn(&DataType) -> bool| {
            schema.index_of(name).ok().filter(|&at| fits(schema.field(at).data_type()))
        };
        let (index, input, target) =
            (column(INDEX, DataType::is_integer), column(INPUT_TEXT, is_text), column(TARGET_TEXT, is_text));
        if index.is_none() && input.is_none() && target.is_none() {
            return Ok(vec![CarriedText::default(); rows.len()]);
        }
        let file = File::open(&self.path).map_err(Error::io("open the shard", &self.path))?;
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, self.footer.clone());
        let mask = ProjectionMask::roots(builder.parquet_schema(), [index, input, target].into_iter().flatten());
        let reader = builder
            .with_row_groups(vec![group])
            .with_projection(mask)
            .with_row_selection(vec![RowSelector::skip(rows.start), RowSelector::select(rows.len())].into())
            .with_batch_size(1024)
            .build()
            .map_err(|e| fault(&self.path, &e))?;
        let mut carried = Vec::new();
        for batch in reader {
            let batch = batch.map_err(|e| fault(&self.path, &e))?;
            let of = |name: &str, wanted: Option<usize>, target: &DataType| -> Result<Option<ArrayRef>> {
                let Some(array) = wanted.and_then(|_| batch.column_by_name(name)) else { return Ok(None) };
                let array = cast(array, target);
                array.map(Some).map_err(|e| damaged(&self.path, format!("column `{name}`: {e}")))
            };
            let numbers = of(INDEX, index, &DataType::Int64)?;
            let inputs = of(INPUT_TEXT, input, &DataType::LargeUtf8)?;
            let targets = of(TARGET_TEXT, target, &DataType::LargeUtf8)?;
            let text = |array: &Option<ArrayRef>, i: usize| {
                let strings = array.as_ref()?.as_string::<i64>();
                strings.is_valid(i).then(|| strings.value(i).to_owned())
            };
            carried.extend((0..batch.num_rows()).map(|i| {
                CarriedText {
                    index: numbers
                        .as_ref()
                        .map(|a| a.as_primitive::<Int64Type>())
                        .and_then(|a| a.is_valid(i).then(|| a.value(i))),
                    input: text(&inputs, i),
                    target: text(&targets, i),
                }
            }));
        }
        if carried.len() != rows.len() {
            return Err(damaged(&self.path, format!("row group {group} breaks off")));
        }
        Ok(carried)
    }

    fn null_row(&self, column: &str, row: usize) -> Error {
        Error::BadRecord {
            path: self.path.clone(),
            place: format!("row {}", row + 1),
            reason: format!("`{column}` is null: fill or remove such rows"),
        }
    }

    /// Appends the ids of a batch of row group `group`. `to` holds the group's former rows.
    fn append(&self, batch: &RecordBatch, group: usize, column: &str, to: &mut Ragged) -> Result<()> {
        let before = self.rows_of_groups[..group].iter().sum::<usize>() + to.len();
        let bad = |reason: &str| damaged(&self.path, format!("column `{column}` {reason}"));
        let array = batch.column_by_name(column).ok_or_else(|| bad("is missing in a part of the file"))?;
        let null_row = |nulls: Option<NullBuffer>| {
            let row = nulls.and_then(|nulls| (0..nulls.len()).find(|&row| nulls.is_null(row)))?;
            Some(self.null_row(column, before + row))
        };
        if let Some(error) = null_row(array.logical_nulls()) {
            return Err(error);
        }
        let target = DataType::LargeList(Arc::new(Field::new_list_field(DataType::Int32, true)));
        let lists = cast(array, &target).map_err(|e| bad(&e.to_string()))?;
        let lists = lists.as_list::<i64>();
        let values = lists.values().as_primitive::<Int32Type>();
        let offsets = lists.value_offsets();
        let (Some(&first), Some(&last)) = (offsets.first(), offsets.last()) else { return Ok(()) };
        let values = values.slice(first as usize, (last - first) as usize);
        if let Some(nulls) = values.nulls().filter(|nulls| nulls.null_count() > 0) {
            // The cast also makes null of ids that do not fit into 32 bits.
            let id = (0..nulls.len()).find(|&id| nulls.is_null(id)).unwrap_or_default() + first as usize;
            let row = offsets[1..].partition_point(|&end| end as usize <= id);
            return Err(Error::BadRecord {
                path: self.path.clone(),
                place: format!("row {}", before + row + 1),
                reason: format!(
                    "`{column}` holds an id that is null or does not fit into 32 bits: fill or remove such rows"
                ),
            });
        }
        let start = to.ids.len();
        to.ids.extend_from_slice(values.values());
        to.ends.extend(offsets[1..].iter().map(|&end| start + (end - first) as usize));
        Ok(())
    }
}

fn metadata(path: &Path, footer: &ArrowReaderMetadata) -> Result<Option<ShardMetadata>> {
    let pairs = footer.metadata().file_metadata().key_value_metadata();
    let ours = pairs
        .and_then(|pairs| pairs.iter().find(|pair| pair.key == METADATA_KEY))
        .and_then(|pair| pair.value.as_deref());
    let Some(json) = ours else { return Ok(None) };
    // The version is read first: another format may have other fields.
    let version =
        serde_json::from_str::<serde_json::Value>(json).ok().and_then(|value| value.get("format_version")?.as_u64());
    if version.is_some_and(|version| version != u64::from(FORMAT_VERSION)) {
        return Err(Error::Config(format!(
            "`{}` has shard format {}, this program reads format {FORMAT_VERSION}: update the program, or prepare the data again",
            path.display(),
            version.unwrap_or_default(),
        )));
    }
    serde_json::from_str(json).map(Some).map_err(|e| damaged(path, format!("its metadata cannot be read: {e}")))
}

fn is_text(found: &DataType) -> bool {
    match found {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

fn is_list_of_integers(found: &DataType) -> bool {
    match found {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            item.data_type().is_integer()
        }
        _ => false,
    }
}

fn damaged(path: &Path, reason: String) -> Error {
    Error::Damaged { path: path.to_owned(), reason, remedy: REMEDY }
}
