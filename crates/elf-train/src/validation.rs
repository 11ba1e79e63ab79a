//! The loss on held-out batches, with the same draws every time.

use elf_core::{Seeded, key_of};
use elf_flow::TimeBins;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{Comm, Error, Result, TermMean, TermSums, TrainingBatch, TrainingObjective};

/// Mean losses over held-out batches.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Validation {
    /// The loss: its sum over all batches divided by its count.
    pub loss: f64,
    /// The loss's parts, each a mean over the positions that it counts.
    pub terms: Vec<TermMean>,
    /// The same by time, for each bin that has rows ([`TimeBins::label`]).
    pub by_time: Vec<TermMean>,
    /// The number of rows.
    pub rows: u64,
}

/// The mean loss of `net` over `batches`, without gradients and without dropout.
///
/// A row's draws are a function of `seed` and the row's index among all rows. Results of different networks or steps
/// are therefore comparable, also with another batch size.
///
/// # Errors
/// If the batches, the objective or libtorch fail.
pub fn validation_loss<N, O: TrainingObjective<N> + ?Sized>(
    objective: &O,
    net: &N,
    batches: impl IntoIterator<Item = Result<O::Batch>>,
    seed: u64,
) -> Result<Validation> {
    let mut first_row = 0;
    let numbered = batches.into_iter().map(|batch| {
        let batch = batch?;
        let first = first_row;
        first_row += batch.sizes()?.0;
        Ok((first, batch))
    });
    validation_totals(objective, net, numbered, key_of(&[seed, 0])).map(Totals::means)
}

/// [`validation_loss`] with the batches distributed over the ranks of a run: each rank gives some of the batches, each
/// with the index of its first row among all rows, and all ranks get the result over all batches.
///
/// # Errors
/// As [`validation_loss`], or if a rank has failed.
pub fn validation_loss_over_ranks<N, O: TrainingObjective<N> + ?Sized>(
    objective: &O,
    net: &N,
    batches: impl IntoIterator<Item = Result<(u64, O::Batch)>>,
    seed: u64,
    comm: &dyn Comm,
) -> Result<Validation> {
    Ok(validation_totals(objective, net, batches, key_of(&[seed, 0]))?.over_ranks(comm)?.means())
}

/// Sums before division, so that those of ranks can be added up.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Totals {
    sum: f64,
    count: f64,
    rows: f64,
    terms: TermSums,
    by_time: TermSums,
}

pub(crate) fn validation_totals<N, O: TrainingObjective<N> + ?Sized>(
    objective: &O,
    net: &N,
    batches: impl IntoIterator<Item = Result<(u64, O::Batch)>>,
    key: u64,
) -> Result<Totals> {
    let mut totals = Totals::default();
    // Sums stay on the device until the end: one tensor for the loss and one for each of its parts.
    let mut sums: Vec<(Option<&'static str>, Tensor)> = Vec::new();
    let mut by_time: Vec<TimeBins> = Vec::new();
    tch::no_grad(|| -> Result<()> {
        for batch in batches {
            let (first_row, batch) = batch?;
            let (b, _) = batch.sizes()?;
            totals.rows += b as f64;
            let mut noise = Seeded::at(&[key], first_row..first_row + b, batch.device()).without_dropout();
            let loss = objective.training_loss(net, &batch, &mut noise)?;
            totals.count += loss.count;
            add(&mut sums, None, &loss.sum)?;
            for term in loss.terms {
                add(&mut sums, Some(term.name), &term.sum)?;
                totals.terms.add(term.name, 0.0, term.count);
            }
            for bins in loss.by_time {
                add_bins(&mut by_time, bins)?;
            }
        }
        Ok(())
    })?;
    for (name, sum) in &sums {
        let value = sum.f_double_value(&[])?;
        match name {
            Some(name) => totals.terms.add(name, value, 0.0),
            None => totals.sum = value,
        }
    }
    for bins in &by_time {
        totals.by_time.add_bins(bins, &Vec::try_from(&bins.sums)?, &Vec::try_from(&bins.counts)?);
    }
    Ok(totals)
}

/// Adds in f64, since a validation set may have a hundred thousand batches.
fn add(sums: &mut Vec<(Option<&'static str>, Tensor)>, name: Option<&'static str>, value: &Tensor) -> Result<()> {
    let value = value.f_to_kind(Kind::Double)?;
    match sums.iter_mut().find(|(n, _)| *n == name) {
        Some((_, sum)) => _ = sum.f_add_(&value)?,
        None => sums.push((name, value)),
    }
    Ok(())
}

/// Adds in f64, too.
fn add_bins(all: &mut Vec<TimeBins>, TimeBins { name, sums, counts }: TimeBins) -> Result<()> {
    let [sums, counts] = [sums.f_to_kind(Kind::Double)?, counts.f_to_kind(Kind::Double)?];
    match all.iter_mut().find(|bins| bins.name == name) {
        Some(bins) => {
            let _ = bins.sums.f_add_(&sums)?;
            let _ = bins.counts.f_add_(&counts)?;
        }
        None => all.push(TimeBins { name, sums, counts }),
    }
    Ok(())
}

impl Totals {
    pub(crate) fn means(self) -> Validation {
        Validation {
            loss: self.sum / self.count.max(1.0),
            terms: self.terms.means(),
            by_time: self.by_time.means(),
            rows: self.rows as u64,
        }
    }

    /// Adds up all ranks in their order, so that the result is the same on each.
    pub(crate) fn over_ranks(self, comm: &dyn Comm) -> Result<Totals> {
        let unreadable = |e: serde_json::Error| Error::Comm(format!("a rank's losses cannot be read: {e}"));
        let own = serde_json::to_vec(&self).map_err(unreadable)?;
        let mut all = Totals::default();
        for bytes in comm.gather_bytes(&own)? {
            let Totals { sum, count, rows, terms, by_time } = serde_json::from_slice(&bytes).map_err(unreadable)?;
            (all.sum, all.count, all.rows) = (all.sum + sum, all.count + count, all.rows + rows);
            all.terms.merge(&terms);
            all.by_time.merge(&by_time);
        }
        all.terms.sort();
        all.by_time.sort();
        Ok(all)
    }
}
