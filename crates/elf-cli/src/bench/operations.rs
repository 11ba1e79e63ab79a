//! The operations of `elf-kernels` by themselves: against the plain form on the CPU in fp32, and their speed.

mod runs;

use std::time::{Duration, Instant};

use anyhow::Result;
use elf_core::{Noise, Seeded, device};
use elf_tests::comparisons::Comparisons;
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use self::runs::{Form, Run};
use super::median;
use super::workload::Workload;

/// What an input is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Role {
    /// In the kind of activations, with a gradient.
    Activation,
    /// In the kind of activations, changed in place.
    Overwritten,
    /// fp32, with a gradient.
    Weight,
    /// fp32, without.
    Constant,
    /// fp32 and not negative.
    Square,
    /// Token ids below a number.
    Ids(i64),
    /// 0 for positions that are seen and minus infinity for others, the first of a row being seen.
    Mask,
}

/// An operation and the shapes that it is run on.
pub struct Operation {
    /// Its name.
    pub name: &'static str,
    inputs: Vec<(Vec<i64>, Role)>,
    run: Run,
    /// Whether GPUs run it on many positions.
    timed: bool,
}

impl Operation {
    fn new(name: &'static str, inputs: &[(&[i64], Role)], run: Run) -> Self {
        let inputs = inputs.iter().map(|(shape, role)| (shape.to_vec(), *role)).collect();
        Self { name, inputs, run, timed: true }
    }

    /// Random inputs, drawn on a device.
    fn inputs(&self, kind: Kind, on: Device) -> Result<Vec<Tensor>> {
        let draw = |(at, (shape, role)): (usize, &(Vec<i64>, Role))| -> Result<Tensor> {
            let drawn = Seeded::new(vec![at as u64], on).normal("input", &[&[1], &shape[..]].concat())?.squeeze_dim(0);
            Ok(match *role {
                Role::Activation | Role::Overwritten => drawn.f_to_kind(kind)?,
                Role::Weight | Role::Constant => drawn,
                Role::Square => drawn.f_square()?,
                Role::Ids(n) => (drawn.f_abs()? * 1e4).f_to_kind(Kind::Int64)?.f_remainder(n)?,
                Role::Mask => {
                    let hidden = drawn.f_gt(0.5)?;
                    let _ = hidden.f_narrow(-1, 0, 1)?.f_fill_(0)?;
                    drawn.f_zeros_like()?.f_masked_fill(&hidden, f64::NEG_INFINITY)?
                }
            })
        };
        self.inputs.iter().enumerate().map(draw).collect()
    }

    /// Marks the inputs that have gradients; returns them.
    fn learned(&self, inputs: &mut [Tensor]) -> Vec<Tensor> {
        let mut learned = Vec::new();
        for (x, (_, role)) in inputs.iter_mut().zip(&self.inputs) {
            if matches!(role, Role::Activation | Role::Weight) {
                *x = x.set_requires_grad(true);
                learned.push(x.shallow_clone());
            }
        }
        learned
    }

    /// Results and gradients of a weighted sum of them, on the CPU.
    fn evaluate(&self, form: Form, mut inputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
        let learned = self.learned(&mut inputs);
        let mut found = (self.run)(&inputs, form)?;
        if !learned.is_empty() {
            let mut loss = Tensor::from(0f32).f_to_device(found[0].device())?;
            for (at, y) in found.iter().enumerate() {
                let weights =
                    Seeded::new(vec![99 + at as u64], Device::Cpu).normal("w", &[&[1], &y.size()[..]].concat())?;
                let weights = weights.squeeze_dim(0).f_to_device(y.device())?;
                loss += (y.f_to_kind(Kind::Float)? * weights).f_sum(Kind::Float)?;
            }
            found.extend(Tensor::run_backward(&[loss], &learned, false, false));
        }
        Ok(found.iter().map(|x| x.detach().to_device(Device::Cpu)).collect())
    }

    /// Each form in each kind on a device against the plain form in fp32 on the CPU, from the same inputs.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn compare(&self, device: Device) -> Result<Comparisons> {
        let mut found = Comparisons::default();
        for kind in [Kind::Float, Kind::BFloat16] {
            let fresh = || self.inputs(kind, Device::Cpu);
            let wide = |x: Tensor| if x.kind() == kind { x.to_kind(Kind::Float) } else { x };
            let wanted = self.evaluate(Form::Plain, fresh()?.into_iter().map(wide).collect())?;
            for form in [Form::Own, Form::Plain] {
                let inputs = fresh()?.into_iter().map(|x| x.to_device(device)).collect();
                for (at, (got, want)) in self.evaluate(form, inputs)?.iter().zip(&wanted).enumerate() {
                    found.close_relative(format!("{form:?}, {kind:?}, tensor {at}"), got, want, tolerance(kind));
                }
            }
        }
        Ok(found)
    }
}

/// Matrices of a list.
const LISTED: usize = 12;

