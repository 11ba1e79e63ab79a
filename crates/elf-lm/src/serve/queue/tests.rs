use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::config::Sampling;
use crate::error::fail;
use crate::serve::order::{Entrance, NotTaken, Order, Outcome, Shown};
use crate::text::baseline_writer::Decoding;
use crate::text::generated::TextRequest;

/// Models that write conditions in capitals: flows one after as many steps as are asked for, baselines at once. `bad` cannot be
/// written; at `defect` a baseline panics.
#[derive(Default)]
struct Shouting {
    admitted: u64,
    running: Vec<(TextId, String, usize, EngineWatch<'static>)>,
    /// What was done: the number of texts of each step, and of each batch.
    steps: Vec<usize>,
    batches: Vec<usize>,
    /// Clients that go away in a step, with the number of the step.
    leaving: VecDeque<(usize, Answered)>,
}

fn shout(text: &str) -> Result<GeneratedText> {
    match text {
        "bad" => fail!(request, "no such text"),
        "defect" => panic!("a defect"),
        _ => Ok(GeneratedText {
            index: 0,
            seed: 0,
            input: None,
            input_cut: false,
            text: text.to_uppercase(),
            reference: None,
            filled: vec![],
            hidden: vec![],
            tokens: vec![],
            log_probs: None,
            confidence: None,
        }),
    }
}

fn condition(request: &TextRequest) -> String {
    request.condition.clone().unwrap_or_default()
}

impl Models<'static> for Shouting {
    fn admit(&mut self, order: &Order, request: &TextRequest, watch: EngineWatch<'static>) -> Result<TextId> {
        let Method::Flow(sampling) = &order.method else { fail!(request, "not a flow") };
        let (id, text) = (TextId(self.admitted), condition(request));
        self.admitted += 1;
        if text == "refused" {
            fail!(request, "no such setting");
        }
        self.running.push((id, text, sampling.num_sampling_steps, watch));
        Ok(id)
    }

    fn running(&self) -> usize {
        self.running.len()
    }

    fn step(&mut self) -> Vec<(TextId, Result<GeneratedText>)> {
        self.steps.push(self.running.len());
        while self.leaving.front().is_some_and(|(step, _)| *step <= self.steps.len()) {
            self.leaving.pop_front();
        }
        for (_, text, left, watch) in &mut self.running {
            *left -= 1;
            let row = TextFrame { index: 0, text: text.clone(), tokens: vec![], log_probs: None };
            let _ = watch(TextEvent::Step { done: 1, steps: 1 + *left });
            let _ = watch(TextEvent::Frame { t: 0.5, rows: &[row] });
        }
        let ended: Vec<_> = self.running.extract_if(.., |(_, _, left, _)| *left == 0).collect();
        ended.into_iter().map(|(id, text, ..)| (id, shout(&text))).collect()
    }

    fn cancel(&mut self, id: TextId) {
        self.running.retain(|(own, ..)| *own != id);
    }

    fn write(&mut self, _: &Order, requests: &[TextRequest]) -> Result<Vec<GeneratedText>> {
        self.batches.push(requests.len());
        requests.iter().map(|request| shout(&condition(request))).collect()
    }
}

type Answered = oneshot::Receiver<Outcome>;

fn job_by(method: Method, texts: &[&str]) -> (Job, Answered) {
    let (reply, answered) = oneshot::channel();
    let request = |text: &&str| TextRequest { condition: Some((*text).to_owned()), ..TextRequest::default() };
    let order = Arc::new(Order { model: 0, method, shown: Shown::EveryStep });
    let requests = texts.iter().map(request).collect();
    (Job { order, requests, reply, progress: None, ticket: None }, answered)
}

fn job_in(steps: usize, texts: &[&str]) -> (Job, Answered) {
    job_by(Method::Flow(Sampling::default().steps(steps)), texts)
}

fn baseline(mbr: usize, texts: &[&str]) -> (Job, Answered) {
    let decoding = Decoding::Ancestral(elf_flow::tokens::AncestralSampler { steps: 1 });
    job_by(Method::Baseline { decoding, mbr }, texts)
}

/// Answers jobs that all wait at the start.
fn worked(rows: usize, jobs: Vec<Job>, mut models: Shouting) -> Shouting {
    let (entrance, arriving) = Entrance::new(jobs.len());
    jobs.into_iter().for_each(|job| entrance.submit(job).ok().unwrap());
    drop(entrance);
    work(arriving, rows, &mut models);
    models
}

fn texts(mut answered: Answered) -> Vec<(usize, String)> {
    answered.try_recv().unwrap().unwrap().into_iter().map(|text| (text.index, text.text)).collect()
}

#[test]
fn texts_join_when_there_is_room_and_leave_when_they_are_done() {
    let ((a, of_a), (b, of_b), (c, of_c)) = (job_in(2, &["a", "b"]), job_in(1, &["c"]), job_in(3, &["d", "e"]));
    let models = worked(3, vec![a, b, c], Shouting::default());
    // The first step has one text of each job; the second texts are admitted when rows become free.
    assert_eq!(models.steps, [3, 3, 3, 1, 1]);
    assert_eq!(texts(of_a), [(0, "A".to_owned()), (1, "B".to_owned())]);
    assert_eq!(texts(of_b), [(0, "C".to_owned())]);
    assert_eq!(texts(of_c), [(0, "D".to_owned()), (1, "E".to_owned())]);
}

