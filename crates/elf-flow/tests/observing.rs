//! Watching a run: steps, frames and finished rows, at once and in blocks, and stopping between steps.

mod toy;

use elf_core::{Counting, Network};
use elf_flow::sampler::Registry;
use elf_flow::{
    Condition, Error, FlowPath, Frame, GenerateConfig, Generated, Generator, Next, PredictionTarget, Reencode, Request,
    Result, SamplingObserver, Step, TimeLaw, TrainedFlow,
};
use tch::{Device, Kind, Tensor};
use toy::{C, Toy};

const S: i64 = 9;
const BLOCK: i64 = 4;
const STEPS: usize = 4;
const AT_ONCE: TrainedFlow = TrainedFlow {
    path: FlowPath { noise_scale: 2.0, t_eps: 0.05, prediction: PredictionTarget::Clean },
    self_conditioned: true,
    block_size: None,
};
const IN_BLOCKS: TrainedFlow = TrainedFlow { block_size: Some(BLOCK), ..AT_ONCE };

fn config() -> GenerateConfig {
    GenerateConfig {
        grid: TimeLaw::Uniform,
        steps: STEPS,
        self_conditioning_guidance: 1.0,
        pad_to: Some(4),
        ..GenerateConfig::default()
    }
}

/// Keeps all events; decides after each step by its number.
struct Watch<F> {
    decide: F,
    steps: Vec<Step>,
    frames: Vec<Frame>,
    finished: Vec<(usize, Vec<i64>)>,
}

impl<F: Fn(usize) -> Next> Watch<F> {
    fn new(decide: F) -> Self {
        Self { decide, steps: Vec::new(), frames: Vec::new(), finished: Vec::new() }
    }
}

impl<F: Fn(usize) -> Next> SamplingObserver for Watch<F> {
    fn step(&mut self, step: &Step) -> Next {
        self.steps.push(*step);
        (self.decide)(step.done)
    }

    fn frame(&mut self, frame: Frame) {
        self.frames.push(frame);
    }

    fn finished(&mut self, row: usize, ids: &[i64]) {
        self.finished.push((row, ids.to_vec()));
    }
}

/// Latents that depend on nothing but the words.
struct OneHot;

impl Reencode for OneHot {
    fn latents(&self, ids: &Tensor, _known: usize) -> Result<Tensor> {
        let hot = ids.remainder(C).one_hot(C).to_kind(Kind::Float);
        Ok(hot * 2.0 - 1.0)
    }
}

fn generate(
    net: &dyn Network,
    trained: TrainedFlow,
    request: &Request,
    observer: &mut dyn SamplingObserver,
) -> Result<Generated> {
    Generator::new(net, trained, config(), &Registry::builtin()).unwrap().generate(request, observer)
}

