//! Speed of BLEU and ROUGE on as many pairs as a translation test set has.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use elf_eval::{bleu::Bleu, rouge};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const PAIRS: usize = 3000;

/// Sentences of 10 to 40 words, and the same with every fifth word changed.
fn pairs() -> (Vec<String>, Vec<String>) {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let endings = ["ization", "ing", "ed", "s", "ly", ".", ",", ""];
    let mut word = || {
        let stem: String = (0..rng.random_range(2..7)).map(|_| rng.random_range(b'a'..=b'z') as char).collect();
        stem + endings[rng.random_range(0..endings.len())]
    };
    let vocabulary: Vec<String> = (0..5000).map(|_| word()).collect();
    let mut pick = {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        move |n: usize| rng.random_range(0..n)
    };
    (0..PAIRS)
        .map(|_| {
            let reference: Vec<usize> = (0..10 + pick(31)).map(|_| pick(vocabulary.len())).collect();
            let hypothesis = reference.iter().map(|w| if pick(5) == 0 { pick(vocabulary.len()) } else { *w });
            let text = |words: Vec<usize>| words.iter().map(|w| vocabulary[*w].as_str()).collect::<Vec<_>>().join(" ");
            (text(hypothesis.collect()), text(reference))
        })
        .unzip()
}

fn overlap(criterion: &mut Criterion) {
    let (hypotheses, references) = pairs();
    let mut group = criterion.benchmark_group("overlap");
    group.sample_size(20).throughput(Throughput::Elements(PAIRS as u64));
    group.bench_function("bleu", |b| b.iter(|| Bleu::lowercase_effective().corpus(&hypotheses, &references)));
    group.bench_function("rouge", |b| b.iter(|| rouge::score_pairs(&hypotheses, &references)));
    group.finish();
}

criterion_group!(benches, overlap);
criterion_main!(benches);
