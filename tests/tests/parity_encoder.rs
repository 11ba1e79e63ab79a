//! The T5 encoder against hidden states computed by Hugging Face's implementation.

use elf_tests::checks::{ENCODERS, OF_A_PASS, encoder};
use elf_tests::{Reference, max_difference};
use tch::Device;

#[test]
fn parity_of_the_encoders() {
    for folder in ENCODERS {
        encoder(folder, Device::Cpu).assert();
        // The masks change the result; otherwise the comparison above would show little.
        let cases = Reference::open(&format!("{folder}/cases.safetensors"));
        let apart = max_difference(cases.get("hidden.no_mask"), cases.get("hidden.mask_3d"));
        assert!(apart > 100.0 * OF_A_PASS);
    }
}
