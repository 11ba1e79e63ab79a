//! The queue of jobs for the model: waiting jobs of the same settings are generated in one batch.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::sync::mpsc::UnboundedReceiver;

use super::order::{Job, Order, Progress};
use crate::text::generated::{GeneratedText, TextRequest};
use crate::text::text_loop::{TextEvent, TextFrame, TextWatch};
use crate::{Error, Result};

/// Generates one text for each request, by the settings of the order. This is the only place where the queue meets the
/// model.
pub type Write<'a> = dyn FnMut(&Order, &[TextRequest], &mut TextWatch) -> Result<Vec<GeneratedText>> + 'a;

/// Answers jobs until all senders are dropped. A batch has the settings of the oldest job, and takes waiting jobs of the
/// same settings until it has `rows` rows; it never waits for more.
pub fn work(mut jobs: UnboundedReceiver<Job>, rows: usize, write: &mut Write) {
    let mut waiting = VecDeque::new();
    loop {
        while let Ok(job) = jobs.try_recv() {
            waiting.push_back(job);
        }
        waiting.retain(|job: &Job| !job.is_abandoned());
        match next_batch(&mut waiting, rows) {
            Some(batch) => answer(batch, write),
            None => match jobs.blocking_recv() {
                Some(job) => waiting.push_back(job),
                None => return,
            },
        }
    }
}

