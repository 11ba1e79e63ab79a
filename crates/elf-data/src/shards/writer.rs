//! Writing one shard.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Builder, ListBuilder, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use tempfile::NamedTempFile;

use super::{CONDITION_INPUT_IDS, INPUT_IDS, METADATA_KEY, ShardMetadata};
use crate::error::{Error, Result};

/// Largest row group, in ids and in rows. Small groups keep random access cheap: a reader decodes a whole group for one row.
const IDS_PER_GROUP: usize = 1 << 17;
const ROWS_PER_GROUP: usize = 1 << 16;

/// A shard being written under a temporary name.
pub(super) struct ShardWriter {
    target: PathBuf,
    aside: NamedTempFile,
    writer: ArrowWriter<File>,
    schema: SchemaRef,
    input: ListBuilder<Int32Builder>,
    condition: Option<ListBuilder<Int32Builder>>,
    rows_in_group: usize,
    ids_in_group: usize,
    pub(super) rows: u64,
    pub(super) tokens: u64,
    pub(super) condition_tokens: u64,
}

impl ShardWriter {
    pub(super) fn create(target: &Path, conditional: bool) -> Result<Self> {
        let item = || Field::new_list_field(DataType::Int32, false);
        let list = |name: &str| Field::new(name, DataType::List(Arc::new(item())), false);
        let mut fields = vec![list(INPUT_IDS)];
        if conditional {
            fields.push(list(CONDITION_INPUT_IDS));
        }
        let schema: SchemaRef = Arc::new(Schema::new(fields));
        let level = ZstdLevel::try_new(3).map_err(|e| failed(target, e))?;
        let properties = WriterProperties::builder().set_compression(Compression::ZSTD(level)).build();
        let aside = elf_files::begin(target).map_err(Error::io("write", target))?;
        let file = aside.as_file().try_clone().map_err(Error::io("write", target))?;
        let writer = ArrowWriter::try_new(file, schema.clone(), Some(properties)).map_err(|e| failed(target, e))?;
        let builder = || ListBuilder::new(Int32Builder::new()).with_field(item());
        Ok(Self {
            target: target.to_owned(),
            aside,
            writer,
            schema,
            input: builder(),
            condition: conditional.then(builder),
            rows_in_group: 0,
            ids_in_group: 0,
            rows: 0,
            tokens: 0,
            condition_tokens: 0,
        })
    }

    /// Appends a row. `condition` is ignored if the shard was not created as conditional.
    pub(super) fn push(&mut self, input: &[i32], condition: &[i32]) -> Result<()> {
        self.input.values().append_slice(input);
        self.input.append(true);
        self.tokens += input.len() as u64;
        self.ids_in_group += input.len();
        if let Some(builder) = &mut self.condition {
            builder.values().append_slice(condition);
            builder.append(true);
            self.condition_tokens += condition.len() as u64;
            self.ids_in_group += condition.len();
        }
        self.rows += 1;
        self.rows_in_group += 1;
        if self.ids_in_group >= IDS_PER_GROUP || self.rows_in_group >= ROWS_PER_GROUP {
            self.close_group()?;
        }
        Ok(())
    }

    fn close_group(&mut self) -> Result<()> {
        if self.rows_in_group == 0 {
            return Ok(());
        }
        let mut columns: Vec<ArrayRef> = vec![Arc::new(self.input.finish())];
        if let Some(builder) = &mut self.condition {
            columns.push(Arc::new(builder.finish()));
        }
        let write = RecordBatch::try_new(self.schema.clone(), columns).map_err(ParquetError::from).and_then(|batch| {
            self.writer.write(&batch)?;
            self.writer.flush()
        });
        write.map_err(|e| failed(&self.target, e))?;
        self.rows_in_group = 0;
        self.ids_in_group = 0;
        Ok(())
    }

    /// Writes the last row group and the metadata, and gives the file its name. Returns its size in bytes.
    pub(super) fn finish(mut self, metadata: &ShardMetadata) -> Result<u64> {
        self.close_group()?;
        let json = serde_json::to_string(metadata).map_err(|e| Error::io("write", &self.target)(e.into()))?;
        self.writer.append_key_value_metadata(KeyValue::new(METADATA_KEY.to_owned(), json));
        self.writer.close().map_err(|e| failed(&self.target, e))?;
        let bytes = self.aside.as_file().metadata().map_err(Error::io("write", &self.target))?.len();
        elf_files::finish(self.aside, &self.target).map_err(Error::io("write", &self.target))?;
        Ok(bytes)
    }
}

/// Extracts the system's error, so that a full disk reads "No space left on device" and not as a fault of the format.
fn failed(target: &Path, error: ParquetError) -> Error {
    let source = match error {
        ParquetError::External(inner) => match inner.downcast::<std::io::Error>() {
            Ok(io) => *io,
            Err(other) => std::io::Error::other(other.to_string()),
        },
        other => std::io::Error::other(other.to_string()),
    };
    Error::Io { action: "write", path: target.to_owned(), source }
}
