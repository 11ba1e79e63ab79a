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

/// Operations that launch nothing on a GPU: other views of a tensor, and memory for a new one.
const WITHOUT_LAUNCH: &[&str] = &[
    "alias",
    "as_strided",
    "chunk",
    "contiguous",
    "detach",
    "detach_",
    "empty",
    "empty_like",
    "empty_strided",
    "expand",
    "expand_as",
    "flatten",
    "is_nonzero",
    "lift_fresh",
    "narrow",
    "permute",
    "real",
    "reshape",
    "_reshape_alias",
    "resize_",
    "resolve_conj",
    "resolve_neg",
    "result_type",
    "select",
    "set_",
    "slice",
    "split",
    "split_with_sizes",
    "squeeze",
    "squeeze_",
    "t",
    "to",
    "transpose",
    "unbind",
    "unflatten",
    "_unsafe_view",
    "unsqueeze",
    "view",
    "view_as",
    "view_as_complex",
    "view_as_real",
];

/// Operations that are one or a few kernels on a GPU, and several operations on a CPU: the number of launches of one.
const AS_ONE: &[(&str, u64)] = &[
    ("aten::_foreach_", 2),
    ("aten::addmm", 1),
    ("aten::mm", 1),
    ("aten::bmm", 1),
    ("aten::baddbmm", 1),
    ("aten::_fused_rms_norm", 1),
    ("aten::scaled_dot_product_attention", 1),
    ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", 3),
];

/// What a name of [`AS_ONE`] launches.
fn as_one(name: &str) -> Option<u64> {
    AS_ONE.iter().find(|(start, _)| name.starts_with(start)).map(|(_, launches)| *launches)
}

/// Whether libtorch's autograd, which is observed too, and neither an operation nor a kernel of [`crate::kernels`] is named so.
fn is_a_wrapper(name: &str) -> bool {
    !name.starts_with("aten::") && !name.starts_with("elf_")
}

/// What an operation that calls no other launches on a GPU.
fn launches_of(name: &str) -> u64 {
    let short = name.strip_prefix("aten::").unwrap_or(name);
    u64::from(!is_a_wrapper(name) && !WITHOUT_LAUNCH.contains(&short))
}

/// Number of calls of each libtorch operation, by its name (`aten::mm`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operations {
    calls: BTreeMap<String, u64>,
    launches: BTreeMap<String, u64>,
    /// Bytes of the inputs and results of what is launched.
    bytes: BTreeMap<String, u64>,
    /// Operations of [`AS_ONE`] that are open.
    within: u64,
}

impl Operations {
    /// Number of calls of one operation.
    pub fn of(&self, name: &str) -> u64 {
        self.calls.get(name).copied().unwrap_or(0)
    }

    /// Number of calls of all operations.
    pub fn total(&self) -> u64 {
        self.calls.values().sum()
    }

    /// Kernels that these operations would launch on a GPU, if they ran on the way for GPUs ([`crate::on_gpu_path`]): about, since a
    /// large reduction takes two and a list of hundreds of tensors several.
    pub fn launches(&self) -> u64 {
        self.launches.values().sum()
    }

    /// Bytes that these kernels would read and write: those of the inputs and of the results of each, a tensor once in either, and only
    /// what a view of it shows.
    pub fn bytes(&self) -> u64 {
        self.bytes.values().sum()
    }

    /// The operations that launch kernels, with the bytes of all their calls, the most first.
    pub fn bytes_by_operation(&self) -> Vec<(&str, u64)> {
        most_first(&self.bytes)
    }

    /// The operations that launch kernels, with the kernels of all their calls, the most first.
    pub fn launches_by_operation(&self) -> Vec<(&str, u64)> {
        most_first(&self.launches)
    }

    /// [`Operations::launches`] of the operations whose names begin so.
    pub fn launched_by(&self, start: &str) -> u64 {
        self.launches.iter().filter(|(name, _)| name.starts_with(start)).map(|(_, n)| n).sum()
    }

    fn told(&mut self, name: &str, inner: u64, bytes: u64) {
        if inner == 0 {
            *self.calls.entry(name.to_owned()).or_default() += 1;
            self.within += u64::from(as_one(name).is_some());
            return;
        }
        let launches = match as_one(name) {
            Some(launches) => {
                self.within = self.within.saturating_sub(1);
                launches
            }
            None if inner == 1 => launches_of(name),
            None => 0,
        };
        if launches > 0 && self.within == 0 {
            *self.launches.entry(name.to_owned()).or_default() += launches;
            *self.bytes.entry(name.to_owned()).or_default() += bytes;
        }
    }

    /// Number of calls for which the host would wait on a GPU ([`HOST_WAITS`]).
    pub fn host_waits(&self) -> u64 {
        HOST_WAITS.iter().map(|name| self.of(name)).sum()
    }

    /// Each operation and its calls, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.calls.iter().map(|(name, &calls)| (name.as_str(), calls))
    }
}

fn most_first(counts: &BTreeMap<String, u64>) -> Vec<(&str, u64)> {
    let mut all: Vec<_> = counts.iter().map(|(name, &n)| (name.as_str(), n)).collect();
    all.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    all
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

unsafe extern "C" fn count(calls: *mut c_void, name: *const c_char, inner: u64, bytes: u64) {
    // SAFETY: `calls` belongs to `operations`, on the same thread, without another borrow; the name ends in 0.
    let (calls, name) = unsafe { (&*calls.cast::<RefCell<Operations>>(), CStr::from_ptr(name)) };
    calls.borrow_mut().told(&name.to_string_lossy(), inner, bytes);
}
