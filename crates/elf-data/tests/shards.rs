//! Preparation of token shards: round trips, interruption, and refusals.

mod support;

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use elf_data::shards::{EosOptions, PrepareConfig, inspect, prepare};
use elf_data::{Dataset, Error, Example, OpenOptions, Packer, Packing};
use proptest::prelude::*;
use support::{documents, other_tokenizer, prepare_all, repository, t5, write_parquet};

const DOCUMENTS: usize = 5000;

/// A corpus with the columns `description` and `synopsis`, to be prepared in seven shards.
fn corpus(folder: &Path) -> PrepareConfig {
    let texts = documents(DOCUMENTS);
    let file = folder.join("texts.parquet");
    let synopses: Vec<String> = (0..DOCUMENTS).map(|i| format!("synopsis {i}")).collect();
    write_parquet(&file, &[("description", &texts), ("synopsis", &synopses)]);
    let mut config = PrepareConfig::new(vec![file], folder.join("shards"), "description");
    config.documents_per_shard = 800;
    config
}

fn all(dataset: &Dataset) -> Vec<Example> {
    dataset.examples(&(0..dataset.len()).collect::<Vec<_>>()).unwrap()
}

/// Names and bytes of all files of a folder.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|file| (file.file_name().unwrap().into(), fs::read(file).unwrap())).collect()
}

#[test]
fn documents_become_rows_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = corpus(folder.path());
    config.condition_column = Some("synopsis".to_owned());
    config.eos = EosOptions { target: false, condition: true };
    let report = prepare_all(&config).unwrap();
    let expected: Vec<Example> = documents(DOCUMENTS)
        .iter()
        .enumerate()
        .filter(|(_, text)| !text.is_empty())
        .map(|(i, text)| {
            let mut condition = t5().encode(&format!("synopsis {i}")).unwrap();
            condition.push(1);
            Example { input_ids: t5().encode(text).unwrap(), condition_ids: Some(condition) }
        })
        .collect();

    let mut in_memory = Dataset::open(&[&config.output]).unwrap();
    assert!(all(&in_memory) == expected);
    in_memory.check_tokenizer(t5()).unwrap();
    for cache in [0, 1 << 14, 1 << 30] {
        let on_disk = Dataset::open_with(&[&config.output], OpenOptions { memory_limit: 0, cache }).unwrap();
        assert!(all(&on_disk) == expected, "with a cache of {cache} bytes");
        assert!(on_disk.example(17).unwrap() == expected[17]);
        assert!(matches!(on_disk.example(expected.len()), Err(Error::RowOutOfRange { .. })));
    }

    let tokens: usize = expected.iter().map(|e| e.input_ids.len()).sum();
    assert_eq!(report.total.shards, DOCUMENTS.div_ceil(800));
    assert_eq!((report.total.rows, report.total.tokens), (expected.len() as u64, tokens as u64));
    assert_eq!(report.empty_documents, (DOCUMENTS - expected.len()) as u64);
    let metadata = in_memory.metadata().unwrap();
    assert_eq!(metadata.tokenizer, t5().fingerprint());
    assert_eq!((metadata.eos, metadata.packing), (config.eos, Packing::None));
    assert_eq!(metadata.source, ["texts.parquet"]);

    let summary = inspect(&[&config.output], 3).unwrap();
    assert_eq!((summary.rows, summary.tokens), (expected.len(), tokens as u64));
    assert_eq!(summary.condition_tokens, report.total.condition_tokens);
    assert!(summary.first == expected[..3]);
    let mut lengths: Vec<usize> = expected.iter().map(|e| e.input_ids.len()).collect();
    lengths.sort_unstable();
    let nearest_rank = |percent: usize| lengths[(lengths.len() * percent).div_ceil(100) - 1];
    let found = summary.target_lengths;
    assert_eq!((found.min, found.max), (lengths[0], lengths[lengths.len() - 1]));
    assert_eq!(
        (found.p10, found.p50, found.p90, found.p99),
        (nearest_rank(10), nearest_rank(50), nearest_rank(90), nearest_rank(99))
    );
}

