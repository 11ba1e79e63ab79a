//! Files of text as people write them: compressions, structs, lists, encodings, and folders with splits.

mod support;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, DictionaryArray, ListArray, RecordBatch, StringArray, StructArray};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, Field, Fields, Int8Type};
use elf_data::evaluation::read_pairs;
use elf_data::source::{PlainText, Source, TextRow};
use elf_data::{Dataset, Error};
use parquet::arrow::ArrowWriter;
use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use parquet::file::properties::{WriterProperties, WriterVersion};
use support::repository;

fn rows(path: &Path, columns: &[&str]) -> elf_data::Result<Vec<TextRow>> {
    Source::open(&[path], columns, PlainText::Lines)?.rows().collect()
}

fn message(path: &Path, columns: &[&str]) -> String {
    rows(path, columns).unwrap_err().to_string()
}

fn write(path: &Path, columns: Vec<(&str, ArrayRef)>, properties: WriterProperties) {
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true))).unwrap();
    let mut writer = ArrowWriter::try_new(fs::File::create(path).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn texts(texts: &[Option<&str>]) -> ArrayRef {
    Arc::new(StringArray::from(texts.to_vec()))
}

/// `{"de": ..., "en": ...}` per row, as the hub's WMT14 has it.
fn translation(de: &[Option<&str>], en: &[Option<&str>], nulls: Option<NullBuffer>) -> ArrayRef {
    let field = |name: &str| Field::new(name, DataType::Utf8, true);
    Arc::new(StructArray::new(Fields::from(vec![field("de"), field("en")]), vec![texts(de), texts(en)], nulls))
}

fn lists(members: &[Option<&str>], lengths: &[usize], nulls: Option<NullBuffer>) -> ArrayRef {
    let item = Arc::new(Field::new_list_field(DataType::Utf8, true));
    Arc::new(ListArray::new(item, OffsetBuffer::from_lengths(lengths.iter().copied()), texts(members), nulls))
}

#[test]
fn every_usual_compression_encoding_and_page_version_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.parquet");
    let long: Vec<String> = (0..3000).map(|i| format!("text {}", i % 40)).collect();
    let expected: Vec<TextRow> = long.iter().map(|text| vec![text.clone()]).collect();
    for compression in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
        Compression::ZSTD(ZstdLevel::default()),
    ] {
        for (version, dictionary) in [(WriterVersion::PARQUET_1_0, true), (WriterVersion::PARQUET_2_0, false)] {
            let properties = WriterProperties::builder()
                .set_compression(compression)
                .set_writer_version(version)
                .set_dictionary_enabled(dictionary);
            let array: ArrayRef = Arc::new(StringArray::from_iter_values(&long));
            write(&file, vec![("text", array)], properties.build());
            assert!(rows(&file, &["text"]).unwrap() == expected, "{compression:?} {version:?}");
        }
    }
    let array: DictionaryArray<Int8Type> = ["a", "b", "a"].into_iter().collect();
    write(&file, vec![("text", Arc::new(array))], WriterProperties::default());
    assert_eq!(rows(&file, &["text"]).unwrap(), [["a"], ["b"], ["a"]]);
}

#[test]
fn columns_inside_structs_are_named_with_a_dot() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wmt.parquet");
    let pairs = translation(&[Some("ja"), Some("nein")], &[Some("yes"), Some("no")], None);
    write(&file, vec![("translation", pairs.clone()), ("a.b", texts(&[Some("x"), Some("y")]))], Default::default());
    assert_eq!(rows(&file, &["translation.en", "translation.de"]).unwrap(), [["yes", "ja"], ["no", "nein"]]);
    assert_eq!(rows(&file, &["a.b"]).unwrap(), [["x"], ["y"]], "a whole name comes first");
    let structs = message(&file, &["translation"]);
    assert!(structs.contains("`translation.de`, `translation.en`"), "{structs}");
    assert!(message(&file, &["translation.fr"]).contains("it has `translation.de`, `translation.en`"));
    assert!(message(&file, &["translation.en.x"]).contains("it has `translation.en`"));

    let nested: ArrayRef = Arc::new(StructArray::from(vec![(
        Arc::new(Field::new("translation", pairs.data_type().clone(), true)),
        pairs,
    )]));
    write(&file, vec![("row", nested)], Default::default());
    assert_eq!(rows(&file, &["row.translation.en"]).unwrap(), [["yes"], ["no"]]);

    let file = folder.path().join("wmt.jsonl");
    fs::write(&file, r#"{"translation": {"de": "ja", "en": "yes"}, "a.b": "x"}"#).unwrap();
    assert_eq!(rows(&file, &["translation.en", "a.b", "a.b"]).unwrap(), [["yes", "x", "x"]]);
    assert!(message(&file, &["translation.fr"]).contains("no column `translation.fr`"));
}

