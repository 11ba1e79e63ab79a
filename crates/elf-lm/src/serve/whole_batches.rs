//! Jobs for baselines: waiting jobs of the same settings are generated in one batch.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::order::{Job, Models};
use crate::Error;
use crate::text::generated::{GeneratedText, TextRequest};

/// The jobs that wait, oldest first.
#[derive(Default)]
pub struct WholeBatches(VecDeque<Job>);

impl WholeBatches {
    /// Whether no job waits.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a job.
    pub fn push(&mut self, job: Job) {
        self.0.push_back(job);
    }

    /// Answers the oldest job, together with others of its settings as far as the batch has `rows` rows.
    pub fn answer_next(&mut self, rows: usize, models: &mut dyn Models<'_>) {
        self.0.retain(|job| !job.is_abandoned());
        if let Some(batch) = self.next(rows) {
            answer(batch, models);
        }
    }

    fn next(&mut self, rows: usize) -> Option<Vec<Job>> {
        let first = self.0.pop_front()?;
        let (order, mut count) = (first.order.clone(), first.requests.len());
        let mut batch = vec![first];
        let mut place = 0;
        while count < rows && place < self.0.len() {
            if self.0[place].order == order
                && let Some(job) = self.0.remove(place)
            {
                count += job.requests.len();
                batch.push(job);
            } else {
                place += 1;
            }
        }
        batch.iter_mut().for_each(|job| job.ticket = None);
        Some(batch)
    }
}

fn answer(batch: Vec<Job>, models: &mut dyn Models<'_>) {
    let Some(order) = batch.first().map(|job| job.order.clone()) else { return };
    let requests: Vec<TextRequest> = batch.iter().flat_map(|job| job.requests.iter().cloned()).collect();
    // Plain tensor operations panic; a panic concerns its batch alone.
    let made = catch_unwind(AssertUnwindSafe(|| models.write(&order, &requests)));
    match made.unwrap_or_else(|_| Err(Error::defect())) {
        Ok(texts) => {
            let mut texts = texts.into_iter();
            for job in batch {
                let own = texts.by_ref().take(job.requests.len()).enumerate();
                // The client may have disconnected meanwhile.
                let _ = job.reply.send(Ok(own.map(|(index, text)| GeneratedText { index, ..text }).collect()));
            }
        }
        // One invalid request must not fail the others: retry each job alone.
        Err(_) if batch.len() > 1 => batch.into_iter().for_each(|job| answer(vec![job], models)),
        Err(error) => batch.into_iter().for_each(|job| {
            let _ = job.reply.send(Err(error.report()));
        }),
    }
}
