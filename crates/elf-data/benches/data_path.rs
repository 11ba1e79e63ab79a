//! How fast text becomes ids, and ids become batches.

use std::path::Path;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use elf_data::source::{PlainText, Source};
use elf_data::{CollateConfig, Collator, Example, PadToken, Tokenizer};

fn data_path(c: &mut Criterion) {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data");
    let tokenizer = Tokenizer::load(data.join("tokenizers/t5")).expect("the shipped tokenizer");
    let source = Source::open(&[data.join("descriptions-test.parquet")], &["description"], PlainText::Lines)
        .expect("the shipped corpus");
    let texts: Vec<String> = source.texts().take(512).collect::<Result<_, _>>().expect("readable texts");
    let bytes: usize = texts.iter().map(String::len).sum();

    let mut group = c.benchmark_group("data");
    group.sample_size(10).throughput(Throughput::Bytes(bytes as u64));
    group.bench_function("tokenise with T5 on all cores", |b| b.iter(|| tokenizer.encode_batch(&texts).expect("ids")));

    let ids = tokenizer.encode_batch(&texts).expect("ids");
    let examples: Vec<Example> = ids.into_iter().map(|input_ids| Example { input_ids, condition_ids: None }).collect();
    let config = CollateConfig { max_length: 256, max_input_length: None, pad_token: PadToken::Pad };
    let collator = Collator::new(config, &tokenizer).expect("valid lengths");
    group.throughput(Throughput::Elements((examples.len() * config.max_length) as u64));
    group.bench_function("collate 512 rows of 256", |b| b.iter(|| collator.collate(&examples).expect("a batch")));

    group.finish();
}

criterion_group!(benches, data_path);
criterion_main!(benches);
