//! Arrow files: types, faults, and mutations of real files.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, DictionaryArray, FixedSizeListArray, Int32Array, Int64Array, LargeListArray, LargeStringArray, ListArray,
    NullArray, RecordBatch, StringArray, StructArray, UInt16Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Int8Type};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
use elf_data::shards::inspect;
use elf_data::{CarriedText, Cursor, Dataset, Error, Example, OpenOptions, Order, OrderConfig, Share};
use proptest::prelude::*;
use support::{repository, t5};

fn fixture() -> PathBuf {
    let root = std::env::var_os("ELF_PARITY_DIR").map_or_else(|| repository().join("tests/parity"), PathBuf::from);
    root.join("hf_dataset")
}

/// Rows `0, 1, 2, 3, 0, 1, ...` ids long; ids count up from `first`.
fn ids(rows: usize, first: i32) -> Vec<Vec<i32>> {
    (0..rows).map(|i| (0..i % 4).map(|k| first + (i * 4 + k) as i32).collect()).collect()
}

fn list_of(values: ArrayRef, rows: &[Vec<i32>]) -> ArrayRef {
    let item = Arc::new(Field::new_list_field(values.data_type().clone(), true));
    Arc::new(ListArray::new(item, OffsetBuffer::from_lengths(rows.iter().map(Vec::len)), values, None))
}

fn large_list_of(values: ArrayRef, rows: &[Vec<i32>]) -> ArrayRef {
    let item = Arc::new(Field::new_list_field(values.data_type().clone(), true));
    Arc::new(LargeListArray::new(item, OffsetBuffer::from_lengths(rows.iter().map(Vec::len)), values, None))
}

fn int32(rows: &[Vec<i32>]) -> ArrayRef {
    list_of(Arc::new(Int32Array::from(rows.concat())), rows)
}

fn write(path: &Path, batches: &[RecordBatch]) {
    let mut writer = StreamWriter::try_new(fs::File::create(path).unwrap(), &batches[0].schema()).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.finish().unwrap();
}

fn write_columns(path: &Path, columns: Vec<(&str, ArrayRef)>) {
    write(path, &[RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true))).unwrap()]);
}

fn inputs(dataset: &Dataset) -> Vec<Vec<i32>> {
    (0..dataset.len()).map(|row| dataset.example(row).unwrap().input_ids).collect()
}

/// As many rows as Arrow's own reader finds.
#[test]
fn no_row_is_lost() {
    for name in ["save_to_disk", "save_to_disk_dict/train"] {
        let dataset = Dataset::open(&[fixture().join(name)]).unwrap();
        let rows = dataset.files().flat_map(|path| StreamReader::try_new(fs::File::open(path).unwrap(), None).unwrap());
        assert_eq!(dataset.len(), rows.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), "{name}");
    }
}

/// Every type of column gives the same rows.
#[test]
fn types_do_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.arrow");
    let rows = ids(9, 30_000);
    let flat = rows.concat();
    let wide = || Arc::new(Int64Array::from_iter_values(flat.iter().map(|&id| i64::from(id)))) as ArrayRef;
    let small = Arc::new(UInt16Array::from_iter_values(flat.iter().map(|&id| id as u16)));
    let columns = [int32(&rows), list_of(wide(), &rows), large_list_of(wide(), &rows), list_of(small, &rows)];
    for column in &columns {
        // What stands before the columns must be passed over.
        let nested = StructArray::from(vec![(Arc::new(Field::new("a", DataType::Int32, true)), int32_column(9))]);
        write_columns(
            &path,
            vec![
                ("nothing", Arc::new(NullArray::new(9))),
                ("nested", Arc::new(nested)),
                ("input_ids", column.clone()),
                ("condition_input_ids", columns[0].clone()),
            ],
        );
        let dataset = Dataset::open(&[&path]).unwrap();
        assert_eq!(inputs(&dataset), rows, "{}", column.data_type());
        assert_eq!(dataset.example(7).unwrap().condition_ids.as_ref(), Some(&rows[7]));
        assert_eq!(inspect(&[&path], 2).unwrap().tokens, flat.len() as u64);
    }
    let fixed = Arc::new(Field::new_list_field(DataType::Int32, true));
    let fixed = FixedSizeListArray::new(fixed, 3, Arc::new(Int32Array::from_iter_values(0..27)), None);
    write_columns(&path, vec![("input_ids", Arc::new(fixed))]);
    let dataset = Dataset::open(&[&path]).unwrap();
    assert_eq!(dataset.example(8).unwrap(), Example { input_ids: vec![24, 25, 26], condition_ids: None });
}

fn int32_column(rows: i32) -> ArrayRef {
    Arc::new(Int32Array::from_iter_values(0..rows))
}