#[test]
fn packed_rows_hold_all_documents_joined_by_eos() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = corpus(folder.path());
    config.packing = Packing::Concat { max_length: 64 };
    config.eos.target = true;
    let report = prepare_all(&config).unwrap();
    let rows = all(&Dataset::open(&[&config.output]).unwrap());
    let mut expected = Vec::new();
    for text in documents(DOCUMENTS).iter().filter(|text| !text.is_empty()) {
        expected.extend(t5().encode(text).unwrap());
        expected.push(1);
    }
    assert!(rows.iter().flat_map(|row| row.input_ids.clone()).eq(expected.iter().copied()));
    let short = rows.iter().filter(|row| row.input_ids.len() < 64).count();
    assert!(short <= report.total.shards, "at most one short row per shard, not {short}");
    assert_eq!(report.total.tokens, expected.len() as u64);
    assert_eq!(report.total.rows, rows.len() as u64);
}

#[test]
fn interrupted_and_rerun_equals_uninterrupted() {
    let folder = tempfile::tempdir().unwrap();
    for packing in [Packing::None, Packing::Concat { max_length: 50 }] {
        let mut config = corpus(folder.path());
        config.packing = packing;
        config.eos.target = true;
        config.output = folder.path().join(format!("whole-{packing:?}"));
        let whole = prepare_all(&config).unwrap();
        let expected = contents(&config.output);

        // Stopped in every place where it can be stopped, one after the other, each time going on from there.
        config.output = folder.path().join(format!("parts-{packing:?}"));
        let mut stops = 0;
        let finished = loop {
            let mut calls = 0;
            let outcome = prepare(&config, t5(), &mut |_| {
                calls += 1;
                if calls > 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            match outcome {
                Ok(report) => break report,
                Err(Error::Interrupted { shards, .. }) => {
                    stops += 1;
                    let on_disk = contents(&config.output)
                        .iter()
                        .filter(|(name, _)| name.extension().unwrap() == "parquet")
                        .count();
                    assert_eq!(on_disk, shards, "only finished shards are left");
                    assert!(Dataset::open(&[&config.output]).unwrap_err().to_string().contains("not fully prepared"));
                }
                Err(other) => panic!("{other}"),
            }
        };
        assert!(stops >= 2, "interrupted {stops} times");
        assert_eq!(finished.total, whole.total);
        assert!(contents(&config.output) == expected, "{packing:?}");

        let again = prepare(&config, t5(), &mut |_| panic!("nothing is left to do")).unwrap();
        assert_eq!((again.total, again.kept_shards), (whole.total, whole.total.shards));
    }
}

#[test]
fn what_a_killed_process_left_is_removed_and_lost_shards_are_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let config = corpus(folder.path());
    prepare_all(&config).unwrap();
    let expected = contents(&config.output);
    fs::write(config.output.join(".elf-unfinished-x1y2.tmp"), b"half a shard").unwrap();
    let third = config.output.join("shard-00002.parquet");
    let whole = fs::read(&third).unwrap();
    for damage in ["cut", "gone"] {
        match damage {
            "cut" => fs::write(&third, &whole[..whole.len() / 3]).unwrap(),
            _ => fs::remove_file(&third).unwrap(),
        }
        let error = Dataset::open(&[&config.output]).unwrap_err().to_string();
        assert!(error.contains("shard-00002.parquet") && error.contains("again"), "{error}");
        let report = prepare_all(&config).unwrap();
        assert_eq!(report.kept_shards, 2);
        assert!(contents(&config.output) == expected, "{damage}");
    }
}

#[test]
fn other_parameters_are_refused_unless_overwriting_is_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = corpus(folder.path());
    prepare_all(&config).unwrap();
    let before = contents(&config.output);
    config.eos.target = true;
    let error = prepare_all(&config).unwrap_err();
    assert!(matches!(&error, Error::OtherParameters { difference, .. } if difference == "EOS options"), "{error}");
    let tokenizer =
        prepare(&corpus(folder.path()), &other_tokenizer(), &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(tokenizer.to_string().contains("tokenizer"), "{tokenizer}");
    assert!(contents(&config.output) == before, "a refusal changes nothing");

    config.overwrite = true;
    config.documents_per_shard = 2000;
    prepare_all(&config).unwrap();
    let dataset = Dataset::open(&[&config.output]).unwrap();
    assert_eq!(dataset.files().count(), 3);
    assert!(dataset.example(0).unwrap().input_ids.ends_with(&[1]));

    let foreign = folder.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    write_parquet(&foreign.join("theirs.parquet"), &[("a", &documents(2))]);
    config.overwrite = false;
    config.output = foreign;
    assert!(prepare_all(&config).unwrap_err().to_string().contains("manifest.json"));
}

#[test]
fn contradictory_settings_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refuse = |change: &dyn Fn(&mut PrepareConfig), expected: &str| {
        let mut config = corpus(folder.path());
        change(&mut config);
        let error = prepare_all(&config).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    refuse(&|c| c.packing = Packing::Concat { max_length: 8 }, "turn EOS on");
    refuse(&|c| (c.packing, c.eos.target) = (Packing::Concat { max_length: 0 }, true), "max_length 0");
    refuse(
        &|c| (c.packing, c.condition_column) = (Packing::Concat { max_length: 8 }, Some("synopsis".to_owned())),
        "cannot have a condition",
    );
    refuse(&|c| c.eos.condition = true, "needs a condition column");
    refuse(&|c| c.documents_per_shard = 0, "documents_per_shard");
    refuse(&|c| c.target_column = "descriptions".to_owned(), "did you mean `description`?");
    write_parquet(&folder.path().join("empty.parquet"), &[("description", &[String::new()])]);
    refuse(&|c| c.inputs = vec![folder.path().join("empty.parquet")], "holds any text");
}

#[test]
fn another_tokenizer_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = corpus(folder.path());
    prepare_all(&config).unwrap();
    let error = Dataset::open(&[&config.output]).unwrap().check_tokenizer(&other_tokenizer()).unwrap_err();
    assert!(matches!(error, Error::TokenizerMismatch { .. }), "{error}");
    assert!(error.to_string().contains("prepared with another tokenizer"), "{error}");
}

