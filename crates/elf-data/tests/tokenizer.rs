//! Encoding, decoding, fingerprints and training of tokenizers.

mod support;

use elf_data::source::{PlainText, Source};
use elf_data::{Error, Tokenizer, UnigramConfig, train_unigram};
use serde_json::Value;
use support::{documents, other_tokenizer, repository, t5};

#[test]
fn t5_ids_are_those_of_the_published_tokenizer() {
    let mut ids = t5().encode("Das ist gut. Hello world!").unwrap();
    assert_eq!(ids, [644, 229, 1806, 5, 8774, 296, 55]);
    assert_eq!(t5().decode(&ids).unwrap(), "Das ist gut. Hello world!");
    ids.extend([t5().eos_id().unwrap(), t5().pad_id().unwrap(), -5, i32::MAX]);
    assert_eq!(t5().decode(&ids).unwrap(), "Das ist gut. Hello world!", "special and impossible ids are left out");
    assert_eq!((t5().pad_id().unwrap(), t5().eos_id().unwrap(), t5().unk_id()), (0, 1, Some(2)));
    assert_eq!(t5().vocab_size(), 32_100);
    assert_eq!(t5().token(644).as_deref(), Some("▁Das"));
}

#[test]
fn batches_keep_their_order() {
    let texts = documents(100);
    let one_by_one: Vec<_> = texts.iter().map(|text| t5().encode(text).unwrap()).collect();
    assert_eq!(t5().encode_batch(&texts).unwrap(), one_by_one);
}

#[test]
fn fingerprint_sees_meaning_not_formatting() {
    let bytes = std::fs::read(repository().join("data/tokenizers/t5/tokenizer.json")).unwrap();
    let mut json: Value = serde_json::from_slice(&bytes).unwrap();
    json["truncation"] =
        serde_json::json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
    json["post_processor"] = Value::Null;
    let rewritten = Tokenizer::from_json(serde_json::to_vec_pretty(&json).unwrap()).unwrap();
    assert_eq!(rewritten.fingerprint(), t5().fingerprint());
    assert_eq!(rewritten.encode("one two three four five").unwrap(), t5().encode("one two three four five").unwrap());
    assert_ne!(other_tokenizer().fingerprint(), t5().fingerprint());
}

#[test]
fn bad_tokenizer_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = Tokenizer::load(folder.path()).unwrap_err().to_string();
    assert!(missing.contains("tokenizer.json"), "{missing}");
    let file = folder.path().join("broken.json");
    std::fs::write(&file, "{\"model\": 3}").unwrap();
    let broken = Tokenizer::load(&file).unwrap_err().to_string();
    assert!(broken.contains("broken.json") && broken.contains("not a usable tokenizer"), "{broken}");
}

#[test]
fn missing_special_tokens_are_named() {
    let words = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,"pre_tokenizer":null,
        "post_processor":null,"decoder":null,"model":{"type":"WordLevel","vocab":{"a":0,"b":1},"unk_token":"a"}}"#;
    let tokenizer = Tokenizer::from_json(words).unwrap();
    let error = tokenizer.eos_id().unwrap_err().to_string();
    assert!(error.contains("</s>"), "{error}");
}

fn train(config: &UnigramConfig, texts: &[String]) -> elf_data::Result<elf_data::Trained> {
    train_unigram(config, texts.iter().cloned().map(Ok), &mut |_| ())
}

fn corpus() -> Vec<String> {
    let mut texts = documents(400);
    // Rare characters, each seen once, so that the order in which they get their ids could differ from run to run.
    texts.extend(["ça coûte 5 €", "naïve Δ Ω Ж", "ﬁn ½ ①", "日本語 テスト"].map(str::to_owned));
    texts.extend((0..300).map(|i| format!("version{} of item{} by maintainer{}", i % 17, i % 29, i % 31)));
    texts
}

#[test]
fn training_gives_the_same_bytes_every_time() {
    let folder = tempfile::tempdir().unwrap();
    let config = UnigramConfig { vocab_size: 150, character_coverage: 1.0, ..Default::default() };
    let files: Vec<Vec<u8>> = (0..4)
        .map(|i| {
            let path = folder.path().join(format!("{i}.json"));
            train(&config, &corpus()).unwrap().tokenizer.save(&path).unwrap();
            std::fs::read(path).unwrap()
        })
        .collect();
    assert!(files.iter().all(|file| *file == files[0]));
}

#[test]
fn trained_tokenizer_has_t5s_pipeline_and_ids() {
    let folder = tempfile::tempdir().unwrap();
    let english = Source::open(&[repository().join("data/de-en-test.parquet")], &["en"], PlainText::Lines).unwrap();
    let config = UnigramConfig { vocab_size: 600, ..Default::default() };
    let trained = train_unigram(&config, english.texts(), &mut |_| ()).unwrap();
    assert_eq!(trained.texts_read, english.texts().count() as u64);
    let tokenizer = &trained.tokenizer;
    assert_eq!((tokenizer.pad_id().unwrap(), tokenizer.eos_id().unwrap(), tokenizer.unk_id()), (0, 1, Some(2)));
    assert_eq!(tokenizer.vocab_size(), config.vocab_size);
    let text = "This package provides the development files for the library.";
    let ids = tokenizer.encode(text).unwrap();
    assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    assert!(ids.len() < text.len() / 2, "frequent words should be few tokens: {ids:?}");
    assert_eq!(tokenizer.encode("ﬁle   foo ").unwrap(), tokenizer.encode("file foo").unwrap(), "normalised as T5 does");

    tokenizer.save(folder.path()).unwrap();
    let loaded = Tokenizer::load(folder.path()).unwrap();
    assert_eq!(loaded.fingerprint(), tokenizer.fingerprint());
    let parts = |path: std::path::PathBuf| serde_json::from_slice::<Value>(&std::fs::read(path).unwrap()).unwrap();
    let (ours, t5s) =
        (parts(folder.path().join("tokenizer.json")), parts(repository().join("data/tokenizers/t5/tokenizer.json")));
    for part in ["normalizer", "pre_tokenizer", "post_processor", "decoder"] {
        assert!(ours[part] == t5s[part], "{part} differs from T5's");
    }
}

#[test]
fn coverage_leaves_rare_characters_out() {
    let all =
        train(&UnigramConfig { vocab_size: 150, character_coverage: 1.0, ..Default::default() }, &corpus()).unwrap();
    let most =
        train(&UnigramConfig { vocab_size: 150, character_coverage: 0.99, ..Default::default() }, &corpus()).unwrap();
    let unknown = |t: &Tokenizer| t.encode("日").unwrap().contains(&2);
    assert!(!unknown(&all.tokenizer));
    assert!(unknown(&most.tokenizer));
}

#[test]
fn impossible_training_is_refused() {
    let small = train(&UnigramConfig { vocab_size: 20, ..Default::default() }, &corpus()).unwrap_err().to_string();
    assert!(small.contains("raise vocab_size above"), "{small}");
    let empty = train(&UnigramConfig::default(), &[]).unwrap_err().to_string();
    assert!(empty.contains("no text"), "{empty}");
    let unread = train_unigram(&UnigramConfig::default(), [Err(Error::LoaderGone)], &mut |_| ()).unwrap_err();
    assert!(matches!(unread, Error::LoaderGone));
}

#[test]
fn every_nth_text_is_used() {
    let config = UnigramConfig { vocab_size: 150, every_nth: 3, ..Default::default() };
    let trained = train(&config, &corpus()).unwrap();
    assert_eq!((trained.texts_read, trained.texts_used), (704, 235));
}
