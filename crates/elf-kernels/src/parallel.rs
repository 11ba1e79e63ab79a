//! Parts of a computation side by side, each on one thread.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::null_mut;
use std::sync::{Mutex, PoisonError};

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use crate::ffi;

/// What becomes of a part: none yet, its result, or its panic.
type Outcome<R> = Option<std::thread::Result<R>>;

struct Work<T, R> {
    parts: Vec<Mutex<Option<T>>>,
    results: Vec<Mutex<Outcome<R>>>,
    f: fn(T) -> R,
}

/// `f` of each part, in their order, on libtorch's threads for the CPU, of which there are [`tch::get_num_threads`]. Within a part
/// libtorch's operations have that one thread, and gradients are recorded unless `f` says otherwise, whatever holds for the caller.
///
/// Threads that meet after each operation, as libtorch's do by default, spend more time on that than on small operations: where a
/// computation falls into equal parts, this is faster.
///
/// # Errors
/// If there are no threads.
///
/// # Panics
/// If `f` does, with its panic.
pub fn parallel<T: Send, R: Send>(parts: Vec<T>, f: fn(T) -> R) -> Result<Vec<R>, TchError> {
    let n = parts.len();
    let parts = parts.into_iter().map(|part| Mutex::new(Some(part))).collect();
    let work = Work { parts, results: (0..n).map(|_| Mutex::new(None)).collect(), f };
    // SAFETY: the work outlives the call, which returns when all parts are done, and is shared by reference: parts and results are
    // taken and left under locks.
    ffi::check(unsafe { ffi::elf_parallel(n as i64, (&raw const work).cast_mut().cast(), run_part::<T, R>) })?;
    let done = |result: Mutex<Outcome<R>>| match result.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(Ok(result)) => Ok(result),
        Some(Err(panic)) => resume_unwind(panic),
        None => Err(TchError::Torch("a part of a computation was left out".to_owned())),
    };
    work.results.into_iter().map(done).collect()
}

/// Rows of a batch, and what was computed from them, with a graph that begins at these rows.
#[derive(Debug)]
pub struct Part {
    /// The rows: a leaf of the graph.
    pub input: Tensor,
    /// What was computed from them, as many rows.
    pub output: Tensor,
}

impl Part {
    /// The `n` rows of `x` from `first` on, as the input of a graph of their own.
    ///
    /// # Errors
    /// If there are no such rows.
    pub fn input(x: &Tensor, first: i64, n: i64) -> Result<Tensor, TchError> {
        Ok(x.f_detach()?.f_narrow(0, first, n)?.set_requires_grad(true))
    }
}

/// The outputs of parts, which [`parallel`] may have computed, as one tensor with gradients to `x`, whose rows the inputs are in this order, and
/// to the `leaves`, which all parts share. In the backward pass, too, each thread takes parts of its own; gradients of leaves are
/// summed in the order of the parts, so that they are the same each time.
///
/// # Errors
/// If the parts do not fit together.
pub fn joined(x: &Tensor, leaves: &[Tensor], parts: &[Part]) -> Result<Tensor, TchError> {
    let rows = |of: fn(&Part) -> &Tensor| parts.iter().map(|part| of(part).size().first().copied().unwrap_or(0)).sum();
    let (inputs, outputs): (i64, i64) = (rows(|part| &part.input), rows(|part| &part.output));
    if x.size().first() != Some(&inputs) || inputs != outputs {
        let found = format!("{inputs} rows of inputs and {outputs} of outputs in parts of a tensor {:?}", x.size());
        return Err(TchError::Shape(found));
    }
    let pointers =
        |of: &mut dyn Iterator<Item = &Tensor>| of.map(|t| t.as_ptr().cast_mut()).collect::<Vec<*mut C_tensor>>();
    let inputs = pointers(&mut parts.iter().map(|part| &part.input));
    let outputs = pointers(&mut parts.iter().map(|part| &part.output));
    let leaves = pointers(&mut leaves.iter());
    let mut out = null_mut();
    // SAFETY: all tensors live through the call, which clones them; `out` is set if there is no error.
    ffi::check(unsafe {
        ffi::elf_joined(
            x.as_ptr(),
            inputs.as_ptr(),
            outputs.as_ptr(),
            inputs.len(),
            leaves.as_ptr(),
            leaves.len(),
            &mut out,
        )
    })?;
    Ok(ffi::taken(out))
}

