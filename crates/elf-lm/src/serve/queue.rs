//! The queue of jobs for the models. Texts of flows join those that are being generated at the next step and leave when they are
//! finished; texts of baselines are generated in whole batches, which take turns with the steps.

use std::ops::ControlFlow;
use std::time::Instant;

use tokio::sync::mpsc::{Sender, UnboundedReceiver};

use super::order::{Job, Models, Progress};
use super::whole_batches::WholeBatches;
use crate::Result;
use crate::model::loaded::Method;
use crate::text::generated::GeneratedText;
use crate::text::text_engine::{EngineWatch, TextId};
use crate::text::text_loop::{TextEvent, TextFrame};

/// Answers jobs until all senders are dropped, with at most `rows` texts at once.
pub fn work<'a>(mut arriving: UnboundedReceiver<Job>, rows: usize, models: &mut dyn Models<'a>) {
    let (mut begun, mut batches, mut turn) = (Begun::default(), WholeBatches::default(), Instant::now());
    loop {
        while let Ok(job) = arriving.try_recv() {
            match job.order.method {
                Method::Flow(_) => begun.push(job),
                Method::Baseline { .. } => batches.push(job),
            }
        }
        begun.leave(models);
        begun.admit(rows, models);
        if !begun.is_empty() {
            begun.step(models);
        }
        // Steps get as much time as the batch before.
        if begun.is_empty() || Instant::now() >= turn {
            let beginning = Instant::now();
            batches.answer_next(rows, models);
            turn = Instant::now() + beginning.elapsed();
        }
        if begun.is_empty() && batches.is_empty() {
            match arriving.blocking_recv() {
                Some(job) if matches!(job.order.method, Method::Flow(_)) => begun.push(job),
                Some(job) => batches.push(job),
                None => return,
            }
        }
    }
}

/// The jobs for flows, in the order in which they came.
#[derive(Default)]
struct Begun(Vec<BegunJob>);

/// A job, some texts of which have begun.
struct BegunJob {
    job: Job,
    /// The texts, as far as they are finished.
    texts: Vec<Option<GeneratedText>>,
    /// The number of texts that have begun: the first ones.
    begun: usize,
    /// Those that have not ended: each with its place in the job.
    running: Vec<(TextId, usize)>,
}

impl BegunJob {
    /// Whether a text has not begun.
    fn is_waiting(&self) -> bool {
        self.begun < self.texts.len()
    }

    /// Begins the next text.
    fn admit<'a>(&mut self, models: &mut dyn Models<'a>) -> Result<()> {
        let place = self.begun;
        self.begun += 1;
        self.job.ticket = None;
        let watch = telling(self.job.progress.clone(), place);
        self.running.push((models.admit(&self.job.order, &self.job.requests[place], watch)?, place));
        Ok(())
    }

    /// Ends the job with its texts, or with the reason why there are none; the client may have gone.
    fn answer(self, failed: Option<&crate::Error>, models: &mut dyn Models<'_>) {
        self.running.iter().for_each(|(id, _)| models.cancel(*id));
        let texts = match failed {
            Some(error) => Err(error.report()),
            None => Ok(self.texts.into_iter().flatten().collect()),
        };
        let _ = self.job.reply.send(texts);
    }
}

/// A watch that sends the frames of a text to its client; a frame for which the client's channel is full is dropped.
fn telling<'a>(progress: Option<Sender<Progress>>, index: usize) -> EngineWatch<'a> {
    let (mut step, mut steps) = (0, 0);
    Box::new(move |event| {
        match (event, &progress) {
            (TextEvent::Step { done, steps: all }, _) => (step, steps) = (done, all),
            (TextEvent::Frame { t, rows }, Some(progress)) => {
                let rows = rows.iter().map(|row| TextFrame { index, ..row.clone() }).collect();
                let _ = progress.try_send(Progress { step, steps, t, rows });
            }
            _ => {}
        }
        ControlFlow::Continue(())
    })
}

impl Begun {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn push(&mut self, job: Job) {
        let texts = job.requests.iter().map(|_| None).collect();
        self.0.push(BegunJob { job, texts, begun: 0, running: Vec::new() });
    }

    /// Lets jobs leave that nobody waits for.
    fn leave(&mut self, models: &mut dyn Models<'_>) {
        for gone in self.0.extract_if(.., |job| job.job.is_abandoned()) {
            gone.running.iter().for_each(|(id, _)| models.cancel(*id));
        }
    }

    /// Begins texts while there is room: always of the job with the fewest running ones, of such jobs the oldest.
    fn admit<'a>(&mut self, rows: usize, models: &mut dyn Models<'a>) {
        let next = |jobs: &[BegunJob]| {
            let waiting = jobs.iter().enumerate().filter(|(_, job)| job.is_waiting());
            waiting.min_by_key(|(_, job)| job.running.len()).map(|(place, _)| place)
        };
        while let Some(place) = next(&self.0) {
            let count = self.0[place].job.order.method.candidates().map_or(1, |candidates| candidates.count());
            if models.running() > 0 && models.running() + count > rows {
                return;
            }
            if let Err(error) = self.0[place].admit(models) {
                self.0.remove(place).answer(Some(&error), models);
            }
        }
    }

    /// Makes a step and answers the jobs that it finishes.
    fn step(&mut self, models: &mut dyn Models<'_>) {
        for (id, made) in models.step() {
            let own = |job: &BegunJob| job.running.iter().position(|(running, _)| *running == id);
            let Some(place) = self.0.iter().position(|job| own(job).is_some()) else { continue };
            let job = &mut self.0[place];
            let Some(at) = own(job) else { continue };
            let (_, index) = job.running.swap_remove(at);
            match made {
                Ok(text) => {
                    job.texts[index] = Some(GeneratedText { index, ..text });
                    if job.texts.iter().all(Option::is_some) {
                        self.0.remove(place).answer(None, models);
                    }
                }
                Err(error) => self.0.remove(place).answer(Some(&error), models),
            }
        }
    }
}

#[cfg(test)]
mod tests;
