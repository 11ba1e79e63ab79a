//! Laws of distillation on the teacher's own runs: students that hit their targets end where the teacher's sampling ends.

mod batches;
mod toy;

use std::cell::RefCell;

use batches::{S, batch};
use elf_core::{Network, NetworkShape, Noise, ParamSet, Replay, Result, Seeded, TrunkInput};
use elf_flow::sampler::{Euler, Registry, SamplerChoice};
use elf_flow::{
    Condition, DistillObjective, DistillStep, ElfObjective, GenerateConfig, Generator, GuidanceLaw, Guide, Objective,
    OwnRuns, Request, TimeLaw, TrainedFlow,
};
use proptest::prelude::*;
use tch::{Device, Tensor};
use toy::{C, Toy};

/// The self-conditioning guidance scale of all runs.
const W: f64 = 1.7;

fn seeds(rows: i64) -> Vec<u64> {
    (0..rows as u64).collect()
}

fn step(steps: usize, substeps: usize, leap_at: f64, guide_scale: f64) -> DistillStep {
    DistillStep {
        step_size: 1.0 / steps as f64,
        substeps,
        student_times: TimeLaw::Uniform,
        teacher_times: TimeLaw::Uniform,
        own_runs: Some(OwnRuns { leap_at, guide_scale }),
    }
}

fn base(decoder_prob: f64) -> ElfObjective {
    ElfObjective { decoder_prob, guidance: GuidanceLaw { min: W, max: W }, ..ElfObjective::default() }
}

/// A student that records its inputs.
struct Watched {
    inner: Toy,
    /// z, t and x_prev of each pass.
    seen: RefCell<Vec<[Tensor; 3]>>,
}

impl Network for Watched {
    fn shape(&self) -> NetworkShape {
        self.inner.shape()
    }

    fn params(&self) -> &ParamSet {
        self.inner.params()
    }

    fn trunk(&self, input: &TrunkInput) -> Result<Tensor> {
        self.seen.borrow_mut().push([input.z.copy(), input.t.copy(), input.x_prev.unwrap().copy()]);
        self.inner.trunk(input)
    }

    fn clean(&self, hidden: &Tensor) -> Result<Tensor> {
        self.inner.clean(hidden)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.inner.logits(hidden)
    }
}

fn largest(difference: &Tensor) -> f64 {
    difference.abs().max().double_value(&[])
}

