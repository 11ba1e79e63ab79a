//! The program `elf`.
fn main() {}
