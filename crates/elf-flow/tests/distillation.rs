//! Laws of progressive distillation: the student's targets, the teacher's passes, and the inputs of each row.

mod toy;

use std::cell::RefCell;

use elf_core::{Counting, Network, NetworkShape, Noise, ParamSet, PassCount, Replay, Result, Seeded, TrunkInput};
use elf_flow::{
    DistillObjective, DistillStep, ElfObjective, FlowPath, LatentBatch, LogitNormal, Objective, TeacherStart, TimeLaw,
    teacher_target,
};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};
use toy::{C, Toy, V};

const S: i64 = 5;
/// Condition positions of a conditional batch.
const GIVEN: i64 = 2;

fn noise(rows: i64, seed: u64) -> Seeded {
    Seeded::new((0..rows as u64).map(|row| seed * 1000 + row).collect(), Device::Cpu)
}

fn batch(rows: i64, conditional: bool) -> LatentBatch {
    let mut draws = noise(rows, 1);
    let given = Tensor::arange(S, (Kind::Int64, Device::Cpu)).lt(GIVEN).to_kind(Kind::Float);
    let condition = conditional.then(|| given.expand([rows, S], false).contiguous());
    LatentBatch {
        latents: draws.normal("latents", &[rows, S, C]).unwrap(),
        ids: (draws.uniform("ids", &[rows, S]).unwrap() * V as f64).to_kind(Kind::Int64),
        loss_mask: match &condition {
            Some(condition) => 1.0 - condition,
            None => Tensor::ones([rows, S], (Kind::Float, Device::Cpu)),
        },
        condition,
        dropped: Vec::new(),
    }
}

fn step(step_size: f64, substeps: usize) -> DistillStep {
    let law = TimeLaw::LogitNormal(LogitNormal::DENOISER);
    DistillStep { step_size, substeps, student_times: law, teacher_times: law, own_runs: None }
}

fn base() -> ElfObjective {
    ElfObjective { decoder_prob: 0.4, ..ElfObjective::default() }
}

/// A network that says what it sees, and answers as another one.
struct Watched<N> {
    inner: N,
    /// z and x_prev of each pass.
    seen: RefCell<Vec<(Tensor, Tensor, Tensor)>>,
}

impl<N> Watched<N> {
    fn new(inner: N) -> Self {
        Self { inner, seen: RefCell::default() }
    }
}

impl<N: Network> Network for Watched<N> {
    fn shape(&self) -> NetworkShape {
        self.inner.shape()
    }

    fn params(&self) -> &ParamSet {
        self.inner.params()
    }

    fn trunk(&self, input: &TrunkInput) -> Result<Tensor> {
        let gate = input.decode.map_or_else(|| input.t.zeros_like(), Tensor::copy);
        self.seen.borrow_mut().push((input.z.copy(), input.x_prev.unwrap().copy(), gate));
        self.inner.trunk(input)
    }

    fn clean(&self, hidden: &Tensor) -> Result<Tensor> {
        self.inner.clean(hidden)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.inner.logits(hidden)
    }
}

/// A network that always predicts the same latents.
struct Certain {
    toy: Toy,
    x: Tensor,
}

impl Network for Certain {
    fn shape(&self) -> NetworkShape {
        self.toy.shape()
    }

    fn params(&self) -> &ParamSet {
        self.toy.params()
    }

    fn trunk(&self, input: &TrunkInput) -> Result<Tensor> {
        Ok(input.z.shallow_clone())
    }

    fn clean(&self, _: &Tensor) -> Result<Tensor> {
        Ok(self.x.shallow_clone())
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.toy.logits(hidden)
    }
}

fn largest(difference: &Tensor) -> f64 {
    difference.abs().max().double_value(&[])
}

/// A start at random, by `substeps` random times that ascend.
struct Start {
    z: Tensor,
    x_prev: Tensor,
    guidance: Tensor,
    times: Tensor,
}

