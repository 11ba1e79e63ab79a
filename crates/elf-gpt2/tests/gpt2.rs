//! GPT-2 as its users see it: causality, independence, training, files, judging and errors.

use std::path::Path;

use elf_core::tensorfile::{self, TensorFile};
use elf_core::{ParamBuilder, Precision, PrecisionPolicy};
use elf_eval::perplexity::{GenerativePerplexity, Scorer};
use elf_gpt2::{Gpt2, Gpt2Config, Gpt2Scorer, Result, ScorerSettings};
use proptest::prelude::*;
use serde_json::json;
use tch::{Device, Kind, Tensor};

const WORDS: [&str; 8] = ["<|endoftext|>", "to", "be", "or", "not", "that", "is", "?"];

fn config() -> Gpt2Config {
    Gpt2Config {
        vocab_size: 11,
        n_positions: 16,
        n_embd: 24,
        n_layer: 2,
        n_head: 3,
        n_inner: None,
        layer_norm_epsilon: 1e-5,
        // Large, so that tokens matter and an error shows.
        initializer_range: 0.3,
        eos_token_id: Some(0),
        texts_begin_with_eos: false,
    }
}

fn model(seed: u64) -> Gpt2 {
    Gpt2::new(&config(), ParamBuilder::seeded(seed, Device::Cpu), PrecisionPolicy::F32).unwrap()
}

/// A folder with a model and a tokeniser that knows [`WORDS`].
fn saved() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    model(3).save(folder.path()).unwrap();
    write_tokenizer(folder.path(), &WORDS);
    folder
}

fn write_tokenizer(folder: &Path, words: &[&str]) {
    let vocabulary: serde_json::Map<_, _> =
        words.iter().enumerate().map(|(i, w)| ((*w).to_owned(), i.into())).collect();
    let special = json!({"id": 0, "content": words[0], "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let tokenizer = json!({
        "version": "1.0",
        // To be overruled: cutting and padding are the judge's own.
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 30}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": words[0]},
        "added_tokens": [special], "normalizer": null, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "?"},
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

fn settings() -> ScorerSettings {
    ScorerSettings {
        device: Device::Cpu,
        precision: PrecisionPolicy::F32,
        max_length: 12,
        context_size: Some(8),
        batch_tokens: 32,
    }
}

fn ids(rows: &[Vec<i64>]) -> Tensor {
    Tensor::from_slice2(rows)
}

fn apart(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

fn row() -> impl Strategy<Value = Vec<i64>> {
    proptest::collection::vec(0i64..11, 10)
}

fn text() -> impl Strategy<Value = String> {
    proptest::collection::vec(1..WORDS.len(), 1..20)
        .prop_map(|words| words.iter().map(|&w| WORDS[w]).collect::<Vec<_>>().join(" "))
}

/// Negative natural log-likelihoods `[B, S - 1]` of each id of `ids` `[B, S]` but the first, given those before it.
fn next_token_nll(model: &Gpt2, ids: &Tensor) -> Result<Tensor> {
    let hidden = model.hidden(ids)?;
    let (b, s, h) = hidden.size3()?;
    let hidden = hidden.narrow(1, 0, s - 1).reshape([b * (s - 1), h]);
    let targets = ids.narrow(1, 1, s - 1).reshape([b * (s - 1)]);
    Ok(model.nll(&hidden, &targets)?.view([b, s - 1]))
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(20))]

    #[test]
    fn later_tokens_do_not_reach_earlier_ones(row in row(), other in row(), keep in 2usize..10) {
        let model = model(1);
        let changed = [&row[..keep], &other[keep..]].concat();
        let nll = next_token_nll(&model, &ids(&[row.clone(), changed])).unwrap();
        let kept = nll.narrow(1, 0, keep as i64 - 1);
        prop_assert!(kept.get(0).equal(&kept.get(1)));
        let short = next_token_nll(&model, &ids(&[row[..keep].to_vec()])).unwrap();
        prop_assert!(apart(&short, &kept.narrow(0, 0, 1)) < 1e-5);
    }

    #[test]
    fn a_row_does_not_depend_on_its_batch(rows in proptest::collection::vec(row(), 1..5)) {
        let model = model(2);
        let together = next_token_nll(&model, &ids(&rows)).unwrap();
        for (i, row) in rows.iter().enumerate() {
            let alone = next_token_nll(&model, &ids(std::slice::from_ref(row))).unwrap();
            prop_assert!(apart(&alone, &together.narrow(0, i as i64, 1)) < 1e-5);
        }
    }
}

