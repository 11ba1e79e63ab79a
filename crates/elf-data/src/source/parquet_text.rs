//! Text columns of a Parquet file.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, LargeListArray, LargeStringArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Fields};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use super::Rows;
use super::column::{Cell, ColumnPath};
use crate::error::{Error, Result};
use crate::parquet_file::{self, fault};

/// Number of rows that are decoded at a time: small, because a row may be a whole book.
const ROWS_PER_READ: usize = 128;

/// A reader of the columns, which must be text, lists of texts, or fields of structs that are.
pub(super) fn open(path: &Path, columns: &[ColumnPath]) -> Result<ParquetRecordBatchReader> {
    let file = parquet_file::open(path)?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| fault(path, &e))?;
    let mut wanted = Vec::with_capacity(columns.len());
    for column in columns {
        wanted.push(check(path, builder.schema().fields(), column)?);
    }
    let leaves = builder.parquet_schema().columns().iter().enumerate();
    let leaves = leaves.filter(|(_, leaf)| wanted.iter().any(|parts| leaf.path().parts().starts_with(parts)));
    let leaves: Vec<usize> = leaves.map(|(i, _)| i).collect();
    let mask = ProjectionMask::leaves(builder.parquet_schema(), leaves);
    let reader = builder.with_projection(mask).with_batch_size(ROWS_PER_READ).build();
    reader.map_err(|e| fault(path, &e))
}

/// The names that lead to a column, if it can be read as text.
fn check(path: &Path, fields: &Fields, column: &ColumnPath) -> Result<Vec<String>> {
    if let Some((_, field)) = fields.find(column.name()) {
        is_text(path, column, field)?;
        return Ok(vec![column.name().to_owned()]);
    }
    let (mut fields, mut parts, mut above) = (fields, Vec::new(), String::new());
    let mut names = column.parts().peekable();
    while let Some(name) = names.next() {
        let Some((_, field)) = fields.find(name) else {
            let present: Vec<String> = fields.iter().map(|field| format!("{above}{}", field.name())).collect();
            return Err(Error::missing_column(path, column.name(), &present));
        };
        parts.push(name.to_owned());
        match field.data_type() {
            DataType::Struct(inner) if names.peek().is_some() => fields = inner,
            _ if names.peek().is_none() => is_text(path, column, field)?,
            _ => return Err(Error::missing_column(path, column.name(), &[format!("{above}{name}")])),
        }
        above = format!("{above}{name}.");
    }
    Ok(parts)
}

fn is_text(path: &Path, column: &ColumnPath, field: &Field) -> Result<()> {
    let found = field.data_type();
    if is_string(found) || item(found).is_some_and(is_string) {
        return Ok(());
    }
    let found = match found {
        DataType::Struct(fields) => {
            let names: Vec<String> = fields.iter().map(|field| format!("`{column}.{}`", field.name())).collect();
            format!("structs (name a field of them: {})", names.join(", "))
        }
        other => other.to_string(),
    };
    Err(Error::WrongType { path: path.to_owned(), column: column.to_string(), found, wanted: "text" })
}

fn is_string(found: &DataType) -> bool {
    match found {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => is_string(values),
        _ => false,
    }
}

/// The type of a list's items.
fn item(found: &DataType) -> Option<&DataType> {
    match found {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => Some(item.data_type()),
        DataType::ListView(item) | DataType::LargeListView(item) => Some(item.data_type()),
        _ => None,
    }
}

pub(super) fn rows(path: &Path, columns: &[ColumnPath]) -> Result<Rows> {
    let reader = open(path, columns)?;
    let (path, columns) = (path.to_owned(), columns.to_vec());
    let mut before = 0u64;
    Ok(Box::new(reader.flat_map(move |batch| {
        let rows = batch.map_err(|e| fault(&path, &e)).and_then(|batch| {
            let rows = Batch { path: &path, before, batch: &batch }.rows(&columns)?;
            before += batch.num_rows() as u64;
            Ok(rows)
        });
        match rows {
            Ok(rows) => rows.into_iter().map(Ok).collect::<Vec<_>>(),
            Err(e) => vec![Err(e)],
        }
    })))
}

/// Decoded rows of a file, of which `before` were decoded earlier.
struct Batch<'a> {
    path: &'a Path,
    before: u64,
    batch: &'a RecordBatch,
}

/// The texts of one column.
enum Texts {
    One(LargeStringArray),
    Lists(LargeListArray),
}

impl Batch<'_> {
    fn rows(&self, columns: &[ColumnPath]) -> Result<Vec<(u64, Vec<Cell>)>> {
        let columns = columns.iter().map(|column| self.texts(column)).collect::<Result<Vec<_>>>()?;
        let cell = |texts: &Texts, row: usize| match texts {
            Texts::One(texts) => Cell::Text(texts.value(row).to_owned()),
            Texts::Lists(lists) => Cell::Texts(
                lists.value(row).as_string::<i64>().iter().map(|text| text.unwrap_or_default().to_owned()).collect(),
            ),
        };
        let row = |row: usize| (self.before + row as u64 + 1, columns.iter().map(|texts| cell(texts, row)).collect());
        Ok((0..self.batch.num_rows()).map(row).collect())
    }

    fn texts(&self, column: &ColumnPath) -> Result<Texts> {
        let array = self.array(column)?;
        self.refuse_nulls(&array, column)?;
        let converted = |to: &DataType| cast(&array, to).map_err(|e| fault(self.path, &e));
        if item(array.data_type()).is_none() {
            return Ok(Texts::One(converted(&DataType::LargeUtf8)?.as_string::<i64>().clone()));
        }
        let list = DataType::LargeList(Arc::new(Field::new_list_field(DataType::LargeUtf8, true)));
        let lists = converted(&list)?.as_list::<i64>().clone();
        for row in 0..lists.len() {
            if lists.value(row).null_count() > 0 {
                return Err(self.null(row, column));
            }
        }
        Ok(Texts::Lists(lists))
    }

    /// The array of a column: of its whole name, or else of the field that its parts lead to.
    fn array(&self, column: &ColumnPath) -> Result<ArrayRef> {
        let lost = || fault(self.path, &format!("column `{column}` is missing in a part of the file"));
        if let Some(array) = self.batch.column_by_name(column.name()) {
            return Ok(array.clone());
        }
        let mut parts = column.parts();
        let mut array = parts.next().and_then(|name| self.batch.column_by_name(name)).ok_or_else(lost)?;
        for name in parts {
            self.refuse_nulls(array, column)?;
            array = array.as_struct_opt().and_then(|fields| fields.column_by_name(name)).ok_or_else(lost)?;
        }
        Ok(array.clone())
    }

    fn refuse_nulls(&self, array: &ArrayRef, column: &ColumnPath) -> Result<()> {
        let nulls = array.logical_nulls().filter(|nulls| nulls.null_count() > 0);
        match nulls.and_then(|nulls| (0..array.len()).find(|&row| nulls.is_null(row))) {
            None => Ok(()),
            Some(row) => Err(self.null(row, column)),
        }
    }

    fn null(&self, row: usize, column: &ColumnPath) -> Error {
        Error::BadRecord {
            path: self.path.to_owned(),
            place: format!("row {}", self.before + row as u64 + 1),
            reason: format!("`{column}` is null: fill or remove such rows"),
        }
    }
}
