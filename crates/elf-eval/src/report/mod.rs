//! A report that a researcher can trust, from plain data: `report.html` and `report.md`.

mod build;
mod model;
mod number;

pub use model::*;
pub use number::{Number, Uncertainty};