/// The operations of blocks and heads, in the sizes of a workload.
fn of_activations(w: &Workload) -> Vec<Operation> {
    use Role::{Activation, Constant, Ids, Mask, Overwritten, Weight};
    let (b, n, h) = (w.batch as i64, w.seq as i64, w.model.hidden_size);
    let (heads, dim, vocab) = (w.model.num_heads, w.model.head_dim(), w.model.vocab_size);
    // The positions whose logits are made at a time.
    let few = (b * n).min(4096);
    let by_head: &[i64] = &[b * heads, n, dim];
    // Scores as a whole: only short rows have them, and only on CPUs.
    let short = n.min(64);
    let short_by_head: &[i64] = &[b * heads, short, dim];
    let explicit = |operation| Operation { timed: false, ..operation };
    vec![
        Operation::new("rms_norm", &[(&[b, n, h], Activation), (&[h], Weight)], runs::rms_norm),
        Operation::new("swiglu", &[(&[b, n, 2 * w.model.mlp_hidden()], Activation)], runs::swiglu),
        Operation::new(
            "heads",
            &[
                (&[b, n, 3, heads, dim], Activation),
                (&[dim], Weight),
                (&[dim], Weight),
                (&[n, dim / 2], Constant),
                (&[n, dim / 2], Constant),
            ],
            runs::heads,
        ),
        Operation::new("attention", &[(by_head, Activation); 3], runs::attention),
        Operation::new(
            "cross_entropy",
            &[(&[few, vocab], Overwritten), (&[vocab], Constant), (&[few], Ids(vocab)), (&[few], Constant)],
            runs::cross_entropy,
        ),
        explicit(Operation::new(
            "softmax",
            &[(&[b * heads, short, short], Activation), (&[b, short], Mask)],
            runs::softmax,
        )),
        explicit(Operation::new(
            "attend",
            &[
                (short_by_head, Activation),
                (short_by_head, Activation),
                (short_by_head, Activation),
                (&[b, 1, short], Mask),
            ],
            runs::attend,
        )),
        Operation::new("draws", &[(&[b, n, w.model.text_encoder_dim], Constant)], runs::draws),
    ]
}

/// The operations of optimisers, on one matrix and on lists of those of several blocks.
fn of_parameters(w: &Workload) -> Vec<Operation> {
    use Role::{Constant, Square};
    let matrix: &[i64] = &[w.model.hidden_size, w.model.mlp_hidden()];
    let single = |roles: &[Role]| roles.iter().map(|role| (matrix, *role)).collect::<Vec<_>>();
    let listed = |roles: &[Role]| {
        let list = |role| std::iter::repeat_n((matrix, role), LISTED);
        roles.iter().flat_map(|role| list(*role)).collect::<Vec<_>>()
    };
    let (two, four) = ([Constant; 2], [Constant, Constant, Constant, Square]);
    vec![
        Operation::new("momentum", &single(&two), runs::momentum),
        Operation::new("add_scaled", &single(&two), runs::add_scaled),
        Operation::new("adam", &single(&four), runs::adam),
        Operation::new("lists::momentum", &listed(&two), runs::list_momentum),
        Operation::new("lists::add_scaled", &listed(&two), runs::list_add_scaled),
        Operation::new("lists::adam", &listed(&four), runs::list_adam),
        Operation::new("lists::lerp", &listed(&two), runs::list_lerp),
        Operation::new("lists::norms, scale, zero", &listed(&two), runs::list_norms),
    ]
}

/// All operations, in the sizes of a workload.
pub fn all(w: &Workload) -> Vec<Operation> {
    of_activations(w).into_iter().chain(of_parameters(w)).collect()
}

/// What results and gradients may be off by, as a share of the largest number: sums in another order in fp32, roundings of
/// intermediates in bf16.
fn tolerance(kind: Kind) -> f64 {
    if kind == Kind::Float { 1e-5 } else { 2e-2 }
}

/// The time of one pass of an operation, and the bytes that it has to move.
#[derive(Debug, Serialize)]
pub struct Speed {
    /// The operation.
    pub operation: &'static str,
    /// `Own` or `Plain`.
    pub form: String,
    /// Whether it is the backward pass.
    pub backward: bool,
    /// Median.
    pub seconds: f64,
    /// Inputs and outputs, each once.
    pub bytes: u64,
}

/// The speed of the operations in the workload's precision, forward and, where there is one, backward.
pub fn speeds(w: &Workload) -> Result<Vec<Speed>> {
    let mut speeds = Vec::new();
    for operation in all(w).iter().filter(|operation| operation.timed) {
        for form in [Form::Own, Form::Plain] {
            let mut inputs = operation.inputs(w.policy.blocks.kind(), w.device)?;
            let learned = operation.learned(&mut inputs);
            let mut add = |backward, seconds, bytes| {
                speeds.push(Speed { operation: operation.name, form: format!("{form:?}"), backward, seconds, bytes });
            };
            let outputs = (operation.run)(&inputs, form)?;
            let (read, written, gradients) = (bytes(&inputs), bytes(&outputs), bytes(&learned));
            let forward = median_seconds(w.device, || Ok((operation.run)(&inputs, form)?))?;
            add(false, forward, read + written);
            if !learned.is_empty() {
                // The gradients that it starts from are made first.
                let backward = median_seconds(w.device, || Ok(Tensor::run_backward(&outputs, &learned, true, false)))?;
                add(true, backward, read + 2 * written + gradients);
            }
        }
    }
    Ok(speeds)
}

fn bytes(tensors: &[Tensor]) -> u64 {
    tensors.iter().map(|x| (x.numel() * x.kind().elt_size_in_bytes()) as u64).sum()
}

/// The median of at least five runs, and of as many as fit into some time.
fn median_seconds<R>(on: Device, mut f: impl FnMut() -> Result<R>) -> Result<f64> {
    f()?;
    device::wait(on);
    let (begun, mut laps) = (Instant::now(), Vec::new());
    while laps.len() < 5 || begun.elapsed() < Duration::from_millis(50) {
        let at = Instant::now();
        f()?;
        device::wait(on);
        laps.push(at.elapsed());
    }
    Ok(median(&laps).as_secs_f64())
}
