//! Encoders of the BERT family as their users see them: transformers' numbers, files, masks, precision and errors.

mod laws;

use std::path::{Path, PathBuf};

use elf_core::tensorfile::{self, TensorFile};
use elf_core::{ParamBuilder, Precision};
use elf_encoder::{BertConfig, BertEncoder, BertLayout, EncoderMask, EncoderSource, Error, TextEncoder, open_encoder};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

use laws::{apart, ids};

const CLS: i64 = 2;

fn config(layout: BertLayout) -> BertConfig {
    BertConfig {
        layout,
        vocab_size: 50,
        hidden_size: 24,
        intermediate_size: 40,
        num_hidden_layers: 2,
        num_attention_heads: 3,
        max_position_embeddings: 33,
        type_vocab_size: if layout == BertLayout::Bert { 2 } else { 0 },
        layer_norm_eps: 1e-12,
    }
}

/// With weights far from 0, so that attention is no mean and a leak shows.
fn encoder(seed: u64, layout: BertLayout, precision: Precision) -> BertEncoder {
    let encoder = BertEncoder::new(&config(layout), CLS, ParamBuilder::seeded(seed, Device::Cpu), precision).unwrap();
    tch::no_grad(|| {
        for (_, p) in encoder.params().iter().filter(|(name, _)| !name.contains("orm.")) {
            let _ = p.tensor.shallow_clone().g_mul_scalar_(10.0);
        }
    });
    encoder.params().changed();
    encoder
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn open(folder: &Path, layer: Option<usize>) -> elf_encoder::Result<Box<dyn TextEncoder>> {
    let source = EncoderSource { layer, ..EncoderSource::folder(folder) };
    open_encoder(&source, Device::Cpu, Precision::F32)
}

/// A folder with an encoder and a tokenizer that names [CLS].
fn saved(encoder: &BertEncoder) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    encoder.save(folder.path(), Kind::Float).unwrap();
    let tokenizer = serde_json::json!({"added_tokens": [{"id": CLS, "content": "[CLS]"}]});
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    folder
}

