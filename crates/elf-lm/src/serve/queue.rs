//! The queue of requests for the model: waiting requests are generated in one batch.

use crate::Result;
use tokio::sync::{mpsc, oneshot};

use crate::text::generated::{GeneratedText, TextRequest};

/// The request of one client.
pub struct Job {
    /// The texts to generate.
    pub requests: Vec<TextRequest>,
    /// The channel for the texts, in the order of the requests, or for an error message.
    pub reply: oneshot::Sender<Result<Vec<GeneratedText>, String>>,
}

/// Generates one text for each request.
pub type Write<'a> = dyn FnMut(&[TextRequest]) -> Result<Vec<GeneratedText>> + 'a;

/// Answers jobs until all senders are dropped. A batch takes waiting jobs until it has `rows` rows; it never waits for
/// more.
pub fn work(mut jobs: mpsc::Receiver<Job>, rows: usize, write: &mut Write) {
    while let Some(job) = jobs.blocking_recv() {
        let mut batch = vec![job];
        while batch.iter().map(|job| job.requests.len()).sum::<usize>() < rows
            && let Ok(job) = jobs.try_recv()
        {
            batch.push(job);
        }
        // Skip clients that have disconnected.
        batch.retain(|job| !job.reply.is_closed());
        answer(batch, write);
    }
}

fn answer(batch: Vec<Job>, write: &mut Write) {
    let requests: Vec<TextRequest> = batch.iter().flat_map(|job| job.requests.iter().cloned()).collect();
    if requests.is_empty() {
        return;
    }
    match write(&requests) {
        Ok(texts) => {
            let mut texts = texts.into_iter();
            for job in batch {
                let own = texts.by_ref().take(job.requests.len()).enumerate();
                // The client may have disconnected meanwhile.
                let _ = job.reply.send(Ok(own.map(|(index, text)| GeneratedText { index, ..text }).collect()));
            }
        }
        // One invalid request must not fail the others: retry each job alone.
        Err(_) if batch.len() > 1 => batch.into_iter().for_each(|job| answer(vec![job], write)),
        Err(error) => {
            for job in batch {
                let _ = job.reply.send(Err(error.report()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::fail;

    /// The condition in capitals; `bad` cannot be written.
    fn shout(requests: &[TextRequest]) -> Result<Vec<GeneratedText>> {
        let text = |(index, request): (usize, &TextRequest)| {
            let text = request.condition.clone().unwrap_or_default();
            if text == "bad" {
                fail!(request, "no such text");
            }
            let text = text.to_uppercase();
            Ok(GeneratedText {
                index,
                seed: request.seed,
                input: None,
                input_cut: false,
                text,
                reference: None,
                tokens: vec![],
                confidence: None,
            })
        };
        requests.iter().enumerate().map(text).collect()
    }

    type Answered = oneshot::Receiver<Result<Vec<GeneratedText>, String>>;

    fn job(texts: &[&str]) -> (Job, Answered) {
        let (reply, answered) = oneshot::channel();
        let request = |text: &&str| TextRequest { condition: Some((*text).to_owned()), ..TextRequest::default() };
        (Job { requests: texts.iter().map(request).collect(), reply }, answered)
    }

    /// Answers jobs that all wait at the start, and returns the number of requests of each call of the model.
    fn worked(rows: usize, jobs: Vec<Job>) -> Vec<usize> {
        let (send, receive) = mpsc::channel(jobs.len().max(1));
        jobs.into_iter().for_each(|job| send.try_send(job).ok().unwrap());
        drop(send);
        let mut calls = Vec::new();
        work(receive, rows, &mut |requests| {
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
    fn one_that_fails_costs_the_others_nothing() {
        let ((a, of_a), (b, mut of_b)) = (job(&["a"]), job(&["x", "bad"]));
        assert_eq!(worked(8, vec![a, b]), [3, 1, 2]);
        assert_eq!(texts(of_a), [(0, "A".to_owned())]);
        assert_eq!(of_b.try_recv().unwrap().unwrap_err(), "no such text");
    }

    #[test]
    fn nothing_is_written_for_who_has_gone() {
        let ((a, of_a), (b, of_b)) = (job(&["a"]), job(&["b"]));
        drop(of_a);
        assert_eq!(worked(8, vec![a, b]), [1]);
        assert_eq!(texts(of_b), [(0, "B".to_owned())]);
    }
}
