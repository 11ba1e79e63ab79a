//! The T5 encoder as its users see it: files, masks, independence, precision and errors.

mod laws;

use std::path::Path;

use elf_core::tensorfile::{self, TensorFile};
use elf_core::{ParamBuilder, Precision};
use elf_encoder::{EncoderMask, EncoderSource, FeedForward, T5Config, T5Encoder, TextEncoder, open_encoder};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

use laws::{apart, ids};

fn config(feed_forward_proj: FeedForward) -> T5Config {
    T5Config {
        vocab_size: 50,
        d_model: 24,
        d_kv: 8,
        d_ff: 40,
        num_layers: 2,
        num_heads: 2,
        relative_attention_num_buckets: 8,
        relative_attention_max_distance: 16,
        layer_norm_epsilon: 1e-6,
        feed_forward_proj,
        initializer_factor: 1.0,
    }
}

fn encoder(seed: u64, kind: FeedForward) -> T5Encoder {
    T5Encoder::new(&config(kind), ParamBuilder::seeded(seed, Device::Cpu), Precision::F32).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hidden_columns_do_not_reach_visible_rows(seed in any::<u8>(), s in 2i64..20, keep in 1i64..19, other in 0i64..50) {
        laws::hidden_columns_do_not_reach_visible_rows(&encoder(seed.into(), FeedForward::GatedGelu), seed, s, keep, other);
    }

    #[test]
    fn a_row_does_not_depend_on_its_batch(seed in any::<u8>(), b in 1i64..6, s in 1i64..20) {
        let encoder = encoder(seed.into(), FeedForward::Relu);
        let all = ids(seed.into(), b, s);
        let together = encoder.encode(&all, EncoderMask::None).unwrap();
        for row in 0..b {
            let alone = encoder.encode(&all.narrow(0, row, 1), EncoderMask::None).unwrap();
            prop_assert!(apart(&alone, &together.narrow(0, row, 1)) < 2e-6);
        }
    }
}

#[test]
fn a_mask_of_ones_is_no_mask_and_rows_that_see_nothing_are_finite() {
    let (b, s) = (2, 9);
    let ids = ids(3, b, s);
    for precision in [Precision::F32, Precision::Bf16] {
        let encoder =
            T5Encoder::new(&config(FeedForward::Relu), ParamBuilder::seeded(1, Device::Cpu), precision).unwrap();
        let free = encoder.encode(&ids, EncoderMask::None).unwrap();
        for kind in [Kind::Float, Kind::Int64, Kind::Bool] {
            let ones = Tensor::ones([b, s], (kind, Device::Cpu));
            assert!(apart(&free, &encoder.encode(&ids, EncoderMask::Columns(&ones)).unwrap()) < 1e-6);
        }
        let none = Tensor::zeros([b, s, s], (Kind::Bool, Device::Cpu));
        let blind = encoder.encode(&ids, EncoderMask::Pairs(&none)).unwrap();
        assert_eq!(blind.isfinite().all().int64_value(&[]), 1, "{precision}");
    }
}

#[test]
fn lengths_may_change_from_batch_to_batch() {
    let encoder = encoder(0, FeedForward::Relu);
    let first = encoder.encode(&ids(0, 1, 12), EncoderMask::None).unwrap();
    assert_eq!(encoder.encode(&ids(0, 3, 5), EncoderMask::None).unwrap().size(), [3, 5, 24]);
    assert!(first.equal(&encoder.encode(&ids(0, 1, 12), EncoderMask::None).unwrap()));
}

#[test]
fn bf16_blocks_stay_close_and_give_fp32() {
    let folder = tempfile::tempdir().unwrap();
    encoder(4, FeedForward::GatedGelu).save(folder.path()).unwrap();
    let ids = ids(1, 3, 16);
    let [exact, rough] = [Precision::F32, Precision::Bf16]
        .map(|p| T5Encoder::load(folder.path(), Device::Cpu, p).unwrap().encode(&ids, EncoderMask::None).unwrap());
    assert_eq!(rough.kind(), Kind::Float);
    let relative = (&rough - &exact).norm().double_value(&[]) / exact.norm().double_value(&[]);
    assert!(relative > 0.0 && relative < 0.02, "{relative}");
}