impl Start {
    fn new(rows: i64, substeps: i64, latest: f64, seed: u64) -> Self {
        let mut draws = noise(rows, seed);
        Self {
            z: draws.normal("z", &[rows, S, C]).unwrap() * 2.0,
            x_prev: draws.normal("x", &[rows, S, C]).unwrap(),
            guidance: draws.uniform("w", &[rows]).unwrap() + 0.5,
            times: (draws.uniform("t", &[rows, substeps + 1]).unwrap() * latest).sort(-1, false).0,
        }
    }

    fn begin(&self) -> TeacherStart<'_> {
        let Self { z, x_prev, guidance, times } = self;
        TeacherStart { z, x_prev: Some(x_prev), guidance, times, condition: None, words: None }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// On a straight line every way of going along it ends in the same place.
    #[test]
    fn a_teacher_that_is_certain_is_what_the_student_must_predict(substeps in 1i64..9, seed in 0u64..1000) {
        let path = FlowPath::default();
        let start = Start::new(3, substeps, 1.0 - path.t_eps, seed);
        // A way of no length has no target: the smallest one is well above the rounding.
        prop_assume!(largest(&(start.times.select(1, 0) - start.times.select(1, substeps)).abs().min()) > 1e-2);
        let x = Tensor::ones([3, S, C], (Kind::Float, Device::Cpu)) * 0.7;
        let teacher = Certain { toy: Toy::new(true), x: x.copy() };
        let target = teacher_target(&teacher, &path, &start.begin()).unwrap();
        prop_assert!(largest(&(target - x)) < 1e-3);
    }

    /// One Euler step towards the target ends where the teacher's steps end.
    #[test]
    fn one_step_to_the_target_ends_where_the_teacher_ends(substeps in 2i64..7, seed in 0u64..1000) {
        let path = FlowPath::default();
        let start = Start::new(3, substeps, 1.0 - path.t_eps, seed);
        let teacher = Watched::new(Toy::new(true));
        let target = teacher_target(&teacher, &path, &start.begin()).unwrap();
        let (mut z, mut x_prev) = (start.z.copy(), start.x_prev.copy());
        for k in 0..substeps {
            let (t, next) = (start.times.select(1, k), start.times.select(1, k + 1));
            let input =
                TrunkInput { x_prev: Some(&x_prev), guidance: Some(&start.guidance), ..TrunkInput::new(&z, &t) };
            let x = teacher.inner.clean(&teacher.inner.trunk(&input).unwrap()).unwrap();
            let v = path.velocity(&x, &z, &t.view([-1, 1, 1]));
            prop_assert!(largest(&(&teacher.seen.borrow()[k as usize].0 - &z)) < 1e-5);
            prop_assert!(largest(&(&teacher.seen.borrow()[k as usize].1 - &x_prev)) < 1e-5);
            z += v * (next - t).view([-1, 1, 1]);
            x_prev = x;
        }
        let (first, last) = (start.times.select(1, 0), start.times.select(1, substeps));
        let v = path.velocity(&target, &start.z, &first.view([-1, 1, 1]));
        let jumped = &start.z + v * (last - first).view([-1, 1, 1]);
        prop_assert!(largest(&(jumped - z)) < 1e-3);
    }

    /// Decode rows never reach the teacher, and the pass for self-conditioning is for rows whose coin fell.
    #[test]
    fn the_teacher_is_asked_no_more_than_is_needed(
        rows in 1i64..9, substeps in 1usize..5, seed in 0u64..1000, conditional: bool
    ) {
        let (batch, base) = (batch(rows, conditional), base());
        let (teacher, student) = (Counting::new(Toy::new(true)), Counting::new(Toy::new(true)));
        // Even if somebody left gradients on.
        teacher.params().set_requires_grad(true);
        student.params().set_requires_grad(true);
        let objective = DistillObjective::new(base, step(0.25, substeps), &teacher).unwrap();
        let loss = objective.loss(&student, &batch, &mut noise(rows, seed)).unwrap();

        let mut draws = noise(rows, seed);
        let decode: Vec<bool> =
            draws.coins("decoder_coin", rows as usize).unwrap().iter().map(|u| *u < base.decoder_prob).collect();
        let coins = draws.coins("self_cond_u", rows as usize).unwrap();
        let denoise = decode.iter().filter(|d| !**d).count() as u64;
        let hinted = decode.iter().zip(&coins).filter(|(d, u)| !**d && **u < base.self_cond_prob).count() as u64;
        let k = substeps as u64;
        let expected = PassCount {
            passes: u64::from(hinted > 0) + if denoise > 0 { k } else { 0 },
            rows: hinted + k * denoise,
            ..PassCount::default()
        };
        prop_assert_eq!(teacher.count(), expected);
        let decoded = rows as u64 - denoise;
        let free = (S - if conditional { GIVEN } else { 0 }) as u64;
        let (all, logits) = (rows as u64, decoded * free);
        prop_assert_eq!(
            student.count(),
            PassCount { passes: 1, rows: all, rows_with_grad: all, logit_positions: logits, context_rows: 0 }
        );
        loss.mean().backward();
        prop_assert!(teacher.params().iter().all(|(_, p)| !p.tensor.grad().defined()));
        prop_assert!(student.params().iter().any(|(_, p)| p.tensor.grad().defined()));
    }

