//! Fused against plain, at ELF-B's width: 8 x 268 positions, forward and backward.

use criterion::{Criterion, criterion_group, criterion_main};
use elf_kernels::{plain, rms_norm, swiglu};
use tch::{Device, Kind, Tensor};

fn wave(shape: &[i64], kind: Kind) -> Tensor {
    let n: i64 = shape.iter().product();
    (Tensor::arange(n, (Kind::Float, Device::Cpu)) * 0.7).sin().view(shape).to_kind(kind).set_requires_grad(true)
}

fn fused(c: &mut Criterion) {
    let mut group = c.benchmark_group("8 x 268 positions in bf16, forward and backward");
    group.sample_size(10);
    let (x, w) = (wave(&[8, 268, 768], Kind::BFloat16), wave(&[768], Kind::Float));
    let dy = wave(&[8, 268, 768], Kind::BFloat16).detach();
    let both = |y: Tensor| drop(Tensor::run_backward(&[(y * &dy).sum(Kind::Float)], &[&x, &w], false, false));
    group.bench_function("rms_norm, fused", |b| b.iter(|| both(rms_norm(&x, &w, 1e-6, Kind::BFloat16).expect("fits"))));
    group.bench_function("rms_norm, plain", |b| {
        b.iter(|| both(plain::rms_norm(&x, &w, 1e-6, Kind::BFloat16).expect("fits")));
    });
    let h = wave(&[8, 268, 4096], Kind::BFloat16);
    let dy = wave(&[8, 268, 2048], Kind::BFloat16).detach();
    let both = |y: Tensor| drop(Tensor::run_backward(&[(y * &dy).sum(Kind::Float)], &[&h], false, false));
    group.bench_function("swiglu, fused", |b| b.iter(|| both(swiglu(&h).expect("fits"))));
    group.bench_function("swiglu, plain", |b| b.iter(|| both(plain::swiglu(&h).expect("fits"))));
    group.finish();
}

criterion_group!(benches, fused);
criterion_main!(benches);