#[test]
fn nulls_are_refused_with_their_row() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.parquet");
    let whole = [Some("a"), Some("b"), Some("c")];
    let null = [Some("a"), Some("b"), None];
    for (array, column) in [
        (texts(&null), "x"),
        (translation(&whole, &null, None), "x.en"),
        (translation(&whole, &whole, Some(NullBuffer::from(vec![true, true, false]))), "x.en"),
        (lists(&null, &[1, 1, 1], None), "x"),
        (lists(&whole, &[1, 1, 1], Some(NullBuffer::from(vec![true, true, false]))), "x"),
    ] {
        write(&file, vec![("x", array)], Default::default());
        let error = Source::open(&[&file], &[column], PlainText::Lines).unwrap().text_lists().find_map(Result::err);
        let message = error.unwrap().to_string();
        assert!(message.contains("row 3") && message.contains("is null") && !message.contains("damaged"), "{message}");
    }
    let file = folder.path().join("x.jsonl");
    fs::write(&file, "{\"input\": \"x\", \"output\": \"y\"}\n{\"input\": \"x\", \"output\": null}\n").unwrap();
    for message in [message(&file, &["input", "output"]), read_pairs(&file).unwrap_err().to_string()] {
        assert!(message.contains("line 2") && message.contains("`output` is null"), "{message}");
    }
    fs::write(&file, "{\"input\": \"x\", \"output\": \"y\"}\n{\"input\": \"x\"}\n").unwrap();
    let missing = read_pairs(&file).unwrap_err().to_string();
    assert!(missing.contains("line 2") && missing.contains("no `output`"), "{missing}");
    fs::write(&file, "{\"input\": \"x\"}\n{\"input\": \"x\", \"target\": \"y\"}\n").unwrap();
    assert!(read_pairs(&file).unwrap_err().to_string().contains("line 2"));
}

#[test]
fn null_ids_are_refused_with_their_row() {
    use arrow::array::{Int32Array, Int64Array};
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.parquet");
    let ids = |ids: ArrayRef, lengths: &[usize], nulls: Option<NullBuffer>| {
        let item = Arc::new(Field::new_list_field(ids.data_type().clone(), true));
        let list = ListArray::new(item, OffsetBuffer::from_lengths(lengths.iter().copied()), ids, nulls);
        write(&file, vec![("input_ids", Arc::new(list))], Default::default());
        Dataset::open(&[&file]).unwrap_err()
    };
    let int32 = |ids: &[Option<i32>]| Arc::new(Int32Array::from(ids.to_vec())) as ArrayRef;
    let null_row = ids(int32(&[Some(1); 3]), &[1, 2, 0], Some(NullBuffer::from(vec![true, true, false])));
    let null_id = ids(int32(&[Some(1), Some(2), Some(3), None]), &[1, 0, 3], None);
    let large = ids(Arc::new(Int64Array::from(vec![1, 2, 3, 1 << 40])), &[2, 0, 2], None);
    for error in [null_row, null_id, large] {
        assert!(matches!(error, Error::BadRecord { .. }), "{error}");
        assert!(error.to_string().contains("row 3"), "{error}");
    }
}

#[test]
fn lists_of_texts_are_several_references() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x.parquet");
    let references = lists(&[Some("a"), Some("b"), Some("c")], &[2, 0, 1], None);
    write(&file, vec![("refs", references), ("one", texts(&[Some("x"); 3]))], Default::default());
    let lists = |file: &Path, column| -> Vec<Vec<String>> {
        Source::open(&[file], &[column], PlainText::Lines).unwrap().text_lists().map(Result::unwrap).collect()
    };
    assert_eq!(lists(&file, "refs"), [&["a", "b"][..], &[], &["c"]]);
    assert_eq!(lists(&file, "one"), [["x"]; 3]);
    let jsonl = folder.path().join("x.jsonl");
    fs::write(&jsonl, "{\"refs\": [\"a\", \"b\"]}\n{\"refs\": \"c\"}\n").unwrap();
    assert_eq!(lists(&jsonl, "refs"), [&["a", "b"][..], &["c"]]);
    for file in [&file, &jsonl] {
        let message = message(file, &["refs"]);
        assert!(message.contains("row 1") && message.contains("`refs` is a list"), "{message}");
    }
    fs::write(&jsonl, "{\"refs\": [\"a\", 7]}\n").unwrap();
    assert!(message(&jsonl, &["refs"]).contains("`refs` is a list, not a string"));
}