/// Plain, large and dictionary-encoded strings, some of them null; and the numbers of rows.
#[test]
fn texts_are_carried_along() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.arrow");
    let texts = [Some("äöü"), None, Some(""), Some("x"), Some("äöü")];
    let expected: Vec<_> = texts.iter().map(|t| t.map(str::to_owned)).collect();
    let encoded: DictionaryArray<Int8Type> = texts.into_iter().collect();
    let columns: [ArrayRef; 3] = [
        Arc::new(StringArray::from(texts.to_vec())),
        Arc::new(LargeStringArray::from(texts.to_vec())),
        Arc::new(encoded),
    ];
    for column in columns {
        let index = Arc::new(Int64Array::from(vec![Some(9), None, Some(7), Some(6), Some(5)]));
        write_columns(
            &path,
            vec![
                ("target", column.clone()),
                ("input_ids", int32(&ids(5, 1))),
                ("index", index),
                ("input", column.clone()),
            ],
        );
        let dataset = Dataset::open(&[&path]).unwrap();
        let carried = dataset.carried(1..5).unwrap();
        assert_eq!(
            carried.iter().map(|c| c.target.clone()).collect::<Vec<_>>(),
            expected[1..],
            "{}",
            column.data_type()
        );
        assert_eq!(
            carried.iter().map(|c| c.input.clone()).collect::<Vec<_>>(),
            expected[1..],
            "{}",
            column.data_type()
        );
        assert_eq!(carried.iter().map(|c| c.index).collect::<Vec<_>>(), [None, Some(7), Some(6), Some(5)]);
        assert!(dataset.carried(3..6).is_err());
    }
    write_columns(&path, vec![("input_ids", int32(&ids(5, 1)))]);
    assert_eq!(Dataset::open(&[&path]).unwrap().carried(0..1).unwrap(), [CarriedText::default()]);
}

/// A dictionary may be replaced between batches: each batch keeps its own. Empty batches are passed over.
#[test]
fn batches_keep_their_dictionaries() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.arrow");
    let batch = |texts: &[&str]| {
        let encoded: DictionaryArray<Int8Type> = texts.iter().copied().map(Some).collect();
        let columns: Vec<(&str, ArrayRef)> =
            vec![("input_ids", int32(&ids(texts.len(), 1))), ("target", Arc::new(encoded))];
        RecordBatch::try_from_iter(columns).unwrap()
    };
    let batches = [batch(&["a", "b"]), batch(&[]), batch(&["c", "a", "c"]), batch(&["b"])];
    write(&path, &batches);
    let dataset = Dataset::open(&[&path]).unwrap();
    let carried: Vec<_> = dataset.carried(0..6).unwrap().into_iter().map(|c| c.target.unwrap()).collect();
    assert_eq!(carried, ["a", "b", "c", "a", "c", "b"]);

    // The file format is a stream with an index behind it.
    let mut writer = FileWriter::try_new(fs::File::create(&path).unwrap(), &batches[0].schema()).unwrap();
    writer.write(&batches[0]).unwrap();
    writer.finish().unwrap();
    assert_eq!(Dataset::open(&[&path]).unwrap().len(), 2);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
    assert!(message(&path).contains("closing mark"));
}

fn message(path: &Path) -> String {
    Dataset::open(&[path]).unwrap_err().to_string()
}

#[test]
fn faults_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.arrow");
    write_columns(&path, vec![("inputs_id", int32(&ids(5, 1)))]);
    assert!(message(&path).contains("no column `input_ids`") && message(&path).contains("did you mean `inputs_id`"));
    write_columns(&path, vec![("input_ids", int32_column(5))]);
    assert!(message(&path).contains("holds Int, not lists of integers"), "{}", message(&path));
    let null_row = ListArray::from_iter_primitive::<arrow::datatypes::Int32Type, _, _>([Some([Some(1)]), None]);
    write_columns(&path, vec![("input_ids", Arc::new(null_row))]);
    assert!(message(&path).contains("null"), "{}", message(&path));
    let null_id = ListArray::from_iter_primitive::<arrow::datatypes::Int32Type, _, _>([Some([Some(1), None])]);
    write_columns(&path, vec![("input_ids", Arc::new(null_id))]);
    assert!(message(&path).contains("null"), "{}", message(&path));

    for bytes in
        [&b"ARROW"[..], b"", b"not an Arrow file at all", b"\xff\xff\xff\xff", b"\xff\xff\xff\xff\xff\xff\xff\x7f"]
    {
        fs::write(&path, bytes).unwrap();
        assert!(matches!(Dataset::open(&[&path]).unwrap_err(), Error::Damaged { .. }), "{bytes:?}");
    }
    let error = message(&fixture().join("eval.jsonl"));
    assert!(error.contains("elf data prepare"), "{error}");

    // An id that does not fit is found when it is read, or when the tokenizer is known.
    let wide = vec![vec![1i32, 2], vec![70_000]];
    write_columns(&path, vec![("input_ids", int32(&wide))]);
    let mut dataset = Dataset::open(&[&path]).unwrap();
    assert_eq!(inputs(&dataset), wide);
    let error = dataset.check_tokenizer(t5()).unwrap_err();
    assert!(matches!(error, Error::IdOutOfRange { row: 1, id: 70_000, .. }), "{error}");
    assert!(matches!(dataset.example(2).unwrap_err(), Error::RowOutOfRange { row: 2, rows: 2 }));
    let huge = Int64Array::from(vec![1, i64::MAX]);
    write_columns(&path, vec![("input_ids", list_of(Arc::new(huge), &[vec![0], vec![0]]))]);
    let error = Dataset::open(&[&path]).unwrap().example(1).unwrap_err();
    assert!(matches!(error, Error::IdOutOfRange { row: 1, id: i64::MAX, .. }), "{error}");
}

