//! The ELF transformer.
