//! Encoding, decoding, fingerprints and training of tokenizers.

mod support;

use elf_data::source::{PlainText, Source};
use elf_data::{Error, Tokenizer, UnigramConfig, WordPieceCut, train_unigram};
use serde_json::Value;
use support::{documents, other_tokenizer, repository, t5};

#[test]
fn t5_ids_are_those_of_the_published_tokenizer() {
    let mut ids = t5().encode("Das ist gut. Hello world!").unwrap();
    assert_eq!(ids, [644, 229, 1806, 5, 8774, 296, 55]);
    assert_eq!(t5().decode(&ids).unwrap(), "Das ist gut. Hello world!");
    ids.extend([t5().eos_id().unwrap(), t5().pad_id().unwrap(), -5, i32::MAX]);
    assert_eq!(t5().decode(&ids).unwrap(), "Das ist gut. Hello world!", "special and impossible ids are left out");
    assert_eq!(t5().show(&ids).unwrap(), "Das ist gut. Hello world! <id -5><id 2147483647>");
    assert_eq!(t5().show(&[32_100, 644, 229]).unwrap(), "<id 32100> Das ist");
    assert_eq!((t5().pad_id().unwrap(), t5().eos_id().unwrap(), t5().unk_id()), (0, 1, Some(2)));
    assert_eq!(t5().vocab_size(), 32_100);
    assert_eq!(t5().token(644).as_deref(), Some("▁Das"));
}

#[test]
fn pieces_make_up_the_text() {
    let folders = ["data/tokenizers/t5", "models/mini-de-en", "models/minilm-l3"];
    for tokenizer in folders.map(|folder| Tokenizer::load(repository().join(folder)).unwrap()) {
        for text in documents(20).iter().map(String::as_str).chain(["", "Das ist gut.", "naïve — 漢字 🙂 \u{e4}"])
        {
            let mut ids = tokenizer.encode(text).unwrap();
            ids.extend([tokenizer.eos_id().unwrap(), -5]);
            let (pieces, whole) = (tokenizer.pieces(&ids).unwrap(), tokenizer.decode(&ids).unwrap());
            assert_eq!(pieces.len(), ids.len());
            assert_eq!(pieces.concat(), whole, "{}", tokenizer.origin());
        }
    }
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

#[test]
fn a_wordpiece_tokenizer_has_its_own_special_tokens() {
    let added = |id: usize, token: &str| {
        serde_json::json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let words = special.into_iter().chain(["a", "round", "knife", "##s", ",", "un", "##screw"]);
    let json = serde_json::json!({
        "version": "1.0", "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": null, "added_tokens": special.iter().enumerate().map(|(id, &token)| added(id, token)).collect::<Vec<_>>(),
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
            "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": words.enumerate().map(|(id, token)| (token.to_owned(), id.into())).collect::<serde_json::Map<_, _>>()},
    });
    let tokenizer = Tokenizer::from_json(json.to_string()).unwrap();
    assert_eq!((tokenizer.pad_id().unwrap(), tokenizer.eos_id().unwrap(), tokenizer.unk_id()), (0, 3, Some(1)));
    let ids = tokenizer.encode("A round knife, Unscrews spoons").unwrap();
    assert_eq!(ids, [5, 6, 7, 9, 10, 11, 8, 1], "lower-cased, in pieces, neither cut nor wrapped in [CLS] and [SEP]");
    let row = [&[2][..], &ids[..7], &[3, 0, 0]].concat();
    assert_eq!(tokenizer.decode(&row).unwrap(), "a round knife, unscrews");
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

#[test]
fn a_wordpiece_vocabulary_is_cut_by_counts() {
    let words = [
        "[PAD]", "[unused]", "[UNK]", "[CLS]", "[SEP]", "a", "##a", "b", "##b", "é", "##é", "ß", "knife", "##s",
        "spoon",
    ];
    let special: Vec<Value> = (0..5)
        .filter(|&id| id != 1)
        .map(|id| {
            serde_json::json!({"id": id, "content": words[id], "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": special,
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": false,
            "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [3], "tokens": ["[CLS]"]}}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": words.iter().enumerate().map(|(id, w)| ((*w).to_owned(), id.into())).collect::<serde_json::Map<_, _>>()},
    });
    let whole = Tokenizer::from_json(json.to_string()).unwrap();
    let mut cut = WordPieceCut::new(&whole).unwrap();
    cut.count(&["knives knifes", "spoon aé"]).unwrap();
    cut.count(&["knifes"]).unwrap();
    let smaller = cut.cut(2).unwrap();
    // The special tokens, the ASCII letters and é, which was seen, but not ß; and knife and ##s, but not spoon.
    assert_eq!(smaller.kept, [0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13]);
    let tokenizer = &smaller.tokenizer;
    assert_eq!((tokenizer.vocab_size(), tokenizer.eos_id().unwrap(), tokenizer.unk_id()), (12, 3, Some(1)));
    assert_eq!(tokenizer.encode("Knifes aé spoon ß").unwrap(), [10, 11, 4, 9, 1, 1]);
    let folder = tempfile::tempdir().unwrap();
    tokenizer.save(folder.path()).unwrap();
    let file: Value = serde_json::from_slice(&std::fs::read(folder.path().join("tokenizer.json")).unwrap()).unwrap();
    assert_eq!(file["post_processor"]["special_tokens"]["[CLS]"]["ids"], serde_json::json!([2]));
    assert_eq!(cut.cut(0).unwrap().kept.len(), words.len());
    assert!(WordPieceCut::new(t5()).unwrap_err().to_string().contains("only WordPiece"));
}
