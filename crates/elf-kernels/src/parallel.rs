//! Parts of a computation side by side, each on one thread.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError};

use tch::TchError;

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
    fn a_panic_reaches_the_caller() {
        let panic = std::panic::catch_unwind(|| parallel(vec![1, 2], |n| assert_ne!(n, 2)));
        assert!(panic.is_err());
    }
}