/// Wherever a file is cut, it is refused: also between messages, where what is left looks whole.
#[test]
fn every_cut_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.arrow");
    let whole = fs::read(fixture().join("save_to_disk/data-00000-of-00002.arrow")).unwrap();
    let near_the_end = whole.len() - 64..whole.len();
    for length in (0..whole.len()).step_by(8).chain(near_the_end) {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(matches!(Dataset::open(&[&path]).unwrap_err(), Error::Damaged { .. }), "{length} bytes");
    }
    fs::write(&path, [&whole[..], b"more"].concat()).unwrap();
    assert!(message(&path).contains("4 bytes follow its end mark"));
}

/// Figures for ten million rows: opening, one row in the seeded order, and memory of our own.
/// `cargo test --release -p elf-data --test arrow_stream -- --ignored --nocapture`
#[test]
#[ignore = "writes a file of 2.7 GB"]
fn ten_million_rows_are_not_loaded() {
    const ROWS: usize = 10_000_000;
    const ROWS_OF_BATCH: usize = 1000;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.arrow");
    let rows: Vec<Vec<i32>> = (0..ROWS_OF_BATCH).map(|i| vec![i as i32; 64]).collect();
    let batch = RecordBatch::try_from_iter([("input_ids", int32(&rows))]).unwrap();
    let file = std::io::BufWriter::new(fs::File::create(&path).unwrap());
    let mut writer = StreamWriter::try_new(file, &batch.schema()).unwrap();
    (0..ROWS / ROWS_OF_BATCH).for_each(|_| writer.write(&batch).unwrap());
    writer.finish().unwrap();
    drop(writer);

    let anonymous = || -> Option<u64> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?.trim().trim_end_matches(" kB").parse().ok()
    };
    let before = anonymous();
    let begun = std::time::Instant::now();
    let dataset = Dataset::open_with(&[&path], OpenOptions { memory_limit: 0, cache: 0 }).unwrap();
    println!("opened {} rows in {:?}", dataset.len(), begun.elapsed());
    assert_eq!(dataset.len(), ROWS);
    let mut order = Order::new(OrderConfig { seed: 7, rows: ROWS, global_batch: 512 }, Share::alone(512)).unwrap();
    let mut cursor = Cursor::default();
    for round in ["first", "second"] {
        let (mut taken, mut ordering, mut reading) = (0, std::time::Duration::ZERO, std::time::Duration::ZERO);
        for _ in 0..400 {
            let begun = std::time::Instant::now();
            let (places, after) = order.next(cursor).unwrap();
            ordering += begun.elapsed();
            cursor = after;
            let rows: Vec<usize> = places.iter().map(|&(_, row)| row).collect();
            let begun = std::time::Instant::now();
            let examples = dataset.examples(&rows).unwrap();
            reading += begun.elapsed();
            taken += rows.len();
            for (row, example) in rows.iter().zip(examples) {
                assert_eq!(example.input_ids, vec![(row % ROWS_OF_BATCH) as i32; 64]);
            }
        }
        let each = |time: std::time::Duration| time.as_secs_f64() / taken as f64 * 1e6;
        println!("{round} {taken} rows: {:.2} µs a row to read, {:.2} to order", each(reading), each(ordering));
    }
    if let (Some(before), Some(after)) = (before, anonymous()) {
        println!("anonymous memory grew by {} MiB", after.saturating_sub(before) >> 10);
        assert!(after.saturating_sub(before) < 256 << 10, "the rows were loaded");
    }
}

