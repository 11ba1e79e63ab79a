//! Each fused operation against its plain form: values and gradients, in both kinds, at sizes that fill no vector.

use elf_kernels::{
    AdamStep, Heads, MomentumStep, adam, add_scaled, attend, cross_entropy, heads, instruction_set, momentum, plain,
    rms_norm, softmax, swiglu,
};
use tch::{Device, Kind, Tensor};

/// Numbers without a pattern that any of the operations could hide behind.
fn wave(shape: &[i64], from: f64) -> Tensor {
    let n: i64 = shape.iter().product();
    let at = Tensor::arange(n, (Kind::Float, Device::Cpu)) * 1.7 + from;
    (at.sin() * 1.5 + (at * 0.37).cos()).view(shape)
}

fn leaf(shape: &[i64], from: f64, kind: Kind) -> Tensor {
    wave(shape, from).to_kind(kind).set_requires_grad(true)
}

/// Largest difference, relative to the largest number, but for those that are all but 0.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!((a.size(), a.kind()), (b.size(), b.kind()));
    if a.numel() == 0 {
        return 0.0;
    }
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    (&a - &b).abs().max().double_value(&[]) / b.abs().max().double_value(&[]).max(1e-2)
}

/// What rounding each intermediate to bf16 may cost the plain form.
fn tolerance(kind: Kind) -> f64 {
    if kind == Kind::Float { 5e-6 } else { 5e-2 }
}

/// The gradients of a weighted sum of `outputs` with respect to `inputs`.
fn gradients(outputs: &[Tensor], inputs: &[&Tensor]) -> Vec<Tensor> {
    let weighted =
        |(i, y): (usize, &Tensor)| (y.to_kind(Kind::Float) * wave(&y.size(), 0.3 + i as f64)).sum(Kind::Float);
    let loss: Tensor = outputs.iter().enumerate().map(weighted).sum();
    Tensor::run_backward(&[loss], inputs, false, false)
}

fn agree(what: &str, kind: Kind, fused: &[Tensor], plain: &[Tensor], inputs: &[&Tensor]) {
    let all = |outputs: &[Tensor]| {
        let values = outputs.iter().map(Tensor::detach).collect::<Vec<_>>();
        values.into_iter().chain(gradients(outputs, inputs)).collect::<Vec<_>>()
    };
    for (i, (a, b)) in all(fused).iter().zip(&all(plain)).enumerate() {
        let far = distance(a, b);
        assert!(far < tolerance(kind), "{what}, {kind:?}, tensor {i}: {far:e}");
    }
}

#[test]
fn this_processor_has_a_variant() {
    assert!(["base", "avx2", "avx512"].contains(&instruction_set()));
}

#[test]
fn rms_norm_agrees() {
    for shape in [vec![7], vec![3, 64], vec![2, 5, 771], vec![0, 16]] {
        for (kind, to) in [
            (Kind::Float, Kind::Float),
            (Kind::Float, Kind::BFloat16),
            (Kind::BFloat16, Kind::BFloat16),
            (Kind::BFloat16, Kind::Float),
        ] {
            let (x, w) = (leaf(&shape, 0.0, kind), leaf(&shape[shape.len() - 1..], 2.0, Kind::Float));
            let fused = rms_norm(&x, &w, 1e-6, to).unwrap();
            let coarser = if kind == Kind::Float { to } else { kind };
            agree("rms_norm", coarser, &[fused], &[plain::rms_norm(&x, &w, 1e-6, to).unwrap()], &[&x, &w]);
        }
    }
}

#[test]
fn a_row_of_zeros_and_a_view_are_normalised_too() {
    let zeros = Tensor::zeros([2, 8], (Kind::Float, Device::Cpu));
    let w = Tensor::ones([8], (Kind::Float, Device::Cpu));
    assert!(rms_norm(&zeros, &w, 1e-6, Kind::Float).unwrap().equal(&zeros));
    let view = wave(&[8, 6], 0.0).transpose(0, 1);
    let fused = rms_norm(&view, &w, 1e-6, Kind::Float).unwrap();
    assert!(distance(&fused, &plain::rms_norm(&view, &w, 1e-6, Kind::Float).unwrap()) < 1e-6);
}

#[test]
fn what_is_no_number_stays_none() {
    let w = Tensor::ones([4], (Kind::Float, Device::Cpu));
    for kind in [Kind::Float, Kind::BFloat16] {
        let x = Tensor::from_slice(&[1.0f32, f32::NAN, 2.0, 3.0]).to_kind(kind);
        assert!(rms_norm(&x, &w, 1e-6, kind).unwrap().isnan().any().int64_value(&[]) == 1);
        assert!(swiglu(&x).unwrap().isnan().any().int64_value(&[]) == 1);
    }
}

