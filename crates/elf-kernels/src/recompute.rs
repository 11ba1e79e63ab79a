//! Less memory for more arithmetic: a part of a network that is run again in the backward pass.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use crate::ffi::{self, Text};

/// What is run twice.
type Part = Box<dyn Fn(&Tensor) -> Result<Tensor, TchError> + Send>;

/// `f(x)`, of which nothing but `x` is kept for the backward pass (gradient checkpointing): `f` is run again there, and whatever
/// parameters it reaches take their gradients then.
///
/// `f` must give the same result each time. On a GPU the second run is on a thread of libtorch's, while the thread that asked for
/// the backward pass waits.
///
/// # Errors
/// If `f` fails. If it fails in the backward pass, that pass fails.
pub fn recompute(
    x: &Tensor,
    f: impl Fn(&Tensor) -> Result<Tensor, TchError> + Send + 'static,
) -> Result<Tensor, TchError> {
    let part: Part = Box::new(f);
    let state = Box::into_raw(Box::new(part)).cast();
    let mut out = null_mut();
    // SAFETY: `x` lives through the call; the state is taken over, and given to `call` and once to `drop_part` alone.
    ffi::check(unsafe { ffi::elf_recompute(x.as_ptr(), state, call, drop_part, &mut out) })?;
    Ok(ffi::taken(out))
}

/// Runs the part. No panic crosses into C++.
unsafe extern "C" fn call(state: *mut c_void, x: *const C_tensor, y: *mut *mut C_tensor) -> Text {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the state is what `recompute` made, and alive as long as it may be called; `x` is a tensor that lives through
        // this call, and is cloned, not kept.
        let (part, x) = unsafe { (&*state.cast::<Part>(), Tensor::clone_from_ptr(x.cast_mut())) };
        part(&x)
    }));
    match outcome {
        Ok(Ok(mut result)) => {
            // SAFETY: `y` is where C++ wants it. It takes the tensor over, so it is not dropped here.
            unsafe { *y = result.as_mut_ptr() };
            std::mem::forget(result);
            null_mut()
        }
        Ok(Err(error)) => ffi::text(&error.to_string()),
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            ffi::text(said.unwrap_or("a part of the network panicked"))
        }
    }
}

unsafe extern "C" fn drop_part(state: *mut c_void) {
    // SAFETY: made by `recompute`, dropped here and once.
    drop(unsafe { Box::from_raw(state.cast::<Part>()) });
}
