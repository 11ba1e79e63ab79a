//! Text columns of a Parquet file.

use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray, LargeStringArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use super::{Rows, TextRow};
use crate::error::{Error, Result};

/// Rows decoded at a time. Small, because a row may be a whole book.
const ROWS_PER_READ: usize = 128;

pub(super) fn open(path: &Path, columns: &[String]) -> Result<ParquetRecordBatchReader> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| damaged(path, e.to_string()))?;
    let schema = builder.schema().clone();
    let present: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
    let mut roots = Vec::with_capacity(columns.len());
    for column in columns {
        let Ok(at) = schema.index_of(column) else {
            return Err(Error::missing_column(path, column, &present));
        };
        let found = schema.field(at).data_type();
        if !is_text(found) {
            return Err(Error::WrongType {
                path: path.to_owned(),
                column: column.clone(),
                found: found.to_string(),
                wanted: "text",
            });
        }
        roots.push(at);
    }
    let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
    builder.with_projection(mask).with_batch_size(ROWS_PER_READ).build().map_err(|e| damaged(path, e.to_string()))
}

pub(super) fn rows(path: &Path, columns: &[String]) -> Result<Rows> {
    let reader = open(path, columns)?;
    let (path, columns) = (path.to_owned(), columns.to_vec());
    let mut before = 0usize;
    Ok(Box::new(reader.flat_map(move |batch| {
        let rows = batch.map_err(|e| damaged(&path, e.to_string())).and_then(|batch| {
            let rows = texts(&batch, &path, &columns, before)?;
            before += batch.num_rows();
            Ok(rows)
        });
        match rows {
            Ok(rows) => rows.into_iter().map(Ok).collect::<Vec<_>>(),
            Err(e) => vec![Err(e)],
        }
    })))
}

fn texts(batch: &RecordBatch, path: &Path, columns: &[String], before: usize) -> Result<Vec<TextRow>> {
    let mut arrays: Vec<LargeStringArray> = Vec::with_capacity(columns.len());
    for column in columns {
        let Some(array) = batch.column_by_name(column) else {
            return Err(damaged(path, format!("column `{column}` is missing in a part of the file")));
        };
        if array.logical_null_count() > 0 {
            let row =
                (0..array.len()).find(|&i| array.logical_nulls().is_some_and(|nulls| nulls.is_null(i))).unwrap_or(0);
            return Err(Error::BadRecord {
                path: PathBuf::from(path),
                place: format!("row {}", before + row + 1),
                reason: format!("`{column}` is null: fill or remove such rows"),
            });
        }
        let array = cast(array, &DataType::LargeUtf8).map_err(|e| damaged(path, e.to_string()))?;
        arrays.push(array.as_string::<i64>().clone());
    }
    Ok((0..batch.num_rows()).map(|row| arrays.iter().map(|array| array.value(row).to_owned()).collect()).collect())
}

fn is_text(found: &DataType) -> bool {
    match found {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

fn damaged(path: &Path, reason: String) -> Error {
    Error::Damaged { path: path.to_owned(), reason, remedy: "copy or download the file again" }
}