#[test]
fn swiglu_agrees_far_from_zero_too() {
    for kind in [Kind::Float, Kind::BFloat16] {
        for shape in [vec![2], vec![3, 4, 34], vec![5, 212]] {
            let h = leaf(&shape, 0.0, kind);
            agree("swiglu", kind, &[swiglu(&h).unwrap()], &[plain::swiglu(&h).unwrap()], &[&h]);
        }
        let far = Tensor::from_slice(&[-200.0f32, -20.0, 20.0, 200.0, 1.0, 2.0, 3.0, 4.0]).to_kind(kind);
        assert!(distance(&swiglu(&far).unwrap(), &plain::swiglu(&far).unwrap()) < tolerance(kind));
    }
}

#[test]
fn heads_agree() {
    for (batch, n, heads_, dim) in [(2, 5, 3, 16), (1, 1, 1, 2), (3, 4, 2, 66)] {
        let angles = wave(&[n, dim / 2], 5.0);
        let (cos, sin) = (angles.cos(), angles.sin());
        for kind in [Kind::Float, Kind::BFloat16] {
            let qkv = leaf(&[batch, n, 3, heads_, dim], 0.0, kind);
            let (qw, kw) = (leaf(&[dim], 1.0, Kind::Float), leaf(&[dim], 4.0, Kind::Float));
            let how = Heads { q_weight: &qw, k_weight: &kw, cos: &cos, sin: &sin, eps: 1e-6, q_scale: 0.25 };
            let parts = |t: elf_kernels::Turned| [t.q, t.k, t.v];
            let (fused, plain) = (parts(heads(&qkv, &how).unwrap()), parts(plain::heads(&qkv, &how).unwrap()));
            agree("heads", kind, &fused, &plain, &[&qkv, &qw, &kw]);
        }
    }
}

#[test]
fn softmax_agrees_with_and_without_a_mask() {
    for (rows, n, columns) in [(4i64, 3i64, 5i64), (2, 1, 1), (6, 2, 5003)] {
        let hidden =
            wave(&[2, columns], 9.0).gt(0.5).logical_and(&Tensor::arange(columns, (Kind::Int64, Device::Cpu)).gt(0));
        let mask = Tensor::zeros([2, columns], (Kind::Float, Device::Cpu)).masked_fill(&hidden, f64::NEG_INFINITY);
        for kind in [Kind::Float, Kind::BFloat16] {
            for mask in [None, Some(&mask)] {
                let scores = (wave(&[rows, n, columns], 0.0) * 3.0).to_kind(kind).set_requires_grad(true);
                let (fused, plain) = (softmax(&scores, mask).unwrap(), plain::softmax(&scores, mask).unwrap());
                agree("softmax", kind, &[fused], &[plain], &[&scores]);
            }
        }
    }
}

#[test]
fn attention_agrees_with_and_without_a_mask() {
    for (batch, heads, n, m, dim) in
        [(2i64, 2i64, 3i64, 5i64, 8i64), (1, 1, 1, 1, 2), (3, 2, 14, 14, 64), (1, 3, 17, 40, 66)]
    {
        let hidden = |queries: i64| {
            let hidden = wave(&[batch, queries, m], 9.0).gt(0.3);
            let first = Tensor::arange(m, (Kind::Int64, Device::Cpu)).gt(0);
            let zeros = Tensor::zeros([batch, queries, m], (Kind::Float, Device::Cpu));
            zeros.masked_fill(&hidden.logical_and(&first), f64::NEG_INFINITY)
        };
        let (of_keys, of_queries) = (hidden(1), hidden(n));
        for kind in [Kind::Float, Kind::BFloat16] {
            for mask in [None, Some(&of_keys), Some(&of_queries)] {
                let rows = batch * heads;
                let q = (wave(&[rows, n, dim], 0.0) * 0.5).to_kind(kind).set_requires_grad(true);
                let (k, v) = (leaf(&[rows, m, dim], 2.0, kind), leaf(&[rows, m, dim], 4.0, kind));
                let (fused, plain) = (attend(&q, &k, &v, mask).unwrap(), plain::attend(&q, &k, &v, mask).unwrap());
                agree("attention", kind, &[fused], &[plain], &[&q, &k, &v]);
            }
        }
    }
}

#[test]
fn attention_refuses_what_does_not_fit() {
    let x = |shape: &[i64]| wave(shape, 0.0);
    let refused =
        |k: &Tensor, v: &Tensor, mask: Option<&Tensor>| attend(&x(&[4, 3, 8]), k, v, mask).unwrap_err().to_string();
    assert!(refused(&x(&[4, 5, 8]), &x(&[4, 6, 8]), None).contains("alike"));
    assert!(refused(&x(&[4, 5, 6]), &x(&[4, 5, 6]), None).contains("channels of the queries"));
    assert!(refused(&x(&[4, 5, 8]), &x(&[4, 5, 8]), Some(&x(&[3, 1, 5]))).contains("the mask must be"));
    assert!(refused(&x(&[4, 5, 8]).to_kind(Kind::BFloat16), &x(&[4, 5, 8]), None).contains("of one kind"));
}