/// What may be done to a file.
#[derive(Clone, Debug)]
enum Mutation {
    Byte(prop::sample::Index, u8),
    Word(prop::sample::Index, i64),
    Cut(prop::sample::Index),
    Remove(prop::sample::Index, usize),
    Insert(prop::sample::Index, Vec<u8>),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<prop::sample::Index>;
    let extreme = prop::sample::select(vec![-1, i64::MIN, i64::MAX, i64::from(i32::MAX), 1 << 40, 0, 1, 1 << 31]);
    prop_oneof![
        4 => (at(), any::<u8>()).prop_map(|(at, byte)| Mutation::Byte(at, byte)),
        4 => (at(), extreme).prop_map(|(at, word)| Mutation::Word(at, word)),
        1 => at().prop_map(Mutation::Cut),
        1 => (at(), 1..64usize).prop_map(|(at, n)| Mutation::Remove(at, n)),
        1 => (at(), prop::collection::vec(any::<u8>(), 1..64)).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
    ]
}

fn mutate(bytes: &mut Vec<u8>, mutation: &Mutation) {
    if bytes.is_empty() {
        return;
    }
    match mutation {
        Mutation::Byte(at, byte) => {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        Mutation::Word(at, word) => {
            // Numbers in Arrow files lie at multiples of four.
            let at = at.index(bytes.len()) & !3;
            bytes.iter_mut().skip(at).zip(word.to_le_bytes()).for_each(|(old, new)| *old = new);
        }
        Mutation::Cut(at) => bytes.truncate(at.index(bytes.len())),
        Mutation::Remove(at, n) => {
            let at = at.index(bytes.len());
            bytes.drain(at..(at + n).min(bytes.len()));
        }
        Mutation::Insert(at, new) => {
            let at = at.index(bytes.len());
            bytes.splice(at..at, new.iter().copied());
        }
    }
}

/// A file with dictionaries, the other strings and both sizes of lists, which the real files lack.
fn rich_file(path: &Path) {
    let texts = ["a", "bc", "a", "d"];
    let encoded: DictionaryArray<Int8Type> = texts.iter().copied().map(Some).collect();
    let rows = ids(4, 5);
    let values = Arc::new(Int64Array::from_iter_values(rows.concat().into_iter().map(i64::from)));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("input_ids", large_list_of(values, &rows)),
        ("input", Arc::new(LargeStringArray::from(texts.to_vec()))),
        ("target", Arc::new(encoded)),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let options = IpcWriteOptions::default();
    let file = fs::File::create(path).unwrap();
    let mut writer = StreamWriter::try_new_with_options(file, &batch.schema(), options).unwrap();
    writer.write(&batch).unwrap();
    writer.write(&batch.slice(1, 2)).unwrap();
    writer.finish().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// A damaged file is refused, or gives rows that are no larger than the file; there is never a panic.
    #[test]
    fn fuzz_arrow_files(which in 0..4usize, mutations in prop::collection::vec(mutation(), 1..4)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.arrow");
        let mut bytes = match which {
            0 => fs::read(fixture().join("save_to_disk/data-00000-of-00002.arrow")).unwrap(),
            1 => fs::read(fixture().join("save_to_disk/data-00001-of-00002.arrow")).unwrap(),
            2 => fs::read(fixture().join("save_to_disk_dict/train/data-00000-of-00001.arrow")).unwrap(),
            _ => {
                rich_file(&path);
                fs::read(&path).unwrap()
            }
        };
        mutations.iter().for_each(|m| mutate(&mut bytes, m));
        fs::write(&path, &bytes).unwrap();
        if let Ok(dataset) = Dataset::open(&[&path]) {
            prop_assert!(dataset.len() <= bytes.len());
            for row in 0..dataset.len() {
                if let Ok(example) = dataset.example(row) {
                    prop_assert!(example.input_ids.len() <= bytes.len());
                }
                let _ = dataset.carried(row..row + 1);
            }
            let _ = inspect(&[&path], 1);
        }
    }

    #[test]
    fn fuzz_lists_of_arrow_files(dict in any::<bool>(), mutations in prop::collection::vec(mutation(), 1..3)) {
        let folder = tempfile::tempdir().unwrap();
        let (from, name) = if dict { ("save_to_disk_dict", "dataset_dict.json") } else { ("save_to_disk", "state.json") };
        let mut bytes = fs::read(fixture().join(from).join(name)).unwrap();
        mutations.iter().for_each(|m| mutate(&mut bytes, m));
        fs::write(folder.path().join(name), &bytes).unwrap();
        prop_assert!(Dataset::open(&[folder.path()]).is_err(), "there are no data files");
    }
}
