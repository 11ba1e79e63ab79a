//! Reading text columns, and what is said when they cannot be read.

mod support;

use std::fs;
use std::path::Path;

use elf_data::Error;
use elf_data::source::{PlainText, Source, TextRow};
use support::{documents, write_parquet};

fn rows(path: &Path, columns: &[&str]) -> elf_data::Result<Vec<TextRow>> {
    Source::open(&[path], columns, PlainText::Lines)?.rows().collect()
}

#[test]
fn the_same_texts_from_every_kind_of_file() {
    let folder = tempfile::tempdir().unwrap();
    let texts: Vec<String> = documents(300).into_iter().filter(|t| !t.is_empty()).collect();
    let expected: Vec<TextRow> = texts.iter().map(|t| vec![t.clone()]).collect();

    let parquet = folder.path().join("a.parquet");
    write_parquet(&parquet, &[("other", &texts), ("text", &texts)]);
    let jsonl = folder.path().join("a.jsonl");
    let lines: Vec<String> = texts.iter().map(|t| serde_json::json!({"text": t, "n": 1}).to_string()).collect();
    fs::write(&jsonl, lines.join("\n") + "\n\n").unwrap();
    let plain = folder.path().join("a.txt");
    fs::write(&plain, texts.join("\r\n") + "\n\n").unwrap();
    for file in [&parquet, &jsonl, &plain] {
        assert_eq!(rows(file, &["text"]).unwrap(), expected, "{}", file.display());
    }
    let all = rows(folder.path(), &["text"]).unwrap();
    assert_eq!(all.len(), 3 * texts.len(), "a folder stands for its files");
    let whole: Vec<String> =
        Source::open(&[&plain], &["text"], PlainText::WholeFile).unwrap().texts().map(Result::unwrap).collect();
    assert_eq!(whole, [fs::read_to_string(&plain).unwrap()]);
}

#[test]
fn columns_come_in_the_order_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let (de, en) = (vec!["ja".to_owned(), "nein".to_owned()], vec!["yes".to_owned(), "no".to_owned()]);
    let parquet = folder.path().join("p.parquet");
    write_parquet(&parquet, &[("de", &de), ("en", &en)]);
    let jsonl = folder.path().join("p.jsonl");
    fs::write(&jsonl, "{\"de\":\"ja\",\"en\":\"yes\"}\n{\"en\":\"no\",\"de\":\"nein\"}").unwrap();
    for file in [&parquet, &jsonl] {
        assert_eq!(rows(file, &["en", "de"]).unwrap(), [["yes", "ja"], ["no", "nein"]]);
        assert_eq!(rows(file, &["en", "en"]).unwrap(), [["yes", "yes"], ["no", "no"]]);
    }
}

#[test]
fn a_missing_column_names_those_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let parquet = folder.path().join("p.parquet");
    write_parquet(&parquet, &[("description", &documents(3)), ("package", &documents(3))]);
    let jsonl = folder.path().join("p.jsonl");
    fs::write(&jsonl, "{\"description\":\"a\",\"package\":\"b\"}\n").unwrap();
    for file in [&parquet, &jsonl] {
        let error = Source::open(&[file], &["descriptoin"], PlainText::Lines).unwrap_err().to_string();
        assert!(error.contains("did you mean `description`?") && error.contains("`package`"), "{error}");
    }
    let plain = folder.path().join("p.txt");
    fs::write(&plain, "a\n").unwrap();
    let error = rows(&plain, &["description"]).unwrap_err().to_string();
    assert!(error.contains("it has `text`"), "{error}");
}

#[test]
fn wrong_types_and_broken_records_name_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.jsonl");
    let message = |content: &str| {
        fs::write(&file, content).unwrap();
        rows(&file, &["text"]).unwrap_err().to_string()
    };
    let number = message("{\"text\":\"a\"}\n{\"text\":3}\n");
    assert!(number.contains("line 2") && number.contains("`text` is a number, not a string"), "{number}");
    let broken = message("{\"text\":\"a\"}\nnonsense\n{\"text\":\"b\"}\n");
    assert!(broken.contains("line 2") && broken.contains("not a JSON object"), "{broken}");
    let cut = message("{\"text\":\"a\"}\n{\"text\":\"b");
    assert!(cut.contains("truncated") && cut.contains("line 2"), "{cut}");
    let later = message("{\"text\":\"a\"}\n{\"txt\":\"b\"}\n");
    assert!(later.contains("line 2") && later.contains("no `text`"), "{later}");

    let plain = folder.path().join("latin1.txt");
    fs::write(&plain, b"gut\nsch\xf6n\n").unwrap();
    let latin1 = rows(&plain, &["text"]).unwrap_err().to_string();
    assert!(latin1.contains("line 2") && latin1.contains("UTF-8"), "{latin1}");
}

#[test]
fn nothing_comes_after_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.jsonl");
    fs::write(&file, "{\"text\":\"a\"}\nnonsense\n{\"text\":\"b\"}\n").unwrap();
    let source = Source::open(&[&file], &["text"], PlainText::Lines).unwrap();
    let kinds: Vec<bool> = source.rows().map(|row| row.is_ok()).collect();
    assert_eq!(kinds, [true, false]);
}

#[test]
fn parquet_that_is_not_text_null_or_cut() {
    let folder = tempfile::tempdir().unwrap();
    let shards = support::repository().join("tests/parity/hf_dataset/parquet/data/train-00000-of-00002.parquet");
    let error = rows(&shards, &["input_ids"]).unwrap_err();
    assert!(matches!(error, Error::WrongType { .. }), "{error}");

    let file = folder.path().join("p.parquet");
    write_parquet(&file, &[("text", &documents(2000))]);
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let cut = rows(&file, &["text"]).unwrap_err().to_string();
    assert!(cut.contains("p.parquet") && cut.contains("truncated or damaged") && cut.contains("again"), "{cut}");

    let nulls = arrow::array::StringArray::from(vec![Some("a"), None]);
    let batch =
        arrow::array::RecordBatch::try_from_iter([("text", std::sync::Arc::new(nulls) as arrow::array::ArrayRef)])
            .unwrap();
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(fs::File::create(&file).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let null = rows(&file, &["text"]).unwrap_err().to_string();
    assert!(null.contains("row 2") && null.contains("null"), "{null}");
}

#[test]
fn paths_without_text_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let empty = rows(folder.path(), &["text"]).unwrap_err().to_string();
    assert!(empty.contains("no text files"), "{empty}");
    let missing = rows(&folder.path().join("absent.txt"), &["text"]).unwrap_err().to_string();
    assert!(missing.contains("absent.txt"), "{missing}");
}