fn requests(seeds: &[u64]) -> [(TrainedFlow, Request<'_>, usize); 2] {
    let request = Request { reencoding: Some(&OneHot), ..Request::new(seeds, S) };
    [(AT_ONCE, request, 1), (IN_BLOCKS, request, 3)]
}

#[test]
fn a_trace_shows_the_text_as_it_forms() {
    let net = Counting::new(Toy::new(true));
    let seeds = [4, 5];
    let mut watch = Watch::new(|_| Next::Continue);
    let request = Request { trace: &[0.0, 0.26, 0.5, 1.0], ..Request::new(&seeds, S) };
    let traced = generate(&net, AT_ONCE, &request, &mut watch).unwrap();
    assert_eq!(watch.frames.iter().map(|f| f.t).collect::<Vec<_>>(), [0.0, 0.25, 0.5, 1.0]);
    assert!(watch.frames.iter().all(|f| f.ids.len() == 2 && f.ids[0].len() == S as usize));
    assert_eq!(watch.frames.last().unwrap().ids, traced.ids);
    assert_eq!((traced.cost.passes, traced.cost.trace_passes), (5, 3), "the last frame needs no pass");
    assert_eq!(net.count().rows, (5 + 3) * 4);

    // Watching changes nothing.
    let unwatched = generate(&net, AT_ONCE, &Request::new(&seeds, S), &mut ()).unwrap();
    assert!(unwatched.z.equal(&traced.z) && unwatched.ids == traced.ids);
    let mut frames = Vec::new();
    generate(&net, AT_ONCE, &request, &mut frames).unwrap();
    assert_eq!(frames, watch.frames);
}

#[test]
fn times_within_the_condition_show_the_first_block() {
    let (net, seeds) = (Toy::new(true), [4, 5]);
    let rows = [2, S, C];
    // The shortest condition has 5 of 9 positions, so the first block that is generated is the second, 4 to 8.
    let lengths = Tensor::from_slice(&[5i64, 6]).view([2, 1]);
    let mask = Tensor::arange(S, (Kind::Int64, Device::Cpu)).less_tensor(&lengths).to_kind(Kind::Float);
    let ids = Tensor::zeros([2, S], (Kind::Int64, Device::Cpu));
    let condition = Condition::new(&Tensor::zeros(rows, (Kind::Float, Device::Cpu)), &ids, &mask).unwrap();
    let [_, (trained, request, _)] = requests(&seeds);
    for (trace, shown) in [(&[0.0][..], &[8.0 / 9.0][..]), (&[0.0, 0.2, 1.0], &[8.0 / 9.0, 1.0]), (&[0.9], &[1.0])] {
        let mut watch = Watch::new(|_| Next::Continue);
        let request = Request { condition: Some(&condition), trace, ..request };
        generate(&net, trained, &request, &mut watch).unwrap();
        assert_eq!(watch.frames.iter().map(|frame| frame.t).collect::<Vec<_>>(), shown);
    }
}

#[test]
fn every_step_and_every_row_is_reported() {
    let net = Toy::new(true);
    let seeds = [4, 5];
    for (trained, request, blocks) in requests(&seeds) {
        let mut watch = Watch::new(|_| Next::Continue);
        let made = generate(&net, trained, &request, &mut watch).unwrap();
        let total = blocks * STEPS;
        let expected = (1..=total).map(|done| Step {
            done,
            steps: total,
            t: ((done - 1) % STEPS + 1) as f64 / STEPS as f64,
            block: (done - 1) / STEPS,
            blocks,
            finished_rows: 0,
        });
        assert_eq!(watch.steps, expected.collect::<Vec<_>>());
        // Rows that fill up the batch are not reported.
        assert_eq!(watch.finished, [(0, made.ids[0].clone()), (1, made.ids[1].clone())]);
        assert!(watch.frames.is_empty());
    }
}

#[test]
fn rows_are_finished_when_their_text_ends() {
    let net = Toy::new(true);
    // Seeds for which a word of the first block of one row is in no other row: it ends texts.
    let found = (0..200).find_map(|first| {
        let seeds = [first, first + 1, first + 2];
        let [_, (trained, request, _)] = requests(&seeds);
        let ids = generate(&net, trained, &request, &mut ()).unwrap().ids;
        let alone = |row: usize, id: i64| (0..3).all(|other| other == row || !ids[other].contains(&id));
        let mut words = (0..3).flat_map(|row| ids[row][..BLOCK as usize].iter().map(move |&id| (row, id)));
        words.find(|&(row, id)| alone(row, id)).map(|(row, id)| (seeds, row, id))
    });
    let (seeds, row, end) = found.expect("no seeds give a row a word of its own");
    let [_, (trained, request, _)] = requests(&seeds);
    let mut watch = Watch::new(|_| Next::Continue);
    let made = generate(&net, trained, &Request { end: Some(end), ..request }, &mut watch).unwrap();
    assert_eq!(watch.finished[0].0, row);
    let ended = &watch.finished[0].1;
    assert_eq!(&ended[..BLOCK as usize], &made.ids[row][..BLOCK as usize], "the text is final");
    assert!(ended[BLOCK as usize..].iter().all(|&id| id == end), "blocks that were not begun hold the end");
    let finished: Vec<usize> = watch.steps.iter().map(|step| step.finished_rows).collect();
    assert_eq!(finished, [vec![0; STEPS], vec![1; 2 * STEPS]].concat());
    let mut rows: Vec<usize> = watch.finished.iter().map(|(row, _)| *row).collect();
    rows.sort_unstable();
    assert_eq!(rows, [0, 1, 2], "each row once");
}

#[test]
fn frames_come_when_they_are_asked_for() {
    let seeds = [4, 5];
    for (trained, request, blocks) in requests(&seeds) {
        let net = Counting::new(Toy::new(true));
        let plain = generate(&net, trained, &request, &mut ()).unwrap();
        net.reset();
        let mut watch = Watch::new(|_| Next::Frame);
        let made = generate(&net, trained, &request, &mut watch).unwrap();
        assert!(made.z.equal(&plain.z) && made.ids == plain.ids, "frames change nothing");
        assert_eq!(watch.frames.len(), blocks * STEPS, "one after each step");
        assert!(watch.frames.is_sorted_by(|a, b| a.t <= b.t));
        assert_eq!(
            watch.frames.last().unwrap(),
            &Frame { t: 1.0, ids: made.ids.clone(), log_probs: made.log_probs.clone() }
        );
        // The last step of a block needs no pass of its own.
        let extra = (blocks * (STEPS - 1)) as u64;
        assert_eq!((made.cost.passes, made.cost.trace_passes), (plain.cost.passes, extra));
        for (step, frame) in watch.steps.iter().zip(&watch.frames) {
            let written = (step.block * BLOCK as usize).min(S as usize);
            for (shown, last) in frame.ids.iter().zip(&made.ids) {
                assert_eq!(shown[..written], last[..written], "finished blocks stay");
            }
            for (shown, last) in frame.log_probs.iter().zip(&made.log_probs) {
                assert_eq!(shown[..written], last[..written], "with their probabilities");
            }
        }
        // One that a trace and the observer both ask for is shown once.
        let mut once = Watch::new(|done| if done == 2 { Next::Frame } else { Next::Continue });
        let at_once = trained.block_size.is_none();
        let trace = if at_once { &[0.25][..] } else { &[] };
        generate(&net, trained, &Request { trace, ..request }, &mut once).unwrap();
        assert_eq!(once.frames.len(), if at_once { 2 } else { 1 });
        assert_eq!(once.frames[0], watch.frames[1]);
    }
}

#[test]
fn a_run_is_cancelled_between_steps() {
    let seeds = [4, 5];
    for (trained, request, blocks) in requests(&seeds) {
        for stop_after in [1, STEPS, blocks * STEPS] {
            let net = Counting::new(Toy::new(true));
            let mut watch = Watch::new(|done| if done == stop_after { Next::Cancel } else { Next::Continue });
            let error = generate(&net, trained, &request, &mut watch).unwrap_err();
            let message = error.to_string();
            assert!(matches!(error, Error::Cancelled { done, steps } if (done, steps) == (stop_after, blocks * STEPS)));
            assert!(message.contains("cancelled") && message.contains(&stop_after.to_string()), "{message}");
            assert_eq!(watch.steps.len(), stop_after);
            assert!(watch.finished.is_empty());
            // One pass per step, and one more for each block that was read before.
            let read = (stop_after - 1) / STEPS;
            assert_eq!(net.count().passes as usize, stop_after + read);
        }
    }
}

#[test]
fn blocks_need_an_encoder() {
    let net = Toy::new(true);
    let error = generate(&net, IN_BLOCKS, &Request::new(&[1], S), &mut ()).unwrap_err().to_string();
    assert!(error.contains("block_size") && error.contains("text encoder"), "{error}");
}