    /// A row's loss does not depend on the other rows of its batch.
    #[test]
    fn the_loss_of_a_batch_is_the_mean_of_its_rows(seed in 0u64..1000, conditional: bool) {
        let rows = 4;
        let (whole, teacher, student) = (batch(rows, conditional), Toy::new(true), Toy::new(false));
        let objective = DistillObjective::new(base(), step(0.5, 3), &teacher).unwrap();
        let together = objective.loss(&student, &whole, &mut noise(rows, seed)).unwrap();
        let alone: f64 = (0..rows)
            .map(|i| {
                let one = LatentBatch {
                    latents: whole.latents.narrow(0, i, 1),
                    ids: whole.ids.narrow(0, i, 1),
                    loss_mask: whole.loss_mask.narrow(0, i, 1),
                    condition: whole.condition.as_ref().map(|c| c.narrow(0, i, 1)),
                    dropped: Vec::new(),
                };
                let mut draws = Seeded::new(vec![seed * 1000 + i as u64], Device::Cpu);
                objective.loss(&student, &one, &mut draws).unwrap().mean().double_value(&[])
            })
            .sum();
        prop_assert!((together.sum.double_value(&[]) - alone).abs() < 1e-4 * alone.abs().max(1.0));
        prop_assert_eq!(together.count, rows as f64);
        prop_assert_eq!(together.terms.iter().map(|t| t.count).sum::<f64>(), rows as f64);
    }
}

#[test]
fn passes_a_row_are_what_the_teacher_is_asked() {
    for (decoder_prob, self_cond_prob, passes) in [(0.0, 0.0, 3.0), (0.0, 1.0, 4.0), (1.0, 1.0, 0.0)] {
        let teacher = Counting::new(Toy::new(true));
        let base = ElfObjective { decoder_prob, self_cond_prob, ..base() };
        let objective = DistillObjective::new(base, step(0.25, 3), &teacher).unwrap();
        objective.loss(&Toy::new(true), &batch(6, false), &mut noise(6, 2)).unwrap();
        assert_eq!(objective.teacher_passes_per_row(), passes);
        assert_eq!(teacher.count().rows as f64, 6.0 * passes);
    }
    let teacher = Toy::new(true);
    let released = DistillObjective::new(ElfObjective::default(), step(0.25, 16), &teacher).unwrap();
    assert!((released.teacher_passes_per_row() - 13.2).abs() < 1e-12, "the released recipe's third round");
}

