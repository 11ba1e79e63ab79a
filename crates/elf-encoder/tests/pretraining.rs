//! Pre-training: what the decoder may see, that the loss falls, and that what is shipped is the encoder that was trained.

use elf_core::{Noise, ParamBuilder, Precision, Seeded, key_of};
use elf_encoder::{
    Corrupted, DenoisingBatch, EncoderMask, SpanCorruption, T5Config, T5Encoder, T5Pretraining, TextEncoder,
};
use tch::{Device, Kind};

const VOCAB: i64 = 30;
const EXTRA: i64 = 8;

fn model(feed_forward: &str, precision: Precision) -> T5Pretraining {
    let config = T5Config::from_json(&format!(
        r#"{{"vocab_size": {VOCAB}, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2,
            "feed_forward_proj": "{feed_forward}"}}"#
    ))
    .unwrap();
    T5Pretraining::new(&config, EXTRA, 2, ParamBuilder::seeded(3, Device::Cpu), precision).unwrap()
}

fn task() -> SpanCorruption {
    SpanCorruption {
        density: 0.3,
        mean_span: 2.0,
        ..SpanCorruption::t5(1, (VOCAB as i32..(VOCAB + EXTRA) as i32).collect())
    }
}

/// Texts in which each token follows from the one before it.
fn texts(count: i32) -> Vec<Vec<i32>> {
    (0..count).map(|i| (0..8 + i % 5).map(|j| 2 + (i * 3 + j) % (VOCAB as i32 - 2)).collect()).collect()
}

fn batch(texts: &[Vec<i32>], seed: u64) -> DenoisingBatch {
    let keys = (0..texts.len() as u64).map(|i| key_of(&[seed, i])).collect();
    let texts: Vec<&[i32]> = texts.iter().map(Vec::as_slice).collect();
    DenoisingBatch::new(&task().corrupt(&texts, &mut Seeded::new(keys, Device::Cpu)).unwrap(), 0).unwrap()
}

/// The mean loss of one target alone.
fn loss_of(model: &T5Pretraining, targets: &[i32], counted: usize) -> f64 {
    let one = Corrupted { inputs: vec![5, 30, 8, 9, 1], targets: targets.to_vec() };
    let all = DenoisingBatch::new(&[one], 0).unwrap();
    let n = counted as i64;
    let first = DenoisingBatch { places: all.places.narrow(0, 0, n), targets: all.targets.narrow(0, 0, n), ..all };
    tch::no_grad(|| model.loss(&first)).unwrap().double_value(&[])
}

#[test]
fn the_decoder_sees_nothing_of_what_is_still_to_come() {
    for feed_forward in ["relu", "gated-gelu"] {
        let model = model(feed_forward, Precision::F32);
        // The first three losses may not depend on the ids from the fourth on, the fourth must.
        let (a, b) = ([30, 6, 7, 10, 11, 1], [30, 6, 7, 12, 13, 1]);
        assert_eq!(loss_of(&model, &a, 3), loss_of(&model, &b, 3));
        assert!((loss_of(&model, &a, 4) - loss_of(&model, &b, 4)).abs() > 1e-4);
        // And they do depend on the ids before.
        assert!((loss_of(&model, &[30, 9, 7, 1], 3) - loss_of(&model, &[30, 6, 7, 1], 3)).abs() > 1e-4);
    }
}

#[test]
fn a_text_does_not_depend_on_the_batch_it_is_padded_in() {
    let model = model("gated-gelu", Precision::F32);
    let corrupted = [
        Corrupted { inputs: vec![5, 30, 8, 1], targets: vec![30, 6, 7, 1] },
        Corrupted { inputs: vec![5, 6, 7, 8, 9, 30, 2, 3, 1], targets: vec![30, 4, 5, 6, 7, 8, 1] },
    ];
    let loss = |texts: &[Corrupted]| {
        let batch = DenoisingBatch::new(texts, 0).unwrap();
        let n = batch.targets.numel() as f64;
        tch::no_grad(|| model.loss(&batch)).unwrap().double_value(&[]) * n
    };
    let apart = loss(&corrupted[..1]) + loss(&corrupted[1..]);
    let together = loss(&corrupted);
    assert!((apart - together).abs() < 1e-4, "{apart} {together}");
}

#[test]
fn the_closed_gradient_is_that_of_the_loss() {
    // Against differences of the loss itself, in the direction of the gradient.
    for feed_forward in ["relu", "gated-gelu"] {
        let model = model(feed_forward, Precision::F32);
        let batch = batch(&texts(6), 1);
        model.loss(&batch).unwrap().backward();
        for name in [
            "shared.weight",
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            "encoder.block.1.layer.1.DenseReluDense.wo.weight",
            "decoder.block.1.layer.1.EncDecAttention.k.weight",
            "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        ] {
            let p = &model.params().get(name).unwrap().tensor;
            let gradient = p.grad().copy();
            let norm = gradient.norm().double_value(&[]);
            assert!(norm > 0.0, "{name}");
            let at = |far: f64| {
                tch::no_grad(|| {
                    let before = p.copy();
                    let _ = p.shallow_clone().f_add_(&(&gradient * (far / norm))).unwrap();
                    model.params().changed();
                    let loss = model.loss(&batch).unwrap().double_value(&[]);
                    p.shallow_clone().f_copy_(&before).unwrap();
                    model.params().changed();
                    loss
                })
            };
            let slope = (at(5e-3) - at(-5e-3)) / 1e-2;
            assert!((slope - norm).abs() < 0.02 * norm + 1e-3, "{name}: {slope} where the gradient says {norm}");
        }
    }
}