#[test]
fn byte_order_marks_and_carriage_returns_are_no_text() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("a.txt"), "\u{feff}eins\r\n\r\ndrei\r\n").unwrap();
    fs::write(at("b.jsonl"), "\u{feff}{\"text\": \"eins\"}\r\n\r\n{\"text\": \"drei\"}\r\n").unwrap();
    for name in ["a.txt", "b.jsonl"] {
        assert_eq!(rows(&at(name), &["text"]).unwrap(), [["eins"], ["drei"]], "{name}");
    }
    let every_line = Source::open(&[at("a.txt")], &["text"], PlainText::EveryLine).unwrap();
    assert_eq!(every_line.texts().map(Result::unwrap).collect::<Vec<_>>(), ["eins", "", "drei"]);
    let whole = Source::open(&[at("a.txt")], &["text"], PlainText::WholeFile).unwrap();
    assert_eq!(whole.texts().next().unwrap().unwrap(), "eins\r\n\r\ndrei\r\n");
    fs::write(at("pairs.jsonl"), "\u{feff}{\"input\": \"a\", \"output\": \"b\"}\r\n").unwrap();
    assert_eq!(read_pairs(&at("pairs.jsonl")).unwrap().len(), 1);
}

#[test]
fn compressed_text_is_read_and_stand_ins_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let gzip = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    fs::write(at("a.jsonl.gz"), gzip("{\"text\": \"a\"}\n")).unwrap();
    fs::write(at("b.txt.gz"), gzip("b\n")).unwrap();
    fs::write(at("c.jsonl.zst"), zstd::encode_all(&b"{\"text\": \"c\"}"[..], 1).unwrap()).unwrap();
    fs::write(at("notes.md"), "no data").unwrap();
    assert_eq!(rows(folder.path(), &["text"]).unwrap(), [["a"], ["b"], ["c"]]);

    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n";
    for name in ["p.parquet", "p.jsonl", "p.txt"] {
        fs::write(at(name), pointer).unwrap();
        let message = message(&at(name), &["text"]);
        assert!(message.contains(name) && message.contains("git lfs pull"), "{message}");
    }
    let shards = Dataset::open(&[at("p.parquet")]).unwrap_err().to_string();
    assert!(shards.contains("git lfs pull"), "{shards}");
    fs::write(at("e.parquet"), b"PAREaaaaaaaaaaaaaaaa").unwrap();
    assert!(message(&at("e.parquet"), &["text"]).contains("encrypted"));
}

#[test]
fn splits_of_a_folder_are_not_mixed() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("data")).unwrap();
    let [train, test] =
        ["train", "test"].map(|split| at(&format!("data/{split}-00000-of-00001-0123456789abcdef.parquet")));
    write(&train, vec![("text", texts(&[Some("learned")]))], Default::default());
    write(&test, vec![("text", texts(&[Some("tested")]))], Default::default());
    let several = message(folder.path(), &["text"]);
    assert!(several.contains("several splits") && several.contains("/test`"), "{several}");
    assert_eq!(rows(&at("train"), &["text"]).unwrap(), [["learned"]]);
    assert_eq!(rows(&at("test"), &["text"]).unwrap(), [["tested"]]);
    fs::rename(&test, at("data/test-00000-of-00002-0123456789abcdef.parquet")).unwrap();
    assert!(message(&at("test"), &["text"]).contains("test-00001-of-00002.parquet"));
    assert!(message(&at("validation"), &["text"]).contains("cannot open"));

    // The same for token shards.
    let shards = repository().join("tests/parity/hf_dataset/parquet/data");
    let tokens = folder.path().join("tokens");
    fs::create_dir_all(tokens.join("test")).unwrap();
    for (from, to) in [("train-00000-of-00002", "train-0.parquet"), ("train-00001-of-00002", "test/x.parquet")] {
        fs::copy(shards.join(format!("{from}.parquet")), tokens.join(to)).unwrap();
    }
    // Names of folders come before names of files.
    assert_eq!(Dataset::open(&[&tokens]).unwrap().files().collect::<Vec<_>>(), [tokens.join("test/x.parquet")]);
    fs::rename(tokens.join("test"), tokens.join(".test")).unwrap();
    assert_eq!(Dataset::open(&[&tokens]).unwrap().files().collect::<Vec<_>>(), [tokens.join("train-0.parquet")]);
}