/// In the half for the previous estimate, and for the teacher in both.
#[test]
fn condition_positions_are_clean_in_every_row_and_at_every_step() {
    let (rows, substeps) = (8, 3);
    let batch = batch(rows, true);
    let (teacher, student) = (Watched::new(Toy::new(true)), Watched::new(Toy::new(true)));
    let objective = DistillObjective::new(base(), step(0.25, substeps), &teacher).unwrap();
    objective.loss(&student, &batch, &mut noise(rows, 5)).unwrap();
    let order = objective.targets(&batch, &mut noise(rows, 5)).unwrap().rows;
    let clean = batch.latents.narrow(1, 0, GIVEN);
    let given = |t: &Tensor| t.narrow(1, 0, GIVEN);
    let rows_of = |order: &[i64]| clean.index_select(0, &Tensor::from_slice(order));

    let seen = teacher.seen.borrow();
    // The pass for self-conditioning, then the steps.
    assert_eq!(seen.len(), 2 * (1 + substeps));
    assert!(seen[0].0.size()[0] < order.len() as i64);
    for (z, x_prev, _) in &seen[1..=substeps] {
        assert_eq!(given(z), rows_of(&order));
        assert_eq!(given(x_prev), rows_of(&order));
    }
    let seen = student.seen.borrow();
    let [(z, x_prev, gate)] = &seen[..] else { panic!("one pass") };
    let decoded: Vec<i64> = (0..rows).filter(|i| !order.contains(i)).collect();
    let (n, d) = (order.len() as i64, decoded.len() as i64);
    assert!(n > 0 && d > 0, "both kinds of rows are there");
    assert_eq!(given(&z.narrow(0, 0, n)), rows_of(&order));
    assert_eq!(given(x_prev), rows_of(&[order, decoded.clone()].concat()), "decode rows too");
    // Decode rows have no estimate of what they are to write, and corrupted conditions in z.
    assert_eq!(largest(&x_prev.narrow(0, n, d).narrow(1, GIVEN, S - GIVEN)), 0.0);
    assert!(largest(&(given(&z.narrow(0, n, d)) - rows_of(&decoded))) > 1e-3);
    assert_eq!(Vec::<f32>::try_from(gate).unwrap().iter().sum::<f32>(), d as f32);
}

/// Beside it targets stay corrupted, and a condition that was dropped stays away.
#[test]
fn decode_rows_keep_their_condition_clean_if_asked_to() {
    let rows = 6;
    let dropped: Vec<bool> = (0..rows).map(|row| row % 2 == 1).collect();
    let batch = LatentBatch { dropped: dropped.clone(), ..batch(rows, true) };
    let keep: Vec<f32> = dropped.iter().map(|&dropped| f32::from(!dropped)).collect();
    let clean = &batch.latents * Tensor::from_slice(&keep).view([rows, 1, 1]);
    for asked in [false, true] {
        let net = Watched::new(Toy::new(true));
        let objective = ElfObjective { decoder_prob: 1.0, decoder_clean_condition: asked, ..base() };
        objective.loss(&net, &batch, &mut noise(rows, 5)).unwrap();
        let seen = net.seen.borrow();
        let [(z, ..)] = &seen[..] else { panic!("one pass") };
        let off = (z - &clean).abs().amax([2], false);
        let (condition, target) = (off.narrow(1, 0, GIVEN), off.narrow(1, GIVEN, S - GIVEN));
        assert_eq!(largest(&condition) == 0.0, asked);
        assert!(target.min().double_value(&[]) > 1e-3, "targets are corrupted");
    }
}

#[test]
fn a_dropped_condition_is_zero_for_both() {
    let batch = LatentBatch { dropped: vec![true; 3], ..batch(3, true) };
    let (teacher, student) = (Watched::new(Toy::new(true)), Watched::new(Toy::new(true)));
    let base = ElfObjective { decoder_prob: 0.0, self_cond_prob: 1.0, ..base() };
    let objective = DistillObjective::new(base, step(0.25, 2), &teacher).unwrap();
    objective.loss(&student, &batch, &mut noise(3, 5)).unwrap();
    for (z, x_prev, _) in teacher.seen.borrow().iter().chain(student.seen.borrow().iter()) {
        assert_eq!(largest(&z.narrow(1, 0, GIVEN)), 0.0);
        assert_eq!(largest(&x_prev.narrow(1, 0, GIVEN)), 0.0);
    }
}

