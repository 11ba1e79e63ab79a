//! Newton-Schulz iterations, the costly part of a Muon step: in which precision, stacked or one matrix at a time.

use criterion::{Criterion, criterion_group, criterion_main};
use elf_core::{Noise, Precision, Seeded};
use elf_train::optim::orthogonalise;
use tch::{Device, Kind, Tensor};

fn bench(c: &mut Criterion) {
    // A block's projection at ELF-B's width, and matrices of the size of learned embedders.
    for (label, shape) in [("768x768", [4, 768, 768]), ("768x2048", [4, 768, 2048]), ("128x256", [16, 128, 256])] {
        let stack = Seeded::new((0..shape[0] as u64).collect(), Device::Cpu).normal("m", &shape).unwrap();
        let mut exact = None;
        for precision in [Precision::F32, Precision::Bf16] {
            let result = orthogonalise(&stack, 5, precision).unwrap();
            let reference = exact.get_or_insert_with(|| result.copy());
            println!("{label} {precision}: cosine with f32 {:.6}", cosine(reference, &result));
            let mut group = c.benchmark_group(format!("orthogonalise/{label}/{precision}"));
            group.sample_size(10);
            group.bench_function("stacked", |b| b.iter(|| orthogonalise(&stack, 5, precision).unwrap()));
            group.bench_function("one by one", |b| {
                b.iter(|| {
                    for i in 0..shape[0] {
                        let _ = orthogonalise(&stack.narrow(0, i, 1), 5, precision).unwrap();
                    }
                });
            });
            group.finish();
        }
    }
}

fn cosine(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |t: &Tensor| t.square().sum(Kind::Double).double_value(&[]).sqrt();
    (a * b).sum(Kind::Double).double_value(&[]) / (norm(a) * norm(b))
}

criterion_group!(benches, bench);
criterion_main!(benches);
