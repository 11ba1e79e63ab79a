//! What the tests of this crate share: the shipped tokenizer and small corpora.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use elf_data::shards::{PrepareConfig, PrepareReport, prepare};
use elf_data::{Result, Tokenizer};
use parquet::arrow::ArrowWriter;

/// The repository's root.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// T5's tokenizer, as shipped.
pub fn t5() -> &'static Tokenizer {
    static T5: OnceLock<Tokenizer> = OnceLock::new();
    T5.get_or_init(|| Tokenizer::load(repository().join("data/tokenizers/t5")).unwrap())
}

/// A different tokenizer: T5's with one score changed.
pub fn other_tokenizer() -> Tokenizer {
    let bytes = fs::read(repository().join("data/tokenizers/t5/tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    json["model"]["vocab"][7][1] = serde_json::json!(-3.0);
    Tokenizer::from_json(serde_json::to_vec(&json).unwrap()).unwrap()
}

/// `n` documents of different lengths, every seventh one empty.
pub fn documents(n: usize) -> Vec<String> {
    const WORDS: [&str; 9] = ["the", "package", "libfoo", "provides", "headers", "für", "Entwickler", "and", "tools"];
    let text =
        |i: usize| (0..1 + i * 5 % 23).map(|k| WORDS[(i * 3 + k * k) % WORDS.len()]).collect::<Vec<_>>().join(" ");
    (0..n).map(|i| if i % 7 == 6 { String::new() } else { text(i) }).collect()
}

/// Writes string columns as Parquet.
pub fn write_parquet(path: &Path, columns: &[(&str, &[String])]) {
    let arrays =
        columns.iter().map(|(name, texts)| (*name, Arc::new(StringArray::from_iter_values(texts.iter())) as ArrayRef));
    let batch = RecordBatch::try_from_iter(arrays).unwrap();
    let mut writer = ArrowWriter::try_new(fs::File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// Prepares with T5's tokenizer, never stopping.
pub fn prepare_all(config: &PrepareConfig) -> Result<PrepareReport> {
    prepare(config, t5(), &mut |_| ControlFlow::Continue(()))
}
