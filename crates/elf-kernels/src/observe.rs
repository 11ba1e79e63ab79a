//! Counts of libtorch operations, for tests of how a piece of code works.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};

use crate::ffi;

/// Operations whose result the host needs before it continues. On a GPU, each of them waits for all queued work.
///
/// They read a number (`item`), or make a tensor whose size depends on the values of its input. Copies to the host are not
/// included, because they have the same name as other copies.
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

/// Number of calls of each libtorch operation, by its name (`aten::mm`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operations(BTreeMap<String, u64>);

impl Operations {
    /// Number of calls of one operation.
    pub fn of(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Number of calls of all operations.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Number of calls for which the host would wait on a GPU ([`HOST_WAITS`]).
    pub fn host_waits(&self) -> u64 {
        HOST_WAITS.iter().map(|name| self.of(name)).sum()
    }

    /// Each operation and its calls, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, &calls)| (name.as_str(), calls))
    }
}

/// Runs `f`, and counts the libtorch operations that this thread calls: those that `f` calls, those inside of them, and
/// those of backward passes on a CPU. The fused loops of this crate are not libtorch operations.
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
        // SAFETY: begun above, on this thread, and ended only here.
        unsafe { ffi::elf_observe_end(self.0) }
    }
}

unsafe extern "C" fn count(calls: *mut c_void, name: *const c_char) {
    // SAFETY: `calls` belongs to `operations`, on the same thread, without another borrow; the name ends in 0.
    let (calls, name) = unsafe { (&*calls.cast::<RefCell<Operations>>(), CStr::from_ptr(name)) };
    *calls.borrow_mut().0.entry(name.to_string_lossy().into_owned()).or_default() += 1;
}
