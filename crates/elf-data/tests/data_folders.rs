//! Folders of `save_to_disk` and of the hub, mixed kinds of files, and pairs of texts as rows.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use elf_data::evaluation::{EvaluationPair, read_pairs};
use elf_data::shards::EosOptions;
use elf_data::{Dataset, Example, OpenOptions};
use support::{repository, t5};

fn fixture() -> PathBuf {
    let root = std::env::var_os("ELF_PARITY_DIR").map_or_else(|| repository().join("tests/parity"), PathBuf::from);
    root.join("hf_dataset")
}

fn inputs(dataset: &Dataset) -> Vec<Vec<i32>> {
    (0..dataset.len()).map(|row| dataset.example(row).unwrap().input_ids).collect()
}

fn message(path: &Path) -> String {
    Dataset::open(&[path]).unwrap_err().to_string()
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn folders_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let saved = folder.path().join("saved");
    copy_folder(&fixture().join("save_to_disk"), &saved);
    assert!(Dataset::open(&[&saved]).is_ok());
    fs::write(saved.join("state.json"), r#"{"_data_files": [{"filename": "../x.arrow"}]}"#).unwrap();
    assert!(message(&saved).contains("not the name of a file"));
    fs::write(saved.join("state.json"), r#"{"_data_files": []}"#).unwrap();
    assert!(message(&saved).contains("lists no files"));
    fs::write(saved.join("state.json"), "{").unwrap();
    assert!(message(&saved).contains("state.json"));
    // Without a list, as in the cache of `datasets`, the names say what belongs together.
    fs::remove_file(saved.join("state.json")).unwrap();
    assert!(Dataset::open(&[&saved]).is_ok());
    fs::remove_file(saved.join("data-00000-of-00002.arrow")).unwrap();
    assert!(message(&saved).contains("data-00000-of-00002.arrow"));

    let dict = folder.path().join("dict");
    for split in ["train", "test"] {
        copy_folder(&fixture().join("save_to_disk_dict/train"), &dict.join(split));
    }
    fs::write(dict.join("dataset_dict.json"), r#"{"splits": ["train", "test"]}"#).unwrap();
    let error = message(&dict);
    assert!(error.contains("several splits") && error.contains("dict/test"), "{error}");
    assert!(Dataset::open(&[dict.join("test")]).is_ok());
    assert!(Dataset::open(&[dict.join("nowhere")]).is_err());
    fs::remove_dir_all(dict.join("test")).unwrap();
    fs::write(dict.join("dataset_dict.json"), r#"{"splits": ["../train"]}"#).unwrap();
    assert!(message(&dict).contains("not the name of a folder"));

    let hub = folder.path().join("hub");
    copy_folder(&fixture().join("parquet/data"), &hub);
    fs::copy(hub.join("train-00000-of-00002.parquet"), hub.join("test-00000-of-00001.parquet")).unwrap();
    assert!(message(&hub).contains("several splits"));
    assert_eq!(Dataset::open(&[hub.join("test")]).unwrap().files().count(), 1);
    assert_eq!(Dataset::open(&[hub.join("train")]).unwrap().files().count(), 2);
}

/// Arrow and Parquet files of the same columns may be read as one.
#[test]
fn kinds_can_be_mixed() {
    let paths = [fixture().join("save_to_disk"), fixture().join("parquet"), fixture().join("save_to_disk")];
    let once = inputs(&Dataset::open(&paths[..1]).unwrap());
    for memory_limit in [0, 1 << 20] {
        let mut dataset = Dataset::open_with(&paths, OpenOptions { memory_limit, cache: 0 }).unwrap();
        dataset.check_tokenizer(t5()).unwrap();
        assert_eq!(inputs(&dataset), [&once[..], &once, &once].concat());
        let carried = dataset.carried(0..dataset.len()).unwrap();
        assert_eq!(carried[..once.len()], carried[once.len()..2 * once.len()]);
        assert_eq!(carried[..once.len()], carried[2 * once.len()..]);
    }
}

#[test]
fn pairs_become_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("eval.jsonl");
    fs::write(
        &path,
        "{\"input\": \"a b\", \"output\": \"c\", \"index\": 4}\n\n{\"input\": \"d\", \"target\": \"e\"}\n",
    )
    .unwrap();
    let pairs = read_pairs(&path).unwrap();
    let pair = |index, input: &str, target: &str| EvaluationPair {
        index,
        input: input.to_owned(),
        target: Some(target.to_owned()),
    };
    assert_eq!(pairs, [pair(4, "a b", "c"), pair(1, "d", "e")]);
    let eos = EosOptions { target: false, condition: true };
    let dataset = Dataset::from_pairs(pairs, t5(), eos).unwrap();
    assert_eq!(dataset.eos_options(t5()).unwrap(), eos);
    let mut condition = t5().encode("a b").unwrap();
    condition.push(t5().eos_id().unwrap());
    let expected = Example { input_ids: t5().encode("c").unwrap(), condition_ids: Some(condition) };
    assert_eq!(dataset.example(0).unwrap(), expected);
    assert_eq!(dataset.carried(1..2).unwrap()[0].target.as_deref(), Some("e"));
    assert!(dataset.is_conditional() && dataset.metadata().is_none());

    for (line, expected) in [
        ("{\"output\": \"c\"}", "no `input`"),
        ("{\"input\": 3}", "`input` is not a string"),
        ("{\"input\": \"a\", \"output\": \"b\", \"target\": \"c\"}", "differ"),
        ("[1]\n", "not a JSON object"),
        ("{\"input\": \"a", "breaks off"),
        ("", "no pairs"),
    ] {
        fs::write(&path, line).unwrap();
        let error = read_pairs(&path).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
