//! Holds an encoder of the BERT family against the hidden states that transformers computes, layer by layer, in fp32:
//!
//! ```text
//! python crates/elf-encoder/tests/fixtures/make.py FOLDER STATES
//! cargo run --release -p elf-encoder --example against_transformers -- FOLDER STATES
//! ```

use elf_core::Precision;
use elf_core::tensorfile::TensorFile;
use elf_encoder::{EncoderMask, EncoderSource, open_encoder};
use tch::Device;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [folder, states] = &args[..] else { return Err("FOLDER STATES are needed".into()) };
    let states = TensorFile::open(states)?;
    let given = |name: &str| states.get(name, Device::Cpu);
    let (ids, mask) = (given("ids")?, given("mask")?);
    // The file's rows begin with [CLS], which the encoder adds itself.
    let s = ids.size()[1] - 1;
    let (ids, mask) = (ids.f_narrow(1, 1, s)?, mask.f_narrow(1, 1, s)?);
    let layers = states.names().filter(|name| name.starts_with("layer.")).count();
    for layer in 0..layers {
        let source = EncoderSource { layer: Some(layer), ..EncoderSource::folder(folder) };
        let encoder = open_encoder(&source, Device::Cpu, Precision::F32)?;
        let ours = encoder.encode(&ids, EncoderMask::Columns(&mask))?;
        let theirs = given(&format!("layer.{layer}"))?.f_narrow(1, 1, s)?;
        let valid = mask.f_unsqueeze(-1)?;
        let difference = ((ours - theirs.shallow_clone()) * &valid).abs().max().double_value(&[]);
        let largest = (theirs * valid).abs().max().double_value(&[]);
        println!("layer {layer}: largest difference {difference:.2e}, largest value {largest:.2}");
    }
    Ok(())
}