#[test]
fn a_seed_is_a_model_with_t5s_own_deviations() {
    let config =
        T5Config { d_model: 256, d_kv: 32, num_heads: 4, d_ff: 512, vocab_size: 400, ..config(FeedForward::GatedGelu) };
    let encoder = T5Encoder::new(&config, ParamBuilder::seeded(9, Device::Cpu), Precision::F32).unwrap();
    let block = "encoder.block.1.layer";
    for (name, std) in [
        ("shared.weight".to_owned(), 1.0),
        (format!("{block}.0.SelfAttention.q.weight"), (256.0 * 32.0f64).powf(-0.5)),
        (format!("{block}.0.SelfAttention.k.weight"), 256f64.powf(-0.5)),
        (format!("{block}.0.SelfAttention.v.weight"), 256f64.powf(-0.5)),
        (format!("{block}.0.SelfAttention.o.weight"), 128f64.powf(-0.5)),
        (format!("{block}.1.DenseReluDense.wi_0.weight"), 256f64.powf(-0.5)),
        (format!("{block}.1.DenseReluDense.wo.weight"), 512f64.powf(-0.5)),
    ] {
        let found = encoder.params().get(&name).unwrap().tensor.std(true).double_value(&[]);
        assert!((found / std - 1.0).abs() < 0.02, "{name}: {found} instead of {std}");
    }
    assert_eq!(encoder.params().numel(), config.parameter_count() as u64);
    let again = T5Encoder::new(&config, ParamBuilder::seeded(9, Device::Cpu), Precision::F32).unwrap();
    let ids = ids(0, 1, 6);
    assert!(encoder.encode(&ids, EncoderMask::None).unwrap().equal(&again.encode(&ids, EncoderMask::None).unwrap()));
}

#[test]
fn what_is_saved_is_loaded_and_crosses_threads() {
    for kind in [FeedForward::Relu, FeedForward::GatedGelu] {
        let folder = tempfile::tempdir().unwrap();
        let first = encoder(5, kind);
        first.save(folder.path()).unwrap();
        let second = T5Encoder::load(folder.path(), Device::Cpu, Precision::F32).unwrap();
        assert_eq!(first.config(), second.config());
        assert!(second.params().iter().all(|(_, p)| !p.tensor.requires_grad()));
        let ids = ids(2, 2, 7);
        let here = first.encode(&ids, EncoderMask::None).unwrap();
        assert!(!here.requires_grad());
        let boxed: Box<dyn TextEncoder> = Box::new(second);
        let there = std::thread::spawn(move || boxed.encode(&ids, EncoderMask::None).unwrap()).join().unwrap();
        assert!(here.equal(&there));
    }
}

/// Rewrites the model file of `folder` through `change`.
fn rewrite(folder: &Path, change: impl FnOnce(&mut Vec<(String, Tensor)>)) {
    let path = folder.join("model.safetensors");
    let mut tensors = TensorFile::open(&path).unwrap().read_all(Device::Cpu).unwrap();
    change(&mut tensors);
    tensorfile::write(&path, tensors.iter().map(|(n, t)| (n.as_str(), t)), Default::default()).unwrap();
}

fn saved() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    encoder(6, FeedForward::Relu).save(folder.path()).unwrap();
    folder
}

fn load_error(folder: &Path) -> String {
    T5Encoder::load(folder, Device::Cpu, Precision::F32).unwrap_err().to_string()
}

#[test]
fn decoders_are_ignored_and_either_name_of_the_embedding_is_taken() {
    let folder = saved();
    let ids = ids(0, 1, 5);
    let expected = encoder(6, FeedForward::Relu).encode(&ids, EncoderMask::None).unwrap();
    let load = || {
        T5Encoder::load(folder.path(), Device::Cpu, Precision::F32).unwrap().encode(&ids, EncoderMask::None).unwrap()
    };
    rewrite(folder.path(), |tensors| {
        let (_, shared) = tensors.iter().find(|(n, _)| n == "shared.weight").unwrap();
        let copy = shared.copy();
        tensors.push(("encoder.embed_tokens.weight".into(), copy.copy()));
        tensors.push(("decoder.embed_tokens.weight".into(), copy.copy()));
        tensors.push((
            "decoder.block.0.layer.0.SelfAttention.q.weight".into(),
            Tensor::zeros([3], (Kind::Float, Device::Cpu)),
        ));
        tensors.push(("lm_head.weight".into(), copy));
    });
    assert!(load().equal(&expected));
    rewrite(folder.path(), |tensors| tensors.retain(|(n, _)| n != "shared.weight"));
    assert!(load().equal(&expected));
}