/// BERT's fixture is safetensors of a model with a head, whose names begin with `bert.`; DistilBERT's the bare encoder in
/// PyTorch's format.
#[test]
fn every_layer_equals_transformers() {
    for name in ["bert", "distilbert"] {
        let folder = fixture(name);
        let states = TensorFile::open(folder.join("states.safetensors")).unwrap();
        let given = |name: &str| states.get(name, Device::Cpu).unwrap();
        let (ids, mask) = (given("ids").narrow(1, 1, 8), given("mask").narrow(1, 1, 8));
        for layer in 0..4 {
            let encoder = open(&folder, Some(layer)).unwrap();
            assert_eq!((encoder.dim(), encoder.vocab_size()), (16, 40));
            let theirs = given(&format!("layer.{layer}")).narrow(1, 1, 8);
            let ours = encoder.encode(&ids, EncoderMask::Columns(&mask)).unwrap();
            let valid = mask.unsqueeze(-1);
            assert!(apart(&(&ours * &valid), &(&theirs * &valid)) < 1e-5, "{name}, layer {layer}");
            if layer == 3 {
                assert!(ours.equal(&open(&folder, None).unwrap().encode(&ids, EncoderMask::Columns(&mask)).unwrap()));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hidden_columns_do_not_reach_visible_rows(seed in any::<u8>(), s in 2i64..20, keep in 1i64..19, other in 0i64..50) {
        laws::hidden_columns_do_not_reach_visible_rows(&encoder(seed.into(), BertLayout::Bert, Precision::F32), seed, s, keep, other);
    }

    /// Neither directly nor by way of [CLS].
    #[test]
    fn a_causal_row_does_not_know_what_follows(seed in any::<u8>(), s in 2i64..20, at in 1i64..19) {
        let at = at.min(s - 1);
        let encoder = encoder(seed.into(), BertLayout::DistilBert, Precision::F32);
        let before = ids(seed.into(), 2, s);
        let after = before.copy();
        let _ = after.narrow(1, at, s - at).fill_(7);
        let causal = Tensor::ones([s, s], (Kind::Bool, Device::Cpu)).tril(0).expand([2, s, s], false);
        let [a, b] = [&before, &after].map(|ids| encoder.encode(ids, EncoderMask::Pairs(&causal)).unwrap());
        prop_assert!(a.narrow(1, 0, at).equal(&b.narrow(1, 0, at)));
        let short = causal.narrow(1, 0, at).narrow(2, 0, at);
        let alone = encoder.encode(&before.narrow(1, 0, at), EncoderMask::Pairs(&short)).unwrap();
        prop_assert!(apart(&alone, &a.narrow(1, 0, at)) < 1e-5);
    }
}

#[test]
fn every_position_counts_and_cls_sees_the_row() {
    let encoder = encoder(3, BertLayout::Bert, Precision::F32);
    let before = ids(0, 1, 6);
    let after = before.copy();
    let _ = after.narrow(1, 5, 1).fill_(11);
    let all = Tensor::ones([1, 6], (Kind::Float, Device::Cpu));
    let pairs = Tensor::ones([1, 6, 6], (Kind::Bool, Device::Cpu));
    for mask in [EncoderMask::None, EncoderMask::Columns(&all), EncoderMask::Pairs(&pairs)] {
        let [a, b] = [&before, &after].map(|ids| encoder.encode(ids, mask).unwrap());
        assert!(apart(&a.narrow(1, 0, 1), &b.narrow(1, 0, 1)) > 1e-2);
    }
    let [none, columns, pairs] = [EncoderMask::None, EncoderMask::Columns(&all), EncoderMask::Pairs(&pairs)]
        .map(|mask| encoder.encode(&before, mask).unwrap());
    assert!(apart(&none, &columns) < 1e-5);
    assert!(apart(&none, &pairs) > 1e-3, "with pairs [CLS] sees itself alone");
    // A row to which nothing is visible sees [CLS].
    let nothing = Tensor::zeros([1, 6, 6], (Kind::Bool, Device::Cpu));
    assert_eq!(encoder.encode(&before, EncoderMask::Pairs(&nothing)).unwrap().isfinite().all().int64_value(&[]), 1);
}

#[test]
fn what_is_saved_is_loaded_and_bf16_stays_close() {
    for layout in [BertLayout::Bert, BertLayout::DistilBert] {
        let first = encoder(5, layout, Precision::F32);
        let folder = saved(&first);
        assert_eq!(BertConfig::load(&folder.path().join("config.json")).unwrap(), config(layout));
        assert_eq!(first.params().numel(), config(layout).parameter_count() as u64);
        assert!(first.params().iter().all(|(_, p)| !p.tensor.requires_grad()));
        let ids = ids(2, 2, 7);
        let here = first.encode(&ids, EncoderMask::None).unwrap();
        assert!(open(folder.path(), None).unwrap().encode(&ids, EncoderMask::None).unwrap().equal(&here));
        let source = EncoderSource::folder(folder.path());
        let rough = open_encoder(&source, Device::Cpu, Precision::Bf16).unwrap();
        let rough = rough.encode(&ids, EncoderMask::None).unwrap();
        assert_eq!(rough.kind(), Kind::Float);
        let relative = (&rough - &here).norm().double_value(&[]) / here.norm().double_value(&[]);
        assert!(relative > 0.0 && relative < 0.03, "{relative}");
    }
}

#[test]
fn the_first_released_names_of_norms_are_read() {
    let first = encoder(5, BertLayout::Bert, Precision::F32);
    let folder = saved(&first);
    let old = |name: &str| {
        let name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
        format!("bert.{name}")
    };
    let extra = Tensor::zeros([24, 24], (Kind::Float, Device::Cpu));
    let tensors: Vec<_> = first.params().iter().map(|(name, p)| (old(name), p.tensor.shallow_clone())).collect();
    let others = [("bert.pooler.dense.weight", &extra), ("cls.predictions.bias", &extra)];
    let all = tensors.iter().map(|(name, t)| (name.as_str(), t)).chain(others);
    tensorfile::write(&folder.path().join("model.safetensors"), all, Default::default()).unwrap();
    let ids = ids(2, 2, 7);
    let again = open(folder.path(), None).unwrap().encode(&ids, EncoderMask::None).unwrap();
    assert!(again.equal(&first.encode(&ids, EncoderMask::None).unwrap()));
}

#[test]
fn what_does_not_fit_is_named() {
    let first = encoder(5, BertLayout::Bert, Precision::F32);
    let folder = saved(&first);
    let at = |name: &str| folder.path().join(name);
    let message = |layer| open(folder.path(), layer).map(|_| ()).unwrap_err().to_string();
    assert!(message(Some(3)).contains("0 (embeddings) to 2"), "{}", message(Some(3)));

    // Missing and misshapen parameters, all in one message.
    let mut tensors: Vec<_> = first.params().iter().map(|(name, p)| (name, p.tensor.shallow_clone())).collect();
    tensors.retain(|(name, _)| *name != "embeddings.LayerNorm.bias");
    let query = tensors.iter_mut().find(|(name, _)| name.ends_with("layer.1.attention.self.query.bias")).unwrap();
    query.1 = query.1.narrow(0, 0, 20);
    tensorfile::write(&at("model.safetensors"), tensors.iter().map(|(name, t)| (*name, t)), Default::default())
        .unwrap();
    for part in [
        "embeddings.LayerNorm.bias: the model has [24], the file has none",
        "query.bias: the model has [24], the file has [20]",
    ] {
        assert!(message(None).contains(part), "{}", message(None));
    }
    assert!(!message(Some(1)).contains("query"), "of layers that are not made nothing is asked");

    std::fs::write(at("tokenizer.json"), r#"{"added_tokens": [], "model": {"vocab": {"</s>": 1}}}"#).unwrap();
    assert!(message(None).contains("[CLS]") && message(None).contains("tokenizer.json"), "{}", message(None));
    std::fs::remove_file(at("tokenizer.json")).unwrap();
    assert!(message(None).contains("tokenizer.json"), "{}", message(None));

    let config = std::fs::read_to_string(at("config.json")).unwrap();
    for (from, to, part) in [
        (
            "\"model_type\": \"bert\"",
            "\"model_type\": \"roberta\"",
            "`roberta`; encoders can be of t5, mt5, bert, distilbert",
        ),
        ("\"model_type\": \"bert\"", "\"model_type\": 7", "which is no text"),
        ("\"hidden_size\": 24,", "", "hidden_size"),
        ("\"hidden_size\": 24", "\"hidden_size\": 25", "hidden_size 25 is not a multiple of num_attention_heads 3"),
        ("\"gelu\"", "\"relu\"", "only `gelu` is supported"),
        ("\"absolute\"", "\"relative_key\"", "only `absolute` is supported"),
        ("\"vocab_size\": 50", "\"vocab_size\": 5000000", "holds only"),
        ("{", "{{", "not JSON"),
    ] {
        let changed = config.replacen(from, to, 1);
        assert_ne!(changed, config, "{from}");
        std::fs::write(at("config.json"), changed).unwrap();
        std::fs::copy(fixture("bert").join("tokenizer.json"), at("tokenizer.json")).unwrap();
        let found = message(None);
        assert!(
            found.contains(part) && found.contains(folder.path().to_str().unwrap()),
            "{found} should contain {part}"
        );
    }
}

#[test]
fn ids_and_lengths_that_cannot_be_are_refused() {
    let encoder = encoder(1, BertLayout::Bert, Precision::F32);
    let foreign = Tensor::from_slice(&[3i64, 50]).view([1, 2]);
    assert!(matches!(encoder.encode(&foreign, EncoderMask::None), Err(Error::Vocabulary { id: 50, vocab_size: 50 })));
    assert!(encoder.encode(&ids(0, 1, 32), EncoderMask::None).is_ok(), "33 positions with [CLS]");
    let long = encoder.encode(&ids(0, 1, 33), EncoderMask::None);
    assert!(matches!(long, Err(Error::TooLong { tokens: 33, most: 32 })));
    let mask = Tensor::ones([2, 5], (Kind::Bool, Device::Cpu));
    let message = encoder.encode(&ids(0, 2, 6), EncoderMask::Columns(&mask)).unwrap_err().to_string();
    assert!(message.contains("[2, 5]") && message.contains("[2, 6]"), "{message}");
    let builder = ParamBuilder::unset(Device::Cpu);
    assert!(BertEncoder::new(&config(BertLayout::Bert), 50, builder, Precision::F32).is_err());
    // T5 has no inner outputs.
    let t5 = tempfile::tempdir().unwrap();
    std::fs::write(t5.path().join("config.json"), r#"{"model_type": "t5"}"#).unwrap();
    assert!(open(t5.path(), Some(1)).map(|_| ()).unwrap_err().to_string().contains("encoder_layer 1"));
}

/// A text behind a condition that sees itself whole, written piece by piece.
#[test]
fn rows_that_grow_have_the_latents_of_whole_rows() {
    let s = 14;
    let at = Tensor::arange(s, (Kind::Int64, Device::Cpu));
    let [condition_lengths, valid_lengths] = [[3i64, 1], [14, 9]].map(|n| Tensor::from_slice(&n).view([2, 1, 1]));
    let (rows, columns) = (at.view([1, s, 1]), at.view([1, 1, s]));
    let in_condition = columns.lt_tensor(&condition_lengths);
    let past = columns.le_tensor(&rows).logical_and(&columns.lt_tensor(&valid_lengths));
    let mask = in_condition.where_self(&rows.lt_tensor(&condition_lengths), &past);
    for layout in [BertLayout::Bert, BertLayout::DistilBert] {
        let encoder = encoder(7, layout, Precision::F32);
        let ids = ids(4, 2, s);
        let whole = encoder.encode(&ids, EncoderMask::Pairs(&mask)).unwrap();
        let mut growing = encoder.growing(2, s).unwrap();
        let mut piece = |from: i64, n: i64| {
            let mask = mask.narrow(1, from, n).narrow(2, 0, from + n);
            let found = growing.encode(from, &ids.narrow(1, from, n), &mask)?;
            assert!(apart(&found, &whole.narrow(1, from, n)) < 1e-5, "{layout:?} from {from}");
            Ok::<_, Error>(())
        };
        // One piece overlaps the one before it.
        for (from, n) in [(0, 4), (4, 1), (3, 4), (7, 7)] {
            piece(from, n).unwrap();
        }
        assert!(piece(13, 1).is_ok(), "written over once more");
        let mut growing = encoder.growing(2, s).unwrap();
        let gap =
            growing.encode(1, &ids.narrow(1, 1, 2), &mask.narrow(1, 1, 2).narrow(2, 0, 3)).unwrap_err().to_string();
        assert!(gap.contains("behind at most 0 positions"), "{gap}");
        let narrow = growing.encode(0, &ids.narrow(1, 0, 2), &mask.narrow(1, 0, 2)).unwrap_err().to_string();
        assert!(narrow.contains("[2, 2, 2]"), "{narrow}");
        assert!(growing.encode(0, &laws::ids(4, 2, s + 1), &mask).unwrap_err().to_string().contains("of 14 in all"));
    }
}
