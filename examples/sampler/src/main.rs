//! Translates a German package description with a sampler from outside of this repository's crates.
//!
//! ```text
//! cargo run --release --bin sampler-example
//! cargo run --release --bin sampler-example -- two-stage:place=0.5 "Ein Programm zum Zeichnen"
//! ```

use elf_lm::SamplingPatch;

fn main() -> elf_lm::Result<()> {
    let mut words = std::env::args().skip(1);
    let sampler = words.next().unwrap_or_else(|| "two-stage".to_owned());
    let input = words.next().unwrap_or_else(|| "Ein Programm zum Zeichnen".to_owned());

    let model = sampler_example::model(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/mini-de-en"))?;
    let sampling = model.sampling_with(&SamplingPatch::default().with("sampler", sampler))?;
    for text in model.generate(&[input], &sampling)? {
        println!("{}: {text}", sampling.name());
    }
    Ok(())
}