proptest! {
    #![proptest_config(cases(10))]

    #[test]
    fn a_text_is_scored_the_same_whatever_stands_beside_it(texts in proptest::collection::vec(text(), 1..8), batch_tokens in 0usize..100) {
        let folder = saved();
        let judge = Gpt2Scorer::load(folder.path(), &ScorerSettings { batch_tokens, ..settings() }).unwrap();
        let together = judge.score(&texts).unwrap();
        for (text, found) in texts.iter().zip(&together) {
            let alone = &judge.score(std::slice::from_ref(text)).unwrap()[0];
            prop_assert_eq!(&alone.ids, &found.ids);
            prop_assert_eq!(alone.windows.len(), found.windows.len());
            for (a, b) in alone.windows.iter().zip(&found.windows) {
                prop_assert_eq!(&a.ids, &b.ids);
                prop_assert!(a.nll.len() == b.nll.len() && a.nll.iter().zip(&b.nll).all(|(a, b)| (a - b).abs() < 1e-5));
            }
        }
    }
}

#[test]
fn a_judge_scores_each_window_as_the_model_does() {
    let folder = saved();
    let judge = Gpt2Scorer::load(folder.path(), &settings()).unwrap();
    // 9 words and EOS: windows of 8 and 2. 13 words: cut to 12 without EOS. An EOS inside is one token.
    let texts = ["to be or not to be that is ?", "to to to to to to to to to to to to to", "to <|endoftext|> unknown"]
        .map(String::from);
    let scores = judge.score(&texts).unwrap();
    assert_eq!(scores[0].ids, [1, 2, 3, 4, 1, 2, 5, 6, 7]);
    assert_eq!(scores[0].windows.iter().map(|w| w.ids.len()).collect::<Vec<_>>(), [8, 2]);
    assert_eq!(scores[1].windows.iter().map(|w| w.ids.clone()).collect::<Vec<_>>(), [vec![1; 8], vec![1; 4]]);
    assert_eq!(scores[2].windows[0].ids, [1, 0, 7, 0]);
    for window in scores.iter().flat_map(|s| &s.windows) {
        let row: Vec<i64> = window.ids.iter().map(|&id| id.into()).collect();
        let expected: Vec<f32> = next_token_nll(judge.model(), &ids(&[row])).unwrap().get(0).try_into().unwrap();
        assert_eq!(expected.len(), window.nll.len());
        assert!(expected.iter().zip(&window.nll).all(|(e, f)| (f64::from(*e) - f).abs() < 1e-5));
    }
    assert!(judge.score(&[]).unwrap().is_empty());
    let result = GenerativePerplexity::measure(&judge, &[texts.as_slice(), &[" ".into()]].concat()).unwrap();
    assert!(result.skipped == 1 && result.perplexity > 1.0);
}

#[test]
fn bf16_judges_nearly_the_same() {
    let folder = saved();
    let texts: Vec<String> =
        (0..20).map(|i| (0..9).map(|j| WORDS[1 + (i * 5 + j * j) % 7]).collect::<Vec<_>>().join(" ")).collect();
    let [exact, rough] = [Precision::F32, Precision::Bf16].map(|p| {
        let settings = ScorerSettings { precision: PrecisionPolicy::with_blocks(p), ..settings() };
        GenerativePerplexity::measure(&Gpt2Scorer::load(folder.path(), &settings).unwrap(), &texts).unwrap().perplexity
    });
    let ratio = (rough / exact).ln().abs();
    assert!(ratio > 0.0 && ratio < 0.02, "{exact} {rough}");
}

#[test]
fn it_learns() {
    let config = Gpt2Config { initializer_range: 0.02, ..config() };
    let model = Gpt2::new(&config, ParamBuilder::seeded(0, Device::Cpu), PrecisionPolicy::F32).unwrap();
    model.params().set_requires_grad(true);
    // Counting modulo 11: the next token is certain from the last one.
    let batch = (Tensor::arange(12, (Kind::Int64, Device::Cpu)).unsqueeze(0)
        + Tensor::arange(11, (Kind::Int64, Device::Cpu)).unsqueeze(1))
    .remainder(11);
    let loss = || next_token_nll(&model, &batch).unwrap().mean(Kind::Float);
    let first = loss();
    assert!((first.double_value(&[]) - 11f64.ln()).abs() < 0.2, "a fresh model knows nothing");
    first.backward();
    assert!(
        model
            .params()
            .iter()
            .all(|(_, p)| p.tensor.grad().defined() && p.tensor.grad().abs().sum(Kind::Float).double_value(&[]) > 0.0)
    );
    for _ in 0..60 {
        model.params().zero_grad();
        loss().backward();
        tch::no_grad(|| {
            for (_, p) in model.params().iter() {
                let step = p.tensor.grad().sign() * 0.01;
                let _ = p.tensor.shallow_clone().g_sub_(&step);
            }
        });
        model.params().changed();
    }
    let last = loss().double_value(&[]);
    assert!(last < 0.5, "{last}");
}