#[test]
fn shards_that_do_not_belong_together_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = corpus(folder.path());
    prepare_all(&config).unwrap();
    let first = config.output.clone();
    config.output = folder.path().join("with-eos");
    config.eos.target = true;
    prepare_all(&config).unwrap();
    let error = Dataset::open(&[&first, &config.output]).unwrap_err();
    assert!(matches!(error, Error::MixedShards { .. }), "{error}");
}

/// Damage of any byte gives an error that names the file, or is noticed by nobody because it changes no row; it never panics.
#[test]
fn a_damaged_shard_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = corpus(folder.path());
    config.documents_per_shard = DOCUMENTS;
    prepare_all(&config).unwrap();
    let whole = fs::read(config.output.join("shard-00000.parquet")).unwrap();
    let shard = folder.path().join("lone.parquet");
    let open = |bytes: &[u8]| {
        fs::write(&shard, bytes).unwrap();
        Dataset::open(&[&shard])
    };
    for length in [0, 3, 100, whole.len() / 2, whole.len() - 1] {
        let error = open(&whole[..length]).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("lone.parquet"), "{error}");
    }
    let mut noticed = 0;
    for i in 0..300 {
        let mut bytes = whole.clone();
        bytes[i * (whole.len() - 1) / 299] ^= 1 << (i % 8);
        if let Err(error) = open(&bytes) {
            noticed += 1;
            assert!(error.to_string().contains("lone.parquet"), "{error}");
        }
    }
    assert!(noticed > 30, "damage was noticed {noticed} times");
}

#[test]
fn shards_of_other_tools_are_read() {
    let fixture = repository().join("tests/parity/hf_dataset");
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&fs::read(fixture.join("rows.json")).unwrap()).unwrap();
    let ids = |value: &serde_json::Value| {
        value.as_array().unwrap().iter().map(|id| id.as_i64().unwrap() as i32).collect::<Vec<_>>()
    };
    let expected: Vec<Example> = rows
        .iter()
        .map(|row| Example { input_ids: ids(&row["input_ids"]), condition_ids: Some(ids(&row["condition_input_ids"])) })
        .collect();
    let mut dataset = Dataset::open(&[fixture.join("parquet")]).unwrap();
    assert_eq!(all(&dataset), expected);
    assert!(dataset.metadata().is_none());
    dataset.check_tokenizer(t5()).unwrap();

    let words = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,"pre_tokenizer":null,
        "post_processor":null,"decoder":null,"model":{"type":"WordLevel","vocab":{"a":0,"b":1},"unk_token":"a"}}"#;
    let tiny = elf_data::Tokenizer::from_json(words).unwrap();
    let error = dataset.check_tokenizer(&tiny).unwrap_err();
    assert!(matches!(error, Error::IdOutOfRange { row: 0, vocab_size: 2, .. }), "{error}");

    let half = tempfile::tempdir().unwrap();
    fs::copy(
        fixture.join("parquet/data/train-00001-of-00002.parquet"),
        half.path().join("train-00001-of-00002.parquet"),
    )
    .unwrap();
    let error = Dataset::open(&[half.path()]).unwrap_err().to_string();
    assert!(error.contains("train-00000-of-00002.parquet"), "{error}");

    let texts = Dataset::open(&[repository().join("data/de-en-test.parquet")]).unwrap_err().to_string();
    assert!(texts.contains("no column `input_ids`"), "{texts}");
}

