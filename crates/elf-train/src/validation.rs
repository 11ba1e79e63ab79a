//! The objective on held-out batches, with draws that are the same every time.

use elf_core::{Network, NetworkShape, ParamSet, Seeded, TrunkInput, key_of};
use elf_flow::{LatentBatch, Objective};
use serde::Serialize;
use tch::{Kind, Tensor};

use crate::{Comm, Result, TermMean};

/// Mean losses over held-out batches.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Validation {
    /// The loss: over all batches its sum divided by its count.
    pub loss: f64,
    /// Its parts, each a mean over the positions that it counts.
    pub terms: Vec<TermMean>,
    /// Rows that were looked at.
    pub rows: u64,
}

/// The mean loss of `net` over `batches`, without gradients and without dropout.
///
/// A row's draws depend on `seed` and the row's place among all rows, so two networks, or one at two times, are compared
/// under the same draws, in whatever batches the rows come.
///
/// # Errors
/// If the batches, the objective or libtorch fail.
pub fn validation_loss(
    objective: &dyn Objective,
    net: &dyn Network,
    batches: impl IntoIterator<Item = Result<LatentBatch>>,
    seed: u64,
) -> Result<Validation> {
    validation_totals(objective, net, batches, key_of(&[seed, 0])).map(Totals::means)
}

/// Sums before division, so that ranks can be added up.
pub(crate) struct Totals {
    sum: f64,
    count: f64,
    rows: f64,
    terms: Vec<TermMean>,
}

pub(crate) fn validation_totals(
    objective: &dyn Objective,
    net: &dyn Network,
    batches: impl IntoIterator<Item = Result<LatentBatch>>,
    key: u64,
) -> Result<Totals> {
    let net = WithoutDropout(net);
    let mut totals = Totals { sum: 0.0, count: 0.0, rows: 0.0, terms: Vec::new() };
    let mut seen = 0u64;
    // Sums stay on the device until the end: one tensor for the loss and one for each of its parts.
    let mut sums: Vec<(Option<&'static str>, Tensor)> = Vec::new();
    tch::no_grad(|| -> Result<()> {
        for batch in batches {
            let batch = batch?;
            let (b, _, _) = batch.sizes()?;
            let keys = (0..b as u64).map(|row| key_of(&[key, seen + row])).collect();
            seen += b as u64;
            let loss = objective.loss(&net, &batch, &mut Seeded::new(keys, batch.latents.device()))?;
            totals.count += loss.count;
            add(&mut sums, None, &loss.sum)?;
            for term in loss.terms {
                add(&mut sums, Some(term.name), &term.sum)?;
                match totals.terms.iter_mut().find(|t| t.name == term.name) {
                    Some(t) => t.count += term.count,
                    None => totals.terms.push(TermMean { name: term.name, mean: 0.0, count: term.count }),
                }
            }
        }
        Ok(())
    })?;
    totals.rows = seen as f64;
    for (name, sum) in &sums {
        let value = sum.f_double_value(&[])?;
        match totals.terms.iter_mut().find(|t| Some(t.name) == *name) {
            Some(term) => term.mean = value,
            None => totals.sum = value,
        }
    }
    Ok(totals)
}

/// Adds in f64: a validation set may have a hundred thousand batches.
fn add(sums: &mut Vec<(Option<&'static str>, Tensor)>, name: Option<&'static str>, value: &Tensor) -> Result<()> {
    let value = value.f_to_kind(Kind::Double)?;
    match sums.iter_mut().find(|(n, _)| *n == name) {
        Some((_, sum)) => _ = sum.f_add_(&value)?,
        None => sums.push((name, value)),
    }
    Ok(())
}

impl Totals {
    fn means(self) -> Validation {
        let terms = self.terms.into_iter().map(|t| TermMean { mean: t.mean / t.count.max(1.0), ..t }).collect();
        Validation { loss: self.sum / self.count.max(1.0), terms, rows: self.rows as u64 }
    }

    /// Adds up all ranks. A part of the loss that this rank has not seen is missing from its result.
    pub(crate) fn over_ranks(mut self, comm: &dyn Comm) -> Result<Validation> {
        let mut numbers = [self.sum, self.count, self.rows];
        comm.sum_numbers(&mut numbers)?;
        [self.sum, self.count, self.rows] = numbers;
        Ok(self.means())
    }
}

/// A network as it is used, not trained: two passes over the same rows are equal.
struct WithoutDropout<'a>(&'a dyn Network);

impl Network for WithoutDropout<'_> {
    fn shape(&self) -> NetworkShape {
        NetworkShape { stochastic: false, ..self.0.shape() }
    }

    fn params(&self) -> &ParamSet {
        self.0.params()
    }

    fn trunk(&self, input: &TrunkInput) -> elf_core::Result<Tensor> {
        self.0.trunk(&TrunkInput { dropout_seed: None, ..*input })
    }

    fn clean(&self, hidden: &Tensor) -> elf_core::Result<Tensor> {
        self.0.clean(hidden)
    }

    fn logits(&self, hidden: &Tensor) -> elf_core::Result<Tensor> {
        self.0.logits(hidden)
    }

    fn cross_entropy_sum(&self, hidden: &Tensor, ids: &Tensor, weights: Option<&Tensor>) -> elf_core::Result<Tensor> {
        self.0.cross_entropy_sum(hidden, ids, weights)
    }
}