#[test]
fn files_that_do_not_fit_are_named() {
    let folder = saved();
    rewrite(folder.path(), |tensors| tensors.retain(|(n, _)| !n.ends_with("1.layer.0.layer_norm.weight")));
    let message = load_error(folder.path());
    assert!(
        message.contains("encoder.block.1.layer.0.layer_norm.weight") && message.contains("the file has none"),
        "{message}"
    );

    let folder = saved();
    rewrite(folder.path(), |tensors| tensors.retain(|(n, _)| n != "shared.weight"));
    assert!(load_error(folder.path()).contains("shared.weight"));

    // A model of another size beside this configuration, small enough to pass the first look.
    let folder = saved();
    T5Config { d_ff: 32, ..config(FeedForward::Relu) }.save(&folder.path().join("config.json")).unwrap();
    let message = load_error(folder.path());
    assert!(message.contains("DenseReluDense.wo.weight: the model has [24, 32], the file has [24, 40]"), "{message}");

    // Too large for the file: refused before memory is asked for.
    let folder = saved();
    T5Config { vocab_size: 1 << 24, d_model: 1 << 17, ..config(FeedForward::Relu) }
        .save(&folder.path().join("config.json"))
        .unwrap();
    let message = load_error(folder.path());
    assert!(message.contains("config.json") && message.contains("parameters, but"), "{message}");

    let folder = saved();
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(load_error(folder.path()).contains("model.safetensors is not a usable safetensors file"));
    std::fs::remove_file(&path).unwrap();
    assert!(load_error(folder.path()).contains("model.safetensors"));
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    assert!(load_error(folder.path()).contains("vocab_size"));
    assert!(load_error(&folder.path().join("nowhere")).contains("nowhere"));
}

#[test]
fn ids_and_masks_that_do_not_fit_are_errors() {
    let encoder = encoder(0, FeedForward::Relu);
    let message = |ids: &Tensor, mask| encoder.encode(ids, mask).unwrap_err().to_string();
    let good = ids(0, 2, 4);
    for (bad, found) in [(50i64, "token id 50 is outside"), (-1, "token id -1 is outside"), (i64::MAX, "is outside")] {
        let ids = good.copy();
        let _ = ids.get(1).get(2).fill_(bad);
        assert!(message(&ids, EncoderMask::None).contains(found));
    }
    assert!(message(&good.get(0), EncoderMask::None).contains("[B, S]"));
    assert!(message(&good.narrow(1, 0, 0), EncoderMask::None).contains("[B, S]"));
    assert!(message(&good.to_kind(Kind::Float), EncoderMask::None).contains("int64"));
    let mask = Tensor::ones([2, 5], (Kind::Float, Device::Cpu));
    assert!(message(&good, EncoderMask::Columns(&mask)).contains("[2, 4]"));
    assert!(message(&good, EncoderMask::Pairs(&mask)).contains("[2, 4, 4]"));
}

