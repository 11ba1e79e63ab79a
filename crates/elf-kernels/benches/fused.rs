//! Fused against plain, at ELF-B's sizes: 8 x 268 positions in bf16.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use elf_kernels::{Heads, heads, plain, rms_norm, softmax, swiglu};
use tch::{Device, Kind, Tensor};

fn wave(shape: &[i64], kind: Kind) -> Tensor {
    let n: i64 = shape.iter().product();
    (Tensor::arange(n, (Kind::Float, Device::Cpu)) * 0.7).sin().view(shape).to_kind(kind).set_requires_grad(true)
}

/// Forward alone, and forward with backward.
fn both(group: &mut BenchmarkGroup<WallTime>, name: &str, inputs: &[&Tensor], f: &dyn Fn() -> Tensor) {
    group.bench_function(format!("{name}/forward"), |b| b.iter(|| tch::no_grad(f)));
    let slope = wave(&f().size(), f().kind()).detach();
    group.bench_function(format!("{name}/forward and backward"), |b| {
        b.iter(|| Tensor::run_backward(&[(f() * &slope).sum(Kind::Float)], inputs, false, false));
    });
}

fn fused(c: &mut Criterion) {
    let mut group = c.benchmark_group("fused");
    group.sample_size(10);
    let (x, w) = (wave(&[8, 268, 768], Kind::BFloat16), wave(&[768], Kind::Float));
    let kind = Kind::BFloat16;
    both(&mut group, "rms_norm", &[&x, &w], &|| rms_norm(&x, &w, 1e-6, kind).expect("fits"));
    both(&mut group, "rms_norm, plain", &[&x, &w], &|| plain::rms_norm(&x, &w, 1e-6, kind).expect("fits"));

    let h = wave(&[8, 268, 4096], kind);
    both(&mut group, "swiglu", &[&h], &|| swiglu(&h).expect("fits"));
    both(&mut group, "swiglu, plain", &[&h], &|| plain::swiglu(&h).expect("fits"));

    let qkv = wave(&[8, 268, 3, 12, 64], kind);
    let (one, turns) = (wave(&[64], Kind::Float), wave(&[268, 32], Kind::Float).detach());
    let how = Heads { q_weight: &one, k_weight: &one, cos: &turns, sin: &turns, eps: 1e-6, q_scale: 0.125 };
    let joined = |t: elf_kernels::Turned| t.q + t.k + t.v;
    both(&mut group, "heads", &[&qkv, &one], &|| joined(heads(&qkv, &how).expect("fits")));
    both(&mut group, "heads, plain", &[&qkv, &one], &|| joined(plain::heads(&qkv, &how).expect("fits")));

    let scores = wave(&[96, 268, 268], kind);
    both(&mut group, "softmax", &[&scores], &|| softmax(&scores, None).expect("fits"));
    both(&mut group, "softmax, plain", &[&scores], &|| plain::softmax(&scores, None).expect("fits"));
    group.finish();
}

criterion_group!(benches, fused);
criterion_main!(benches);