#[test]
fn a_step_over_all_of_the_time_begins_at_its_start() {
    let (batch, teacher) = (batch(6, false), Toy::new(true));
    let base = ElfObjective { decoder_prob: 0.0, self_cond_prob: 0.0, ..base() };
    let objective = DistillObjective::new(base, step(1.0, 4), &teacher).unwrap();
    assert_eq!(objective.step().student_steps(), 1);
    let target = objective.targets(&batch, &mut noise(6, 3)).unwrap().target;
    // From pure noise the target is the end of the teacher's way itself.
    let mut draws = noise(6, 3);
    let z = draws.normal("noise", &[6, S, C]).unwrap() * base.path.noise_scale;
    let places = TimeLaw::LogitNormal(LogitNormal::DENOISER).draw_named("teacher_t", &[6, 3], &mut draws).unwrap();
    let (start, end) =
        (Tensor::zeros([6, 1], (Kind::Float, Device::Cpu)), Tensor::ones([6, 1], (Kind::Float, Device::Cpu)));
    let times = Tensor::cat(&[start, places.sort(-1, false).0, end], -1);
    let guidance = base.guidance.transform(&draws.uniform("cfg_scale_u", &[6]).unwrap());
    let start = TeacherStart { z: &z, x_prev: None, guidance: &guidance, times: &times, condition: None, words: None };
    assert!(largest(&(target - teacher_target(&teacher, &base.path, &start).unwrap())) < 1e-3);
}

#[test]
fn schedules_take_the_draws_of_their_law() {
    let (rows, teacher) = (2, Toy::new(true));
    let uniform = DistillStep { student_times: TimeLaw::Uniform, teacher_times: TimeLaw::Uniform, ..step(0.5, 3) };
    let objective = DistillObjective::new(ElfObjective { self_cond_prob: 0.0, ..base() }, uniform, &teacher).unwrap();
    let mut all = noise(rows, 4);
    let mut replay = Replay::new();
    replay.push("decoder_coin", &Tensor::ones([rows], (Kind::Float, Device::Cpu)));
    replay.push("student_t_uniform", &Tensor::from_slice(&[0.0f32, 0.5]));
    // Not in order: the teacher goes forward all the same.
    replay.push("teacher_t_uniform", &Tensor::from_slice(&[0.75f32, 0.25, 0.5, 0.1]).view([rows, 2]));
    let (w, eps) = (all.uniform("w", &[rows]).unwrap(), all.normal("eps", &[rows, S, C]).unwrap());
    replay.push("cfg_scale_u", &w).push("noise", &eps);
    replay.push("decoder_lambda_normal", &Tensor::zeros([rows, S], (Kind::Float, Device::Cpu)));
    replay.push("decoder_noise_normal", &eps);
    let batch = batch(rows, false);
    let target = objective.targets(&batch, &mut replay).unwrap().target;

    let times = Tensor::from_slice(&[0.0f32, 0.125, 0.375, 0.5, 0.25, 0.3, 0.5, 0.75]).view([rows, 4]);
    let z = base().path.interpolate(&batch.latents, &eps, &times.select(1, 0).view([-1, 1, 1]));
    let guidance = base().guidance.transform(&w);
    let start = TeacherStart { z: &z, x_prev: None, guidance: &guidance, times: &times, condition: None, words: None };
    assert!(largest(&(target - teacher_target(&teacher, &base().path, &start).unwrap())) < 1e-5);
}

#[test]
fn impossible_settings_are_named() {
    let teacher = Toy::new(true);
    let message = |base, step| DistillObjective::new(base, step, &teacher).unwrap_err().to_string();
    for size in [0.0, -0.5, 1.5, f64::NAN] {
        assert!(message(base(), step(size, 4)).contains("pd_step_size"), "{size}");
    }
    assert!(message(base(), step(0.5, 0)).contains("pd_teacher_steps"));
    let wide = LogitNormal { mean: f64::NAN, std: 1.0 };
    assert!(
        message(base(), DistillStep { teacher_times: TimeLaw::LogitNormal(wide), ..step(0.5, 2) }).contains("mean")
    );
    assert!(message(ElfObjective { decoder_prob: 2.0, ..base() }, step(0.5, 2)).contains("decoder_prob"));
    let start = Start::new(2, 1, 1.0, 0);
    let times = Tensor::zeros([2, 1], (Kind::Float, Device::Cpu));
    let message =
        teacher_target(&teacher, &FlowPath::default(), &TeacherStart { times: &times, ..start.begin() }).unwrap_err();
    assert!(message.to_string().contains("teacher times"), "{message}");
}