/// Runs part `i`. No panic crosses into C++.
unsafe extern "C" fn run_part<T, R>(work: *mut c_void, i: i64) {
    // SAFETY: `work` is what `parallel` gave, which waits for all calls.
    let work = unsafe { &*work.cast::<Work<T, R>>() };
    let part = work.parts[i as usize].lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(part) = part {
        let result = catch_unwind(AssertUnwindSafe(|| (work.f)(part)));
        *work.results[i as usize].lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;

    #[test]
    fn parts_keep_their_order_and_compute_what_they_would_alone() {
        let x = Tensor::arange(7 * 40, (Kind::Float, Device::Cpu)).view([7, 40]).sin();
        let squared = |x: &Tensor| x.f_mm(&x.tr()).unwrap();
        let parts: Vec<Tensor> = (0..7).map(|i| x.narrow(0, i, 1)).collect();
        let alone: Vec<Tensor> = parts.iter().map(squared).collect();
        let together = parallel(parts, |x| x.f_mm(&x.tr()).unwrap()).unwrap();
        assert_eq!(alone, together);
        assert!(parallel(Vec::<Tensor>::new(), |x| x).unwrap().is_empty());
    }

    #[test]
    fn parts_have_the_gradients_of_the_whole() {
        let some = |shape: [i64; 2], seed: f64| {
            let n = shape.iter().product::<i64>();
            (Tensor::arange(n, (Kind::Float, Device::Cpu)) * seed).sin().view(shape)
        };
        let compute = |x: &Tensor, w: &Tensor, v: &Tensor| x.matmul(w).tanh().matmul(v);
        let x = some([7, 5], 0.7).set_requires_grad(true);
        let (w, v, unused) = (some([5, 6], 0.3), some([6, 4], 1.1), some([2, 2], 0.1));
        let leaves: Vec<Tensor> = [w, v, unused].into_iter().map(|leaf| leaf.set_requires_grad(true)).collect();
        let slope = some([7, 4], 0.9);
        let gradients = |y: &Tensor| -> Vec<Tensor> {
            let wanted: Vec<&Tensor> = [&x].into_iter().chain(&leaves[..2]).collect();
            Tensor::run_backward(&[(y * &slope).sum(Kind::Float)], &wanted, false, false)
        };
        // A product before the parts, so that their input is no leaf.
        let whole = compute(&(&x * 2.0), &leaves[0], &leaves[1]);
        let expected = gradients(&whole);

        let doubled = &x * 2.0;
        let inputs = [[0, 2], [2, 4], [6, 1]].map(|[first, n]| Part::input(&doubled, first, n).unwrap());
        let handles = |input: Tensor| (input, leaves[0].shallow_clone(), leaves[1].shallow_clone());
        let run = |(input, w, v): (Tensor, Tensor, Tensor)| Part { output: input.matmul(&w).tanh().matmul(&v), input };
        let parts = parallel(inputs.into_iter().map(handles).collect(), run).unwrap();
        let y = joined(&doubled, &leaves, &parts).unwrap();
        assert!((&y - whole).abs().max().double_value(&[]) < 1e-6);
        for (found, expected) in gradients(&y).iter().zip(&expected) {
            assert!((found - expected).abs().max().double_value(&[]) < 1e-5, "{found} {expected}");
        }

        let twice = (joined(&doubled, &leaves, &parts[..2]), joined(&x.narrow(0, 0, 3), &leaves, &parts));
        assert!(matches!(twice, (Err(TchError::Shape(_)), Err(TchError::Shape(_)))));
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        let panic = std::panic::catch_unwind(|| parallel(vec![1, 2], |n| assert_ne!(n, 2)));
        assert!(panic.is_err());
    }
}