#[test]
fn one_that_fails_costs_the_others_nothing() {
    for (text, words) in [("bad", "no such text"), ("refused", "no such setting")] {
        let ((a, of_a), (b, mut of_b)) = (job_in(2, &["a"]), job_in(1, &["x", text, "y"]));
        let models = worked(8, vec![a, b], Shouting::default());
        assert_eq!(texts(of_a), [(0, "A".to_owned())]);
        assert!(of_b.try_recv().unwrap().unwrap_err().contains(words));
        // The other texts of the job do not go on.
        assert_eq!(models.steps.last(), Some(&1));
    }
}

#[test]
fn who_has_gone_frees_the_rows_at_the_next_step() {
    let ((a, of_a), (b, of_b), (c, of_c)) = (job_in(9, &["a", "b"]), job_in(3, &["c"]), job_in(9, &["d"]));
    drop(of_c);
    let leaving = VecDeque::from([(2, of_a)]);
    let models = worked(8, vec![a, b, c], Shouting { leaving, ..Shouting::default() });
    assert_eq!(models.steps, [3, 3, 1]);
    assert_eq!(texts(of_b), [(0, "C".to_owned())]);
}

#[test]
fn frames_reach_those_whose_texts_they_are() {
    let ((mut a, _of_a), (mut b, _of_b)) = (job_in(2, &["a", "b"]), job_in(2, &["c"]));
    let (to_a, mut at_a) = mpsc::channel(8);
    let (to_b, mut at_b) = mpsc::channel(1);
    (a.progress, b.progress) = (Some(to_a), Some(to_b));
    worked(8, vec![a, b], Shouting::default());
    let seen = |at: &mut mpsc::Receiver<Progress>| {
        let mut all = Vec::new();
        while let Ok(progress) = at.try_recv() {
            all.extend(progress.rows.iter().map(|row| (progress.steps, row.index, row.text.clone())));
        }
        all.sort();
        all
    };
    let of = |steps: usize, index: usize, text: &str| (steps, index, text.to_owned());
    assert_eq!(seen(&mut at_a), [of(1, 0, "a"), of(1, 1, "b"), of(2, 0, "a"), of(2, 1, "b")]);
    // There was room for one only; the second is left out, and nothing waits.
    assert_eq!(seen(&mut at_b), [of(2, 0, "c")]);
}

#[test]
fn baselines_are_written_in_whole_batches_of_one_setting_beside_the_steps() {
    let jobs = [baseline(1, &["a", "b"]), baseline(2, &["c"]), baseline(1, &["d"]), baseline(1, &["e"])];
    let (mut jobs, mut answers): (Vec<Job>, Vec<Answered>) = jobs.into_iter().unzip();
    let (flow, of_flow) = job_in(5, &["f"]);
    jobs.push(flow);
    let models = worked(3, jobs, Shouting::default());
    // The oldest first, with the third, which has its settings.
    assert_eq!((models.batches, models.steps), (vec![3, 1, 1], vec![1; 5]));
    assert_eq!(texts(of_flow), [(0, "F".to_owned())]);
    let made: Vec<_> = answers.drain(..).map(texts).collect();
    assert_eq!(made[0], [(0, "A".to_owned()), (1, "B".to_owned())]);
    assert_eq!((&made[2], &made[3]), (&vec![(0, "D".to_owned())], &vec![(0, "E".to_owned())]));
}

#[test]
fn a_baseline_that_fails_costs_the_others_of_its_batch_nothing() {
    for (text, words) in [("bad", "no such text"), ("defect", "a defect of the program")] {
        let ((a, of_a), (b, mut of_b)) = (baseline(1, &["a"]), baseline(1, &["x", text]));
        let models = worked(8, vec![a, b], Shouting::default());
        assert_eq!(models.batches, [3, 1, 2]);
        assert_eq!(texts(of_a), [(0, "A".to_owned())]);
        assert!(of_b.try_recv().unwrap().unwrap_err().contains(words));
    }
}

#[test]
fn no_more_wait_than_may() {
    let (entrance, mut arriving) = Entrance::new(2);
    let submit = || entrance.submit(job_in(4, &["a", "b"]).0);
    assert_eq!((submit(), submit(), submit()), (Ok(()), Ok(()), Err(NotTaken::Full)));
    assert_eq!(entrance.waiting(), 2);
    // A job of which a text begins leaves its place to another.
    let mut begun = Begun::default();
    begun.push(arriving.try_recv().unwrap());
    begun.admit(1, &mut Shouting::default());
    assert_eq!((entrance.waiting(), submit()), (1, Ok(())));
    drop((arriving, begun));
    assert_eq!((entrance.waiting(), submit()), (0, Err(NotTaken::Closed)));
}