#[test]
fn cross_entropy_agrees() {
    for (rows, vocab) in [(5i64, 37i64), (1, 1), (3, 20_000), (0, 9)] {
        let ids = (Tensor::arange(rows, (Kind::Int64, Device::Cpu)) * 7).remainder(vocab);
        let (bias, weights) = (wave(&[vocab], 3.0), wave(&[rows], 8.0).abs());
        for kind in [Kind::Float, Kind::BFloat16] {
            for weights in [None, Some(&weights)] {
                let (mut a, mut b) = (wave(&[rows, vocab], 0.0).to_kind(kind), wave(&[rows, vocab], 0.0).to_kind(kind));
                let (losses, slope) = cross_entropy(&mut a, &bias, &ids, weights, true).unwrap();
                let (expected, expected_slope) = plain::cross_entropy(&mut b, &bias, &ids, weights, true).unwrap();
                assert!(distance(&losses, &expected) < 1e-5);
                assert!(distance(&slope.unwrap(), &expected_slope.unwrap()) < 1e-5);
                assert!(distance(&a, &b) < tolerance(kind));
                let mut c = wave(&[rows, vocab], 0.0).to_kind(kind);
                let (losses, none) = cross_entropy(&mut c, &bias, &ids, weights, false).unwrap();
                assert!(
                    none.is_none() && c.equal(&wave(&[rows, vocab], 0.0).to_kind(kind)),
                    "without slope nothing changes"
                );
                assert!(distance(&losses, &expected) < 1e-5);
            }
        }
    }
}

#[test]
fn an_id_outside_of_the_vocabulary_is_refused() {
    let mut logits = wave(&[2, 5], 0.0);
    let bias = Tensor::zeros([5], (Kind::Float, Device::Cpu));
    for id in [5i64, -1] {
        let message =
            cross_entropy(&mut logits, &bias, &Tensor::from_slice(&[0, id]), None, true).unwrap_err().to_string();
        assert!(message.contains("outside of the vocabulary"), "{message}");
    }
}

#[test]
fn optimiser_steps_agree() {
    for n in [1i64, 33, 100_003] {
        let step = MomentumStep { decay: 0.95, ahead: 0.9, now: 0.2 };
        let g = wave(&[n], 1.0);
        for kind in [Kind::Float, Kind::BFloat16] {
            let (mut a, mut b) = (wave(&[n], 0.0), wave(&[n], 0.0));
            let (u, sum) = momentum(&mut a, &g, step, kind).unwrap();
            let (v, expected) = plain::momentum(&mut b, &g, step, kind).unwrap();
            assert!(distance(&a, &b) < 1e-6 && distance(&u, &v) < tolerance(kind) && distance(&sum, &expected) < 1e-5);
            add_scaled(&mut a, &u, -0.3).unwrap();
            plain::add_scaled(&mut b, &u, -0.3).unwrap();
            assert!(distance(&a, &b) < 1e-6);
        }
        let step =
            AdamStep { b1: 0.9, b2: 0.99, eps: 1e-8, of_first: 1.3, of_grad: 0.4, of_second: 2.0, lr: 0.1, keep: 0.9 };
        let make = || (wave(&[n], 2.0), wave(&[n], 3.0), wave(&[n], 4.0).square());
        let ((mut p, mut m, mut v), (mut p2, mut m2, mut v2)) = (make(), make());
        adam(&mut p, &g, &mut m, &mut v, step).unwrap();
        plain::adam(&mut p2, &g, &mut m2, &mut v2, step).unwrap();
        assert!(distance(&p, &p2) < 1e-5 && distance(&m, &m2) < 1e-6 && distance(&v, &v2) < 1e-6);
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let (x, w) = (wave(&[2, 6], 0.0), wave(&[5], 0.0));
    assert!(rms_norm(&x, &w, 1e-6, Kind::Float).unwrap_err().to_string().contains("one for each channel"));
    assert!(swiglu(&wave(&[2, 5], 0.0)).unwrap_err().to_string().contains("even"));
    let mut m = wave(&[4], 0.0);
    let step = MomentumStep { decay: 0.9, ahead: 1.0, now: 1.0 };
    assert!(momentum(&mut m, &wave(&[5], 0.0), step, Kind::Float).unwrap_err().to_string().contains("alike"));
}
