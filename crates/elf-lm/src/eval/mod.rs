//! Judging what models write.

pub mod judge;
