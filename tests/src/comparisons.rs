//! What was compared with reference numbers, and how far it lay from them: all of it, so that a failure is not the end of a check.

use serde::Serialize;
use tch::Tensor;

use crate::max_difference;

/// One tensor or number.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// Its name.
    pub what: String,
    /// The largest difference, absolute or as a share of the largest number; infinite if anything is not a number.
    pub difference: f64,
    /// What it may be.
    pub allowed: f64,
}

impl Comparison {
    /// Whether it is close enough.
    pub fn holds(&self) -> bool {
        self.difference <= self.allowed
    }
}

/// All of one check.
#[derive(Debug, Default)]
pub struct Comparisons(pub Vec<Comparison>);

impl Comparisons {
    /// Notes a difference.
    pub fn note(&mut self, what: impl Into<String>, difference: f64, allowed: f64) {
        self.0.push(Comparison { what: what.into(), difference, allowed });
    }

    /// Each element is to lie within `allowed`.
    pub fn close(&mut self, what: impl Into<String>, got: &Tensor, want: &Tensor, allowed: f64) {
        self.note(what, max_difference(got, want), allowed);
    }

    /// Each element is to lie within this share of the largest.
    pub fn close_relative(&mut self, what: impl Into<String>, got: &Tensor, want: &Tensor, allowed: f64) {
        self.note(what, max_difference(got, want) / crate::largest(want), allowed);
    }

    /// A number is to lie within this share of the wanted one.
    pub fn number(&mut self, what: impl Into<String>, got: f64, want: f64, allowed: f64) {
        let difference = (got - want).abs();
        let share = if difference == 0.0 { 0.0 } else { difference / want.abs() };
        self.note(what, if share.is_nan() { f64::INFINITY } else { share }, allowed);
    }

    /// Something is to be equal.
    pub fn equal<T: PartialEq>(&mut self, what: impl Into<String>, got: &T, want: &T) {
        self.note(what, if got == want { 0.0 } else { f64::INFINITY }, 0.0);
    }

    /// Those that are too far.
    pub fn beyond(&self) -> impl Iterator<Item = &Comparison> {
        self.0.iter().filter(|c| !c.holds())
    }

    /// The one that comes closest to its limit, or lies furthest beyond it.
    pub fn worst(&self) -> Option<&Comparison> {
        let share = |c: &Comparison| if c.difference == 0.0 { 0.0 } else { c.difference / c.allowed };
        self.0.iter().max_by(|a, b| share(a).total_cmp(&share(b)))
    }

    /// Asserts that all are close enough, and that there are any.
    ///
    /// # Panics
    /// If they are not.
    #[track_caller]
    pub fn assert(&self) {
        assert!(!self.0.is_empty(), "nothing was compared");
        let line = |c: &Comparison| format!("{}: differs by {:e}, allowed {:e}", c.what, c.difference, c.allowed);
        let beyond: Vec<String> = self.beyond().map(line).collect();
        assert!(beyond.is_empty(), "{}", beyond.join("\n"));
        println!("closest to its limit: {}", self.worst().map(line).unwrap_or_default());
    }
}
