//! Hooks on complete gradients.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;
use std::sync::Arc;

use tch::Tensor;

use crate::{Error, Result, ffi};

type Call = Box<dyn Fn(usize) + Send + Sync>;

/// Hooks that call a function after a backward pass has added to a parameter's gradient, on the thread of the backward
/// pass. Parameters that the pass does not reach are not reported. Dropping the hooks ends the calls.
pub struct GradientHooks {
    leaves: Vec<Tensor>,
    // C++ passes its address back.
    _call: Arc<Call>,
}

impl GradientHooks {
    /// Watches the gradients of `leaves`, which must require them. `call` gets a leaf's place in the list; it must not wait
    /// for the backward pass. Its panics are ignored.
    ///
    /// A leaf holds one hook: an earlier one is replaced.
    ///
    /// # Errors
    /// If libtorch refuses, for example because a tensor is not a leaf.
    pub fn new(leaves: &[Tensor], call: impl Fn(usize) + Send + Sync + 'static) -> Result<Self> {
        let call: Arc<Call> = Arc::new(Box::new(call));
        let context = Arc::as_ptr(&call).cast_mut().cast::<c_void>();
        let mut hooks = Self { leaves: Vec::with_capacity(leaves.len()), _call: call };
        for (index, leaf) in leaves.iter().enumerate() {
            let mut leaf = leaf.shallow_clone();
            if !(leaf.requires_grad() && leaf.is_leaf()) {
                return Err(Error::Argument {
                    argument: "leaves",
                    reason: format!("tensor {index} gathers no gradient: it must be a leaf that requires one"),
                });
            }
            let mut error = null_mut();
            // SAFETY: the tensor is alive; `context` stays valid until the hook is removed, which `drop` does first.
            let done = unsafe {
                ffi::elf_c10d_watch_gradient(leaf.as_mut_ptr().cast(), index, trampoline, context, &mut error)
            };
            if !done {
                // SAFETY: the text comes from the call that just failed.
                return Err(Error::Group { operation: "watching gradients", reason: unsafe { ffi::take_text(error) } });
            }
            hooks.leaves.push(leaf);
        }
        Ok(hooks)
    }
}

impl std::fmt::Debug for GradientHooks {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("GradientHooks").field("leaves", &self.leaves.len()).finish()
    }
}

impl Drop for GradientHooks {
    fn drop(&mut self) {
        for leaf in &mut self.leaves {
            // SAFETY: the tensor is alive.
            unsafe { ffi::elf_c10d_unwatch_gradient(leaf.as_mut_ptr().cast()) }
        }
    }
}

extern "C" fn trampoline(context: *mut c_void, index: usize) {
    // SAFETY: `context` is the address of the call of a `GradientHooks` that is alive: it removes its hooks before the call
    // is freed.
    let call = unsafe { &*context.cast::<Call>() };
    // A panic must not unwind through C++.
    let _ = catch_unwind(AssertUnwindSafe(|| call(index)));
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tch::{Device, Kind};

    use super::*;

    fn leaf() -> Tensor {
        Tensor::ones([3], (Kind::Float, Device::Cpu)).set_requires_grad(true)
    }

    #[test]
    fn each_reached_leaf_is_reported_once_a_pass_after_its_gradient_is_there() {
        let leaves = [leaf(), leaf(), leaf()];
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (sink, watched) =
            (Arc::clone(&seen), leaves.iter().map(|l| Mutex::new(l.shallow_clone())).collect::<Vec<_>>());
        let hooks = GradientHooks::new(&leaves, move |i| {
            let gradient = watched[i].lock().unwrap().grad().double_value(&[0]);
            sink.lock().unwrap().push((i, gradient));
        })
        .unwrap();
        // The second leaf is used twice, the third not at all.
        let loss = || (&leaves[0] * 2.0 + &leaves[1] * 3.0 + &leaves[1]).sum(Kind::Float);
        loss().backward();
        let mut first = std::mem::take(&mut *seen.lock().unwrap());
        first.sort_by_key(|&(i, _)| i);
        assert_eq!(first, [(0, 2.0), (1, 4.0)]);
        loss().backward();
        let mut second = std::mem::take(&mut *seen.lock().unwrap());
        second.sort_by_key(|&(i, _)| i);
        assert_eq!(second, [(0, 4.0), (1, 8.0)], "gradients accumulate");
        drop(hooks);
        loss().backward();
        assert!(seen.lock().unwrap().is_empty());
        assert_eq!(leaves[0].grad().double_value(&[0]), 6.0);
    }

    #[test]
    fn tensors_without_gradients_are_refused() {
        let plain = Tensor::ones([3], (Kind::Float, Device::Cpu));
        assert!(GradientHooks::new(&[leaf(), plain], |_| ()).unwrap_err().to_string().contains("tensor 1"));
    }
}