/// A plain gradient step of a set length: so much of each parameter, in root mean squares.
fn step(model: &T5Pretraining, batch: &DenoisingBatch, length: f64) {
    model.params().zero_grad();
    model.loss(batch).unwrap().backward();
    tch::no_grad(|| {
        for (_, p) in model.params().iter().filter(|(_, p)| p.tensor.grad().defined()) {
            let grad = p.tensor.grad();
            let step = &grad * (length * (p.tensor.numel() as f64).sqrt() / (grad.norm().double_value(&[]) + 1e-6));
            let _ = p.tensor.shallow_clone().f_sub_(&step).unwrap();
        }
    });
    model.params().changed();
}

#[test]
fn a_task_is_learned_from_its_source_alone() {
    let model = model("gated-gelu", Precision::F32);
    // One token to read, its "translation" to write.
    let lessons = |ids: std::ops::Range<i32>| -> Vec<Corrupted> {
        ids.map(|id| Corrupted::task(&[id], &[VOCAB as i32 + 1 - id], 1)).collect()
    };
    assert_eq!(lessons(5..6)[0], Corrupted { inputs: vec![5, 1], targets: vec![26, 1] });
    let all = DenoisingBatch::new(&lessons(2..VOCAB as i32), 0).unwrap();
    let loss = || tch::no_grad(|| model.loss(&all)).unwrap().double_value(&[]);
    let before = loss();
    // Steps that stay long end at a place that hangs on the last bits of the products, which differ between processors.
    (0..300).for_each(|i| step(&model, &all, 0.05 * (1.0 - f64::from(i) / 300.0)));
    // Of the two tokens to write, EOS can be known without the source; that alone leaves half of ln 28.
    let blind = f64::ln(28.0) / 2.0;
    let after = loss();
    assert!(before > blind && after < blind / 2.0, "{before} to {after}, {blind} without the source");
}

#[test]
fn the_loss_falls_and_what_is_shipped_gives_the_same_latents() {
    for (feed_forward, precision, kind) in
        [("relu", Precision::F32, Kind::Float), ("gated-gelu", Precision::Bf16, Kind::BFloat16)]
    {
        let model = model(feed_forward, precision);
        let texts = texts(40);
        let held_out = batch(&texts, 999);
        let loss = || tch::no_grad(|| model.loss(&held_out)).unwrap().double_value(&[]);
        let before = loss();
        (0..60).for_each(|seed| step(&model, &batch(&texts, seed), 0.05));
        let after = loss();
        assert!(after < before - 0.5, "{before} to {after}");

        let folder = tempfile::tempdir().unwrap();
        model.save_encoder(folder.path(), kind).unwrap();
        let read = T5Encoder::load(folder.path(), Device::Cpu, Precision::F32).unwrap();
        assert_eq!(read.vocab_size(), VOCAB, "sentinels that the tokenizer lacks are not shipped");
        let ids = (Seeded::new(vec![1, 2], Device::Cpu).uniform("ids", &[2, 9]).unwrap() * VOCAB).to_kind(Kind::Int64);
        let found = read.encode(&ids, EncoderMask::None).unwrap();
        let expected = model.shipped(kind, Precision::F32).unwrap().encode(&ids, EncoderMask::None).unwrap();
        assert!(found.equal(&expected));
        // And they are those that the decoder learned to read, as far as the rounding goes.
        let trained = model.latents(&ids).unwrap();
        let worst = (&found - &trained).abs().max().double_value(&[]);
        let (tolerance, size) = (if kind == Kind::Float { 1e-4 } else { 0.2 }, trained.abs().max().double_value(&[]));
        assert!(worst < tolerance * size, "{worst} of {size}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let model = model("relu", Precision::F32);
    let beyond = Corrupted { inputs: vec![5, (VOCAB + EXTRA) as i32, 1], targets: vec![30, 1] };
    let message = model.loss(&DenoisingBatch::new(&[beyond], 0).unwrap()).unwrap_err().to_string();
    assert!(message.contains("38"), "{message}");
    let config = T5Config::from_json(
        r#"{"vocab_size": 30, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}"#,
    )
    .unwrap();
    for layers in [0, -1, 5000] {
        let made = T5Pretraining::new(&config, 0, layers, ParamBuilder::seeded(0, Device::Cpu), Precision::F32);
        assert!(made.unwrap_err().to_string().contains("decoder"));
    }
    let short = T5Config { relative_attention_max_distance: 12, ..config };
    let made = T5Pretraining::new(&short, 0, 1, ParamBuilder::seeded(0, Device::Cpu), Precision::F32).unwrap();
    let one = Corrupted { inputs: vec![5, 6, 1], targets: vec![7, 1] };
    let message = made.loss(&DenoisingBatch::new(&[one], 0).unwrap()).unwrap_err().to_string();
    assert!(message.contains("relative_attention_max_distance is 12"), "{message}");
}