/// The times of a sampler of `steps` steps, of which the last begins at `leap_at`.
fn times(steps: usize, leap_at: f64) -> Vec<f64> {
    let even = |n: usize, until: f64| (0..=n).map(|i| until * i as f64 / n as f64).collect::<Vec<_>>();
    match leap_at < 1.0 && steps > 1 {
        true => [even(steps - 1, leap_at), vec![1.0]].concat(),
        false => even(steps, 1.0),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_student_that_hits_its_targets_ends_where_the_teacher_samples_to(
        steps in 1usize..5, substeps in 1usize..5, leap in prop::sample::select(vec![0.3, 0.6, 1.0]),
        scale in prop::sample::select(vec![1.0, 2.0]), conditional: bool, seed in 0u64..100
    ) {
        let rows = 3;
        let (teacher, weak) = (Toy::new(true), Toy::new(false));
        let base = base(0.0);
        let trained = TrainedFlow::from(&base);
        let guide = Guide { net: &weak, trained, scale, until: 1.0 };
        let objective =
            DistillObjective::new(base, step(steps, substeps, leap, scale), &teacher).unwrap().with_guide(guide);
        let batch = batch(rows, conditional);
        let noise = || Seeded::new((seed * 10..).take(rows as usize).collect(), Device::Cpu);
        let targets = objective.targets(&batch, &mut noise()).unwrap();
        prop_assert_eq!(targets.rows.len(), steps * rows as usize);

        // Rows of a batch are in the order of their coins: self-conditioned ones first.
        let order = Tensor::from_slice(&targets.rows[..rows as usize]);
        let eps = noise().normal("noise", &[rows, S, C]).unwrap().index_select(0, &order);
        let clean = batch.latents.index_select(0, &order);
        let condition = batch.condition.as_ref().map(|mask| {
            Condition::new(&clean, &batch.ids.index_select(0, &order), &mask.index_select(0, &order)).unwrap()
        });
        let pin = |z: Tensor| condition.as_ref().map_or(z.shallow_clone(), |c| c.pin(&z).unwrap());
        let student = Watched { inner: Toy::new(true), seen: RefCell::default() };
        objective.loss(&student, &batch, &mut noise()).unwrap();
        let seen = student.seen.borrow();
        let [z_seen, t_seen, x_seen] = &seen[0];

        let mut z = pin(&eps * base.path.noise_scale);
        let mut x_prev = pin(z.zeros_like());
        for (i, span) in times(steps, leap).windows(2).enumerate() {
            let rows_of = |x: &Tensor| x.narrow(0, i as i64 * rows, rows);
            prop_assert!(largest(&(rows_of(z_seen) - &z)) < 1e-3);
            prop_assert!(largest(&(rows_of(x_seen) - &x_prev)) < 1e-3);
            prop_assert!(largest(&(rows_of(t_seen) - span[0])) < 1e-6);
            let target = rows_of(&targets.target);
            z = pin(&z + (&target - &z) * ((span[1] - span[0]) / (1.0 - span[0])));
            x_prev = pin(target);
        }

        // The teacher: every step in parts, but for a leap.
        let leaps = leap < 1.0;
        let teacher_steps = match (leaps, steps) { (true, 1) => substeps, (true, _) => (steps - 1) * substeps + 1, _ => steps * substeps };
        let config = GenerateConfig {
            sampler: SamplerChoice::of(&Euler {}),
            steps: teacher_steps,
            grid: TimeLaw::Uniform,
            self_conditioning_guidance: W,
            leap_at: leap,
            ..GenerateConfig::default()
        };
        let generator =
            Generator::new(&teacher, trained, config, &Registry::builtin()).unwrap().with_guide(guide).unwrap();
        let seeds = seeds(rows);
        let request = Request { condition: condition.as_ref(), ..Request::new(&seeds, S) };
        let mut draws = Replay::new();
        draws.push("z0", &eps);
        let sampled = generator.generate_from(&request, &mut draws, &mut ()).unwrap();
        let off = largest(&(&sampled.z - &z));
        prop_assert!(off < 2e-3 * largest(&z).max(1.0), "{}", off);
    }

    #[test]
    fn rows_and_passes_are_as_counted(steps in 1usize..4, substeps in 1usize..4, seed in 0u64..100) {
        let rows = 12;
        let teacher = elf_core::Counting::new(Toy::new(true));
        let student = elf_core::Counting::new(Toy::new(true));
        // Even if somebody left gradients on.
        teacher.params().set_requires_grad(true);
        student.params().set_requires_grad(true);
        let objective = DistillObjective::new(base(0.4), step(steps, substeps, 0.5, 1.0), &teacher).unwrap();
        let noise = || Seeded::new((seed * 100..).take(rows as usize).collect(), Device::Cpu);
        let loss = objective.loss(&student, &batch(rows, false), &mut noise()).unwrap();
        let runs = (objective.targets(&batch(rows, false), &mut noise()).unwrap().rows.len() / steps) as f64;
        let decoded = rows as f64 - runs;
        let of_each = if steps == 1 { substeps } else { (steps - 1) * substeps + 1 } as f64;
        prop_assert_eq!(loss.count, runs * steps as f64 + decoded);
        prop_assert_eq!(student.count().rows as f64, loss.count);
        prop_assert_eq!(teacher.count().rows as f64, 2.0 * runs * of_each);
        prop_assert!((objective.teacher_passes_per_row() - 0.6 * of_each).abs() < 1e-9);
        prop_assert!((objective.student_rows_per_row() - (0.6 * steps as f64 + 0.4)).abs() < 1e-9);
        loss.mean().backward();
        prop_assert!(student.params().iter().any(|(_, p)| p.tensor.grad().defined()));
        prop_assert!(teacher.params().iter().all(|(_, p)| !p.tensor.grad().defined()));
    }
}

#[test]
fn impossible_runs_are_named() {
    let teacher = Toy::new(true);
    let message = |step| DistillObjective::new(base(0.5), step, &teacher).unwrap_err().to_string();
    for leap in [0.0, 1.5, f64::NAN] {
        assert!(message(step(4, 2, leap, 1.0)).contains("pd_leap_at"), "{leap}");
    }
    assert!(message(step(4, 2, 0.5, f64::INFINITY)).contains("pd_guide_scale"));
}
