//! The same rows as Hugging Face `save_to_disk` folders, as Parquet shards and as evaluation JSONL: all must give the
//! rows of `rows.json`.

use std::path::PathBuf;

use elf_data::evaluation::read_pairs;
use elf_data::{CarriedText, Dataset, Example, OpenOptions};
use elf_tests::parity_path;
use serde::Deserialize;

#[derive(Deserialize)]
struct Row {
    index: i64,
    input: String,
    target: String,
    input_ids: Vec<i32>,
    condition_input_ids: Vec<i32>,
}

fn fixture() -> PathBuf {
    parity_path("hf_dataset")
}

fn rows() -> Vec<Row> {
    let rows: Vec<Row> = serde_json::from_slice(&std::fs::read(fixture().join("rows.json")).unwrap()).unwrap();
    assert!(!rows.is_empty());
    rows
}

fn same(path: &str) {
    same_rows(path, &rows());
}

fn same_rows(path: &str, rows: &[Row]) {
    for options in [OpenOptions::default(), OpenOptions { memory_limit: 0, cache: 0 }] {
        let dataset = Dataset::open_with(&[fixture().join(path)], options).unwrap();
        assert_eq!(dataset.len(), rows.len(), "{path}");
        assert!(dataset.is_conditional());
        let carried = dataset.carried(0..rows.len()).unwrap();
        // Backwards, so that a reader cannot rely on the rows that it has just read.
        for (i, row) in rows.iter().enumerate().rev() {
            let expected =
                Example { input_ids: row.input_ids.clone(), condition_ids: Some(row.condition_input_ids.clone()) };
            assert_eq!(dataset.example(i).unwrap(), expected, "{path}, row {i}");
            let expected = CarriedText {
                index: Some(row.index),
                input: Some(row.input.clone()),
                target: Some(row.target.clone()),
            };
            assert_eq!(carried[i], expected, "{path}, row {i}");
            assert_eq!(dataset.carried(i..i + 1).unwrap(), [expected], "{path}, row {i}");
        }
    }
}

#[test]
fn save_to_disk_parity() {
    same("save_to_disk");
}

#[test]
fn save_to_disk_of_a_dict_parity() {
    // Its only split holds the first rows, not all of them; a test of elf-data counts them with Arrow's own reader.
    let all = rows();
    let count = Dataset::open(&[fixture().join("save_to_disk_dict")]).unwrap().len();
    assert!(count > 0 && count <= all.len());
    same_rows("save_to_disk_dict", &all[..count]);
    same_rows("save_to_disk_dict/train", &all[..count]);
}

#[test]
fn parquet_shards_parity() {
    same("parquet");
    same("parquet/data");
    same("parquet/data/train");
}

#[test]
fn evaluation_jsonl_parity() {
    let pairs = read_pairs(&fixture().join("eval.jsonl")).unwrap();
    let rows = rows();
    assert_eq!(pairs.len(), rows.len());
    for (pair, row) in pairs.iter().zip(&rows) {
        assert_eq!((pair.index, &pair.input, pair.target.as_ref()), (row.index, &row.input, Some(&row.target)));
    }
}