#[test]
fn a_seed_is_a_model_with_gpt2s_own_deviations() {
    let config = Gpt2Config { n_embd: 120, vocab_size: 300, n_layer: 8, initializer_range: 0.02, ..config() };
    let model = Gpt2::new(&config, ParamBuilder::seeded(9, Device::Cpu), PrecisionPolicy::F32).unwrap();
    assert_eq!(model.params().numel(), config.parameter_count() as u64);
    for (name, std) in [
        ("wte.weight", 0.02),
        ("h.7.attn.c_attn.weight", 0.02),
        ("h.7.mlp.c_fc.weight", 0.02),
        ("h.7.attn.c_proj.weight", 0.005),
        ("h.7.mlp.c_proj.weight", 0.005),
        ("h.7.mlp.c_proj.bias", 0.0),
    ] {
        let p = model.params().get(&format!("transformer.{name}")).unwrap();
        let found = p.tensor.std(true).double_value(&[]);
        assert!((found - std).abs() <= 0.03 * std, "{name}: {found} instead of {std}");
        if let Some(fans) = p.fans {
            assert_eq!(p.tensor.size(), [fans.fan_in, fans.fan_out], "{name} is stored as (in, out)");
        }
    }
}

/// Rewrites the model file of `folder` through `change`.
fn rewrite(folder: &Path, change: impl FnOnce(&mut Vec<(String, Tensor)>)) {
    let path = folder.join("model.safetensors");
    let mut tensors = TensorFile::open(&path).unwrap().read_all(Device::Cpu).unwrap();
    change(&mut tensors);
    tensorfile::write(&path, tensors.iter().map(|(n, t)| (n.as_str(), t)), Default::default()).unwrap();
}

fn load(folder: &Path) -> elf_gpt2::Result<Gpt2> {
    Gpt2::load(folder, Device::Cpu, PrecisionPolicy::F32)
}

fn load_error(folder: &Path) -> String {
    load(folder).unwrap_err().to_string()
}

#[test]
fn either_form_of_names_is_taken_and_buffers_are_ignored() {
    let folder = saved();
    let batch = ids(&[vec![1, 2, 3, 4]]);
    let expected = model(3).hidden(&batch).unwrap();
    assert!(load(folder.path()).unwrap().hidden(&batch).unwrap().equal(&expected));
    rewrite(folder.path(), |tensors| {
        for (name, _) in tensors.iter_mut() {
            *name = name.replacen("transformer.", "", 1);
        }
        let head = tensors.iter().find(|(name, _)| name == "wte.weight").unwrap().1.copy();
        tensors.push(("lm_head.weight".into(), head));
        tensors.push(("h.0.attn.bias".into(), Tensor::ones([1, 1, 16, 16], (Kind::Uint8, Device::Cpu)).tril(0)));
        tensors.push(("h.0.attn.masked_bias".into(), Tensor::from(-1e4f32)));
    });
    assert!(load(folder.path()).unwrap().hidden(&batch).unwrap().equal(&expected));
}

#[test]
fn files_that_do_not_fit_are_named() {
    let folder = saved();
    rewrite(folder.path(), |tensors| {
        tensors.push(("lm_head.weight".into(), Tensor::zeros([11, 24], (Kind::Float, Device::Cpu))))
    });
    assert!(load_error(folder.path()).contains("lm_head.weight differs"));

    let folder = saved();
    rewrite(folder.path(), |tensors| tensors.retain(|(name, _)| !name.ends_with("h.1.ln_2.bias")));
    let message = load_error(folder.path());
    assert!(message.contains("transformer.h.1.ln_2.bias") && message.contains("the file has none"), "{message}");

    let folder = saved();
    rewrite(folder.path(), |tensors| {
        tensors.push(("score.weight".into(), Tensor::zeros([2, 24], (Kind::Float, Device::Cpu))))
    });
    assert!(load_error(folder.path()).contains("score.weight: the file has [2, 24], the model has none"));

    let folder = saved();
    Gpt2Config { n_positions: 12, ..config() }.save(&folder.path().join("config.json")).unwrap();
    assert!(load_error(folder.path()).contains("wpe.weight: the model has [12, 24], the file has [16, 24]"));
    // Too large for the file: refused before memory is allocated.
    Gpt2Config { n_embd: 3 << 14, ..config() }.save(&folder.path().join("config.json")).unwrap();
    assert!(load_error(folder.path()).contains("parameters, but"));

    let folder = saved();
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(load_error(folder.path()).contains("model.safetensors is not a usable safetensors file"));
    assert!(load_error(&folder.path().join("nowhere")).contains("nowhere"));
}