proptest! {
    #[test]
    fn packing_loses_and_adds_nothing(documents in prop::collection::vec(prop::collection::vec(0..1000i32, 0..40), 0..40), max_length in 1..50usize) {
        let mut packer = Packer::new(Packing::Concat { max_length }).unwrap();
        let mut rows: Vec<Vec<i32>> = Vec::new();
        for document in &documents {
            packer.push(document.clone(), |row| { rows.push(row.to_vec()); Ok(()) }).unwrap();
        }
        prop_assert!(rows.iter().all(|row| row.len() == max_length));
        if let Some(rest) = packer.finish() {
            prop_assert!(!rest.is_empty() && rest.len() < max_length);
            rows.push(rest);
        }
        prop_assert_eq!(rows.concat(), documents.concat());
    }
}

#[test]
fn unknown_words_are_counted_shown_and_refused_above_a_limit() {
    let folder = tempfile::tempdir().unwrap();
    let words = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
        "pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,
        "model":{"type":"WordLevel","vocab":{"<unk>":0,"a":1,"b":2,"</s>":3},"unk_token":"<unk>"}}"#;
    let tokenizer = elf_data::Tokenizer::from_json(words).unwrap();
    let text = folder.path().join("text.jsonl");
    let mut lines: Vec<String> = (0..97).map(|_| r#"{"input": "a", "output": "a b"}"#.to_owned()).collect();
    lines.push(r#"{"input": "b", "output": "我想买手机"}"#.to_owned());
    lines.push(r#"{"input": "neu", "output": "b"}"#.to_owned());
    lines.push(format!(r#"{{"input": "a", "output": "{} a"}}"#, "x".repeat(200)));
    fs::write(&text, lines.join("\n")).unwrap();
    let mut config = PrepareConfig::new(vec![text], folder.path().join("shards"), "output");
    config.condition_column = Some("input".to_owned());
    config.documents_per_shard = 98;
    let run = |config: &PrepareConfig| prepare(config, &tokenizer, &mut |_| ControlFlow::Continue(()));

    let report = run(&config).unwrap();
    assert_eq!((report.total.unknown, report.total.tokens + report.total.condition_tokens), (3, 298));
    let warning = report.unknown_warning().unwrap();
    for part in ["1.0%", "`我想买手机`", "`neu`", &format!("`{}`", "x".repeat(60)), "tokenizer"] {
        assert!(warning.contains(part), "{warning}");
    }
    // Kept shards count, too.
    config.max_unknown = Some(0.01);
    let refused = run(&config).unwrap_err().to_string();
    assert!(refused.contains("1.0% of the tokens are unknown") && refused.contains("max_unknown"), "{refused}");
    config.max_unknown = Some(0.02);
    assert_eq!(run(&config).unwrap().kept_shards, 2);

    config.output = folder.path().join("refused");
    config.max_unknown = Some(0.0);
    assert!(run(&config).unwrap_err().to_string().contains("`neu`"));
    let unfinished = Dataset::open(&[&config.output]).unwrap_err().to_string();
    assert!(unfinished.contains("not fully prepared"), "{unfinished}");
    config.max_unknown = Some(7.0);
    assert!(run(&config).unwrap_err().to_string().contains("from 0 to 1"));

    let known = PrepareConfig::new(vec![repository().join("data/de-en-test.parquet")], folder.path().join("de"), "en");
    assert_eq!(prepare_all(&known).unwrap().unknown_warning(), None);
}