/// Hugging Face keeps weights in one safetensors file, in shards with an index, or in a PyTorch file: all give the same.
#[test]
fn shards_and_pytorch_files_load_as_one_file_does() {
    use elf_core::pytorch::{Value, write};
    use elf_core::tensorfile;
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let ids = ids(3, 2, 7);
    let first = encoder(8, FeedForward::Relu);
    first.save(folder.path()).unwrap();
    let wanted = first.encode(&ids, EncoderMask::None).unwrap();
    std::fs::remove_file(at("model.safetensors")).unwrap();
    let same = |what: &str| {
        let again = T5Encoder::load(folder.path(), Device::Cpu, Precision::F32).unwrap();
        assert!(again.encode(&ids, EncoderMask::None).unwrap().equal(&wanted), "{what}");
    };

    let item = |(name, p): (&str, &elf_core::Param)| (Value::Str(name.into()), Value::Tensor(p.tensor.shallow_clone()));
    write(&at("pytorch_model.bin"), &Value::Dict(first.params().iter().map(item).collect())).unwrap();
    same("pytorch_model.bin");
    std::fs::remove_file(at("pytorch_model.bin")).unwrap();

    let mut map = serde_json::Map::new();
    for (i, (name, p)) in first.params().iter().enumerate() {
        let shard = format!("model-{i:05}.safetensors");
        tensorfile::write(&at(&shard), [(name, &p.tensor)], Default::default()).unwrap();
        map.insert(name.to_owned(), shard.into());
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": map });
    std::fs::write(at("model.safetensors.index.json"), index.to_string()).unwrap();
    same("shards");
}

/// Without its blocks an encoder knows no context: a token's latent is its row, normalised, wherever it stands.
#[test]
fn a_token_table_knows_no_context_and_survives_its_file() {
    let config = config(FeedForward::Relu);
    let encoder = T5Encoder::new(&config, ParamBuilder::seeded(3, Device::Cpu), Precision::F32).unwrap();
    let table = encoder.token_table().unwrap();
    let folder = tempfile::tempdir().unwrap();
    table.save(folder.path()).unwrap();
    let table = T5Encoder::load(folder.path(), Device::Cpu, Precision::F32).unwrap();
    let ids = Tensor::from_slice(&[5i64, 3, 5, 4]).view([1, 4]);
    let seen = Tensor::from_slice(&[1i64, 0, 0, 1]).view([1, 4]);
    let latents = table.encode(&ids, EncoderMask::Columns(&seen)).unwrap();
    assert_eq!(latents.size(), [1, 4, config.d_model]);
    assert!(latents.select(1, 0).equal(&latents.select(1, 2)));
    let row = encoder.params().get("shared.weight").unwrap().tensor.select(0, 5);
    let normal = &row / (row.square().mean(Kind::Float) + config.layer_norm_epsilon).sqrt();
    assert!((latents.select(1, 0) - normal).abs().max().double_value(&[]) < 1e-5);
}

/// Of a T5's layers only the table can be named.
#[test]
fn layer_0_is_the_token_table() {
    let encoder = encoder(7, FeedForward::Relu);
    let folder = tempfile::tempdir().unwrap();
    encoder.save(folder.path()).unwrap();
    let open = |layer| {
        let source = EncoderSource { layer: Some(layer), ..EncoderSource::folder(folder.path()) };
        open_encoder(&source, Device::Cpu, Precision::F32)
    };
    let ids = ids(4, 2, 5);
    let expected = encoder.token_table().unwrap().encode(&ids, EncoderMask::None).unwrap();
    assert!(encoder.usual_moments().is_some() && open(0).unwrap().usual_moments().is_none());
    assert!(open(0).unwrap().encode(&ids, EncoderMask::None).unwrap().equal(&expected));
    let refused = open(1).err().unwrap().to_string();
    assert!(refused.contains("encoder_layer 1") && refused.contains("token table"), "{refused}");
}

#[test]
fn rows_that_grow_have_the_latents_of_whole_rows() {
    // Longer than the buckets that are exact, of a table whose greatest distance lies within the row.
    let s = 24;
    let mask = Tensor::ones([s, s], (Kind::Bool, Device::Cpu)).tril(0).expand([2, s, s], false);
    for kind in [FeedForward::Relu, FeedForward::GatedGelu] {
        let encoder = encoder(7, kind);
        let ids = ids(4, 2, s);
        let whole = encoder.encode(&ids, EncoderMask::Pairs(&mask)).unwrap();
        let mut growing = encoder.growing(2, s).unwrap();
        for (from, n) in [(0, 4), (4, 1), (3, 4), (7, 16), (23, 1)] {
            let mask = mask.narrow(1, from, n).narrow(2, 0, from + n);
            let found = growing.encode(from, &ids.narrow(1, from, n), &mask).unwrap();
            assert!(apart(&found, &whole.narrow(1, from, n)) < 1e-5, "from {from}");
        }
    }
    let table = encoder(7, FeedForward::Relu).token_table().unwrap();
    let ids = ids(4, 1, 3);
    let all = Tensor::ones([1, 3, 3], (Kind::Bool, Device::Cpu));
    let found = table.growing(1, 3).unwrap().encode(0, &ids, &all).unwrap();
    assert!(found.equal(&table.encode(&ids, EncoderMask::None).unwrap()));
}
