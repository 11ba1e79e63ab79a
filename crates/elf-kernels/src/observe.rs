//! Which operations libtorch is asked for: for tests of what a piece of code does, not of what it gives.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};

use crate::ffi;

/// Operations whose result the host must have before it can go on. On a GPU each of them waits until all that was queued is done.
///
/// They are what reads a number (`item`), and what makes a tensor whose size depends on its input's numbers. Copies to the host are
/// not among them: they have the same name as other copies.
pub const HOST_WAITS: &[&str] = &[
    "aten::_local_scalar_dense",
    "aten::_unique2",
    "aten::bincount",
    "aten::equal",
    "aten::is_nonzero",
    "aten::masked_select",
    "aten::nonzero",
    "aten::unique_consecutive",
    "aten::unique_dim",
];

/// How often each of libtorch's operations was called, by its name (`aten::mm`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operations(BTreeMap<String, u64>);

impl Operations {
    /// Calls of one operation.
    pub fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Calls of all operations.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Calls for which the host would have to wait on a GPU ([`HOST_WAITS`]).
    pub fn host_waits(&self) -> u64 {
        HOST_WAITS.iter().map(|name| self.of(name)).sum()
    }

    /// Each operation and its calls, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, &calls)| (name.as_str(), calls))
    }
}

/// Runs `f`, and tells which of libtorch's operations this thread called meanwhile: those that `f` asks for, those that they are
/// made of, and those of backward passes on a CPU. The fused loops of this crate are none of libtorch's operations.
///
/// # Panics
/// If `f` calls this function.
pub fn operations<T>(f: impl FnOnce() -> T) -> (T, Operations) {
    let calls = RefCell::new(Operations::default());
    let result = {
        // SAFETY: `calls` outlives the observer, which ends with this block even if `f` panics.
        let handle = unsafe { ffi::elf_observe_begin((&raw const calls).cast_mut().cast(), count) };
        assert_ne!(handle, 0, "operations are observed already");
        let _observer = Observer(handle);
        f()
    };
    (result, calls.into_inner())
}

struct Observer(u64);

impl Drop for Observer {
    fn drop(&mut self) {
        // SAFETY: begun above, on this thread, and ended here alone.
        unsafe { ffi::elf_observe_end(self.0) }
    }
}

unsafe extern "C" fn count(calls: *mut c_void, name: *const c_char) {
    // SAFETY: `calls` is that of `operations`, on the same thread, and borrowed nowhere else; the name ends in 0.
    let (calls, name) = unsafe { (&*calls.cast::<RefCell<Operations>>(), CStr::from_ptr(name)) };
    *calls.borrow_mut().0.entry(name.to_string_lossy().into_owned()).or_default() += 1;
}
