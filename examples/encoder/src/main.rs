//! Translates a German package description from latents of an encoder family from outside of this repository's crates.
//!
//! ```text
//! cargo run --release --bin encoder-example
//! cargo run --release --bin encoder-example -- 0.5 "Ein Programm zum Zeichnen"
//! ```
//!
//! The model was trained on latents that know their context, and does not know what these mean: it writes words, but no
//! translation. A model that is trained on such a folder does.

use std::path::Path;

use elf_core::Precision;
use elf_encoder::T5Encoder;
use elf_lm::{Host, ModelSource, Silent};
use encoder_example::{make, with_neighbours};
use tch::Device;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let share = words.next().map_or(Ok(0.5), |share| share.parse())?;
    let input = words.next().unwrap_or_else(|| "Ein Programm zum Zeichnen".to_owned());

    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
    let folder = tempfile::tempdir()?;
    let table = T5Encoder::load(&models.join("mini-encoder"), Device::Cpu, Precision::F32)?.token_table()?;
    make(folder.path(), &table, share)?;

    let mut silent = Silent;
    let host = with_neighbours(Host::new(&mut silent));
    let model = ModelSource::new(models.join("mini-de-en")).encoder(folder.path()).open_for(&host)?;
    for text in model.generate(&[input], &model.sampling()?)? {
        println!("{text}");
    }
    Ok(())
}