/// Takes the oldest job, and others of its settings.
fn next_batch(waiting: &mut VecDeque<Job>, rows: usize) -> Option<Vec<Job>> {
    let first = waiting.pop_front()?;
    let (order, mut count) = (first.order.clone(), first.requests.len());
    let mut batch = vec![first];
    let mut place = 0;
    while count < rows && place < waiting.len() {
        if waiting[place].order == order
            && let Some(job) = waiting.remove(place)
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

fn answer(batch: Vec<Job>, write: &mut Write) {
    let Some(order) = batch.first().map(|job| job.order.clone()) else { return };
    let requests: Vec<TextRequest> = batch.iter().flat_map(|job| job.requests.iter().cloned()).collect();
    let mut step = (0, 0);
    let mut watch = |event: TextEvent<'_>| {
        match event {
            TextEvent::Step { done, steps } => step = (done, steps),
            TextEvent::Frame { t, rows } => show(&batch, step, t, rows),
            TextEvent::Finished { .. } => {}
        }
        match batch.iter().all(Job::is_abandoned) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    // Plain tensor operations panic; a panic concerns its batch alone.
    let made = catch_unwind(AssertUnwindSafe(|| write(&order, &requests, &mut watch)));
    let made = made.unwrap_or_else(|_| Err(Error::request("the model has failed: this is a defect of the program")));
    match made {
        Ok(texts) => {
            let mut texts = texts.into_iter();
            for job in batch {
                let own = texts.by_ref().take(job.requests.len()).enumerate();
                // The client may have disconnected meanwhile.
                let _ = job.reply.send(Ok(own.map(|(index, text)| GeneratedText { index, ..text }).collect()));
            }
        }
        // Everyone has gone.
        Err(Error::Cancelled) => {}
        // One invalid request must not fail the others: retry each job alone.
        Err(_) if batch.len() > 1 => batch.into_iter().for_each(|job| answer(vec![job], write)),
        Err(error) => {
            for job in batch {
                let _ = job.reply.send(Err(error.report()));
            }
        }
    }
}

/// Gives each job its rows of a frame.
fn show(batch: &[Job], (step, steps): (usize, usize), t: f64, rows: &[TextFrame]) {
    let mut first = 0;
    for job in batch {
        let own = first..first + job.requests.len();
        first = own.end;
        if let Some(progress) = &job.progress {
            let rows = rows.iter().filter(|row| own.contains(&row.index));
            let rows: Vec<TextFrame> =
                rows.map(|row| TextFrame { index: row.index - own.start, ..row.clone() }).collect();
            if !rows.is_empty() {
                let _ = progress.try_send(Progress { step, steps, t, rows });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sampling;
    use crate::error::fail;
    use crate::model::loaded::Method;
    use crate::serve::order::{Entrance, NotTaken, Outcome, Shown};
    use std::sync::Arc;
    use tokio::sync::{mpsc, oneshot};

    /// The condition in capitals; `bad` cannot be written, `defect` panics.
    fn shout(requests: &[TextRequest]) -> Result<Vec<GeneratedText>> {
        let text = |(index, request): (usize, &TextRequest)| {
            let text = request.condition.clone().unwrap_or_default();
            match text.as_str() {
                "bad" => fail!(request, "no such text"),
                "defect" => panic!("a defect"),
                _ => Ok(made(index, &text.to_uppercase())),
            }
        };
        requests.iter().enumerate().map(text).collect()
    }

    fn made(index: usize, text: &str) -> GeneratedText {
        GeneratedText {
            index,
            seed: 0,
            input: None,
            input_cut: false,
            text: text.to_owned(),
            reference: None,
            tokens: vec![],
            log_probs: None,
            confidence: None,
        }
    }

    type Answered = oneshot::Receiver<Outcome>;

    fn job_in(steps: usize, texts: &[&str]) -> (Job, Answered) {
        let (reply, answered) = oneshot::channel();
        let request = |text: &&str| TextRequest { condition: Some((*text).to_owned()), ..TextRequest::default() };
        let method = Method::Flow(Sampling::default().steps(steps));
        let order = Arc::new(Order { model: 0, method, shown: Shown::EveryStep });
        let requests = texts.iter().map(request).collect();
        (Job { order, requests, reply, progress: None, ticket: None }, answered)
    }

    fn job(texts: &[&str]) -> (Job, Answered) {
        job_in(32, texts)
    }

    /// Answers jobs that all wait at the start, and returns the number of requests of each call of the model.
    fn worked(rows: usize, jobs: Vec<Job>) -> Vec<usize> {
        let (entrance, arriving) = Entrance::new(jobs.len());
        jobs.into_iter().for_each(|job| entrance.submit(job).ok().unwrap());
        drop(entrance);
        let mut calls = Vec::new();
        work(arriving, rows, &mut |_, requests, _| {
            calls.push(requests.len());
            shout(requests)
        });
        calls
    }

    fn texts(mut answered: Answered) -> Vec<(usize, String)> {
        answered.try_recv().unwrap().unwrap().into_iter().map(|text| (text.index, text.text)).collect()
    }

    #[test]
    fn what_waits_together_is_made_together_and_given_to_whom_it_belongs() {
        let ((a, of_a), (b, of_b), (c, of_c)) = (job(&["a", "b"]), job(&["c"]), job(&["d"]));
        assert_eq!(worked(3, vec![a, b, c]), [3, 1]);
        assert_eq!(texts(of_a), [(0, "A".to_owned()), (1, "B".to_owned())]);
        assert_eq!(texts(of_b), [(0, "C".to_owned())]);
        assert_eq!(texts(of_c), [(0, "D".to_owned())]);
    }

    #[test]
    fn other_settings_are_another_batch() {
        let ((a, of_a), (b, of_b), (c, of_c)) = (job_in(4, &["a"]), job_in(8, &["b", "b"]), job_in(4, &["c"]));
        // The oldest first, with the third, which has its settings.
        assert_eq!(worked(8, vec![a, b, c]), [2, 2]);
        assert_eq!(texts(of_a).len() + texts(of_c).len(), 2);
        assert_eq!(texts(of_b).len(), 2);
    }

    #[test]
    fn one_that_fails_costs_the_others_nothing() {
        for (text, words) in [("bad", "no such text"), ("defect", "a defect of the program")] {
            let ((a, of_a), (b, mut of_b)) = (job(&["a"]), job(&["x", text]));
            assert_eq!(worked(8, vec![a, b]), [3, 1, 2]);
            assert_eq!(texts(of_a), [(0, "A".to_owned())]);
            assert!(of_b.try_recv().unwrap().unwrap_err().contains(words));
        }
    }

    #[test]
    fn nothing_is_written_for_who_has_gone() {
        let ((a, of_a), (b, of_b)) = (job(&["a"]), job(&["b"]));
        drop(of_a);
        assert_eq!(worked(8, vec![a, b]), [1]);
        assert_eq!(texts(of_b), [(0, "B".to_owned())]);
    }

    #[test]
    fn a_batch_goes_on_as_long_as_somebody_waits() {
        let ((a, of_a), (b, of_b)) = (job(&["a"]), job(&["b"]));
        let mut clients = vec![of_a, of_b];
        let mut went_on = Vec::new();
        answer(vec![a, b], &mut |_, _, watch| {
            for done in 1..=3 {
                let next = watch(TextEvent::Step { done, steps: 3 });
                went_on.push(next.is_continue());
                if next.is_break() {
                    return Err(Error::Cancelled);
                }
                clients.pop();
            }
            unreachable!("nobody waits")
        });
        assert_eq!(went_on, [true, true, false]);
    }

    #[test]
    fn frames_reach_those_whose_texts_they_are() {
        let ((mut a, _of_a), (mut b, _of_b)) = (job(&["a", "b"]), job(&["c"]));
        let (to_a, mut at_a) = mpsc::channel(8);
        let (to_b, mut at_b) = mpsc::channel(1);
        (a.progress, b.progress) = (Some(to_a), Some(to_b));
        answer(vec![a, b], &mut |_, requests, watch| {
            for done in 1..=2 {
                let _ = watch(TextEvent::Step { done, steps: 2 });
                let row = |index| TextFrame { index, text: format!("{done}"), tokens: vec![], log_probs: None };
                let _ = watch(TextEvent::Frame { t: 0.5, rows: &[row(2), row(1)] });
            }
            shout(requests)
        });
        let seen = |at: &mut mpsc::Receiver<Progress>| {
            let mut all = Vec::new();
            while let Ok(progress) = at.try_recv() {
                all.extend(progress.rows.iter().map(|row| (progress.step, row.index, row.text.clone())));
            }
            all
        };
        assert_eq!(seen(&mut at_a), [(1, 1, "1".to_owned()), (2, 1, "2".to_owned())]);
        // There was room for one only; the second is left out, and nothing waits.
        assert_eq!(seen(&mut at_b), [(1, 0, "1".to_owned())]);
    }

    #[test]
    fn no_more_wait_than_may() {
        let (entrance, mut arriving) = Entrance::new(2);
        let submit = || entrance.submit(job(&["a"]).0);
        assert_eq!((submit(), submit(), submit()), (Ok(()), Ok(()), Err(NotTaken::Full)));
        assert_eq!(entrance.waiting(), 2);
        // A job that the model takes leaves its place to another.
        let mut waiting = VecDeque::from([arriving.try_recv().unwrap()]);
        let batch = next_batch(&mut waiting, 8).unwrap();
        assert_eq!((batch.len(), entrance.waiting(), submit()), (1, 1, Ok(())));
        drop(arriving);
        assert_eq!((entrance.waiting(), submit()), (0, Err(NotTaken::Closed)));
    }
}