#[test]
fn ids_that_do_not_fit_are_errors() {
    let model = model(0);
    let message = |t: &Tensor| next_token_nll(&model, t).unwrap_err().to_string();
    assert!(message(&ids(&[vec![1, 11]])).contains("token id 11 is outside"));
    assert!(message(&ids(&[vec![1, -1]])).contains("token id -1 is outside"));
    assert!(message(&ids(&[vec![1; 17]])).contains("17 tokens"));
    assert!(message(&ids(&[vec![1; 4]]).to_kind(Kind::Float)).contains("int64"));
    assert!(message(&ids(&[vec![1; 4]]).get(0)).contains("[B, S]"));
}

#[test]
fn judges_that_cannot_be_are_named() {
    let error = |folder: &Path, settings: &ScorerSettings| Gpt2Scorer::load(folder, settings).unwrap_err().to_string();
    let folder = saved();
    assert!(error(folder.path(), &ScorerSettings { context_size: Some(17), ..settings() }).contains("17 tokens"));
    assert!(error(folder.path(), &ScorerSettings { context_size: Some(1), ..settings() }).contains("context size"));
    assert!(error(folder.path(), &ScorerSettings { max_length: 0, ..settings() }).contains("maximum length"));
    // Without a context size: the model's positions, however long texts may be.
    assert!(
        Gpt2Scorer::load(folder.path(), &ScorerSettings { context_size: None, max_length: 1024, ..settings() }).is_ok()
    );

    let many: Vec<String> = (0..12).map(|i| format!("w{i}")).chain(["?".into()]).collect();
    write_tokenizer(folder.path(), &many.iter().map(String::as_str).collect::<Vec<_>>());
    let message = error(folder.path(), &settings());
    assert!(message.contains("ids reach 12") && message.contains("vocabulary has 11"), "{message}");
    write_tokenizer(folder.path(), &["?", "<|endoftext|>"]);
    assert!(error(folder.path(), &settings()).contains("<|endoftext|> is 1 there, and 0"));
    write_tokenizer(folder.path(), &["?", "to"]);
    assert!(Gpt2Scorer::load(folder.path(), &settings()).is_ok_and(|judge| judge.eos() == 0), "config.json names it");
    Gpt2Config { eos_token_id: None, ..config() }.save(&folder.path().join("config.json")).unwrap();
    assert!(error(folder.path(), &settings()).contains("no <|endoftext|>"));
    std::fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    assert!(error(folder.path(), &settings()).contains("tokenizer.json"));
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    assert!(error(folder.path(), &settings()).contains("tokenizer.json"));
}

/// A model of texts that begin with EOS is used as it was trained: EOS before each text, which has no more tokens than there are
/// positions, and closed with EOS if there is room.
#[test]
fn a_judge_of_texts_that_begin_with_eos_reads_it_first() {
    let folder = tempfile::tempdir().unwrap();
    let config = Gpt2Config { texts_begin_with_eos: true, n_positions: 6, ..config() };
    let model = Gpt2::new(&config, ParamBuilder::seeded(3, Device::Cpu), PrecisionPolicy::F32).unwrap();
    model.save(folder.path()).unwrap();
    assert!(Gpt2Config::load(&folder.path().join("config.json")).unwrap().texts_begin_with_eos);
    write_tokenizer(folder.path(), &WORDS);
    let judge = Gpt2Scorer::load(folder.path(), &ScorerSettings { context_size: None, ..settings() }).unwrap();
    let texts = ["to be or not", "that is to be or not to be"].map(str::to_owned);
    let scores = judge.score(&texts).unwrap();
    for (score, ids) in scores.iter().zip([&[1i64, 2, 3, 4, 0][..], &[5, 6, 1, 2, 3, 4]]) {
        let [window] = &score.windows[..] else { panic!("one window is enough: {score:?}") };
        assert_eq!(window.ids, ids.iter().map(|&id| id as u32).collect::<Vec<_>>());
        // Without the last token, which need not be read.
        let read: Vec<i64> = [&[0], &ids[..ids.len() - 1]].concat();
        let hidden = model.hidden(&Tensor::from_slice(&read).view([1, -1])).unwrap().squeeze_dim(0);
        let whole = Vec::<f32>::try_from(model.nll(&hidden, &Tensor::from_slice(ids)).unwrap()).unwrap();
        for (found, expected) in window.nll.iter().zip(&whole[1..]) {
            assert!((found - f64::from(*expected)).abs() < 1e-4);
        }
    }
}
