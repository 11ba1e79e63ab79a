//! Processes that work on tensors together.

use std::ffi::{c_char, c_int, c_void};
use std::path::Path;
use std::ptr::{NonNull, null, null_mut};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tch::Tensor;

use crate::ffi::{self, RawGroup, RawStore, RawWork};
use crate::store::{milliseconds, text};
use crate::{Error, Result, Store};

/// Threads of a Gloo group that move data: as many operations go on at once.
const GLOO_THREADS: c_int = 2;

/// Which process this is, of how many, and how long one waits for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Membership {
    /// This process's number, from 0.
    pub rank: usize,
    /// How many processes there are.
    pub world: usize,
    /// How long any operation waits for the others before it fails.
    pub timeout: Duration,
}

impl Membership {
    fn numbers(self) -> Result<(c_int, c_int)> {
        let refuse = |reason: String| Error::Argument { argument: "rank", reason };
        if self.rank >= self.world {
            return Err(refuse(format!("{} does not exist among {} ranks (they count from 0)", self.rank, self.world)));
        }
        let too_many = |_| refuse(format!("{} processes are too many", self.world));
        Ok((self.rank as c_int, c_int::try_from(self.world).map_err(too_many)?))
    }
}

/// Which of this host's addresses the others reach it by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via<'a> {
    /// What the host's own name resolves to; the loopback address if it does not.
    HostName,
    /// The address that this name or number stands for on this host: `127.0.0.1` for processes of one host.
    Address(&'a str),
    /// The address of a network interface: `eth0`.
    Interface(&'a str),
}

/// A process group of c10d.
///
/// All processes of the group must call the same operations in the same order with tensors of the same shape and kind. An
/// operation fails when a process is gone or has not joined it within the timeout; the group can then not be used any more.
///
/// Operations begin at once and go on beside the caller; [`Pending::wait`] ends them. Until then nobody may write to the
/// tensors, and what they hold is undefined.
#[derive(Debug)]
pub struct Group {
    raw: Mutex<NonNull<RawGroup>>,
    membership: Membership,
    // A group of NCCL runs code of this library, so it goes after the group.
    _library: Option<libloading::Library>,
}

// SAFETY: c10d's groups do not belong to a thread; the mutex keeps calls apart.
unsafe impl Send for Group {}
// SAFETY: as above.
unsafe impl Sync for Group {}

impl Group {
    /// A group over TCP for tensors in memory. `store` is used for this group alone (see [`Store::within`]).
    ///
    /// # Errors
    /// If the others do not come within the timeout, or this host cannot be reached in the way that `via` says.
    pub fn gloo(store: &Store, membership: Membership, via: Via) -> Result<Self> {
        let (rank, world) = membership.numbers()?;
        let (interface, host) = match via {
            Via::HostName => (None, None),
            Via::Address(name) => (None, Some(text("address", name)?)),
            Via::Interface(name) => (Some(text("interface", name)?), None),
        };
        let pointer = |name: &Option<std::ffi::CString>| name.as_ref().map_or(null(), |n| n.as_ptr());
        let mut error = null_mut();
        // SAFETY: store and texts outlive the call; the group counts references to the store's inside.
        let raw = unsafe {
            ffi::elf_c10d_gloo(
                store.raw(),
                rank,
                world,
                milliseconds(membership.timeout),
                pointer(&interface),
                pointer(&host),
                GLOO_THREADS,
                &mut error,
            )
        };
        Self::made(raw, error, membership, None)
    }

    /// A group over NCCL for tensors on GPU `device` of this host. `library` is built by `cargo xtask nccl`, because it needs
    /// headers that a CPU build does not have. libtorch's CUDA part must be loaded already, which choosing a GPU does.
    ///
    /// This way was compiled and never run on a GPU by its authors.
    ///
    /// # Errors
    /// If the library cannot be loaded, or as [`Group::gloo`].
    pub fn nccl(store: &Store, membership: Membership, device: usize, library: &Path) -> Result<Self> {
        type Make = unsafe extern "C" fn(*const RawStore, c_int, c_int, i64, c_int, *mut *mut c_char) -> *mut RawGroup;
        let (rank, world) = membership.numbers()?;
        let bad = |e: libloading::Error| Error::Nccl { path: library.to_owned(), reason: e.to_string() };
        // SAFETY: the library is ours; loading it registers nothing and starts nothing.
        let loaded = unsafe { libloading::Library::new(library) }.map_err(bad)?;
        // SAFETY: this is its one function, with this signature.
        let make = unsafe { loaded.get::<Make>(b"elf_c10d_nccl\0") }.map_err(bad)?;
        let device = c_int::try_from(device)
            .map_err(|_| Error::Argument { argument: "device", reason: format!("there is no GPU {device}") })?;
        let mut error = null_mut();
        // SAFETY: as in `gloo`.
        let raw = unsafe { make(store.raw(), rank, world, milliseconds(membership.timeout), device, &mut error) };
        Self::made(raw, error, membership, Some(loaded))
    }

    fn made(
        raw: *mut RawGroup,
        error: *mut c_char,
        membership: Membership,
        library: Option<libloading::Library>,
    ) -> Result<Self> {
        match NonNull::new(raw) {
            Some(raw) => Ok(Self { raw: Mutex::new(raw), membership, _library: library }),
            // SAFETY: the text comes from the call that just failed.
            None => Err(failed("forming the group of processes", error)),
        }
    }

    /// This process's number, from 0.
    pub fn rank(&self) -> usize {
        self.membership.rank
    }

    /// How many processes there are.
    pub fn world(&self) -> usize {
        self.membership.world
    }

    /// How long any operation waits for the others.
    pub fn timeout(&self) -> Duration {
        self.membership.timeout
    }

    /// Gives all processes the values of process `root`, in place.
    ///
    /// # Errors
    /// If the tensor is not contiguous, or a process is already known to be gone.
    pub fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Pending> {
        let (mut tensor, root) = (contiguous("broadcast", tensor)?, self.rank_number(root)?);
        self.begin("broadcast", |group, error| {
            // SAFETY: group and tensor are alive; the operation counts references to the tensor.
            unsafe { ffi::elf_c10d_broadcast(group, pointer(&mut tensor), root, error) }
        })
    }

    /// Replaces a tensor, in place, by its sum over all processes.
    ///
    /// # Errors
    /// As [`Group::broadcast`].
    pub fn all_reduce_sum(&self, tensor: &Tensor) -> Result<Pending> {
        let mut tensor = contiguous("all-reduce", tensor)?;
        self.begin("all-reduce", |group, error| {
            // SAFETY: as in `broadcast`.
            unsafe { ffi::elf_c10d_all_reduce_sum(group, pointer(&mut tensor), error) }
        })
    }

    /// Replaces a floating-point tensor, in place, by its average over all processes.
    ///
    /// # Errors
    /// As [`Group::broadcast`].
    pub fn all_reduce_mean(&self, tensor: &Tensor) -> Result<Pending> {
        let pending = self.all_reduce_sum(tensor)?;
        Ok(Pending { scale: Some((tensor.shallow_clone(), 1.0 / self.world() as f64)), ..pending })
    }

    /// Fills `all`, whose first dimension is the number of processes times that of `own`, with everyone's `own` in order of
    /// ranks.
    ///
    /// # Errors
    /// If the sizes do not fit, or as [`Group::broadcast`].
    pub fn all_gather(&self, all: &Tensor, own: &Tensor) -> Result<Pending> {
        self.check_parts("all-gather", all, own)?;
        let (mut all, mut own) = (contiguous("all-gather", all)?, contiguous("all-gather", own)?);
        self.begin("all-gather", |group, error| {
            // SAFETY: as in `broadcast`.
            unsafe { ffi::elf_c10d_all_gather(group, pointer(&mut all), pointer(&mut own), error) }
        })
    }

    /// Sums `all` over all processes and puts this process's part of the sum into `own`: the counterpart of
    /// [`Group::all_gather`].
    ///
    /// # Errors
    /// As [`Group::all_gather`].
    pub fn reduce_scatter_sum(&self, own: &Tensor, all: &Tensor) -> Result<Pending> {
        self.check_parts("reduce-scatter", all, own)?;
        let (mut all, mut own) = (contiguous("reduce-scatter", all)?, contiguous("reduce-scatter", own)?);
        self.begin("reduce-scatter", |group, error| {
            // SAFETY: as in `broadcast`.
            unsafe { ffi::elf_c10d_reduce_scatter_sum(group, pointer(&mut own), pointer(&mut all), error) }
        })
    }

    /// Ends when all processes have called it.
    ///
    /// # Errors
    /// If a process is already known to be gone.
    pub fn barrier(&self) -> Result<Pending> {
        // SAFETY: the group is alive.
        self.begin("barrier", |group, error| unsafe { ffi::elf_c10d_barrier(group, error) })
    }

    fn begin(
        &self,
        operation: &'static str,
        call: impl FnOnce(*mut RawGroup, *mut *mut c_char) -> *mut RawWork,
    ) -> Result<Pending> {
        let group = self.raw.lock().unwrap_or_else(PoisonError::into_inner);
        let mut error = null_mut();
        match NonNull::new(call(group.as_ptr(), &mut error)) {
            Some(raw) => Ok(Pending { work: Work(raw), operation, scale: None }),
            None => Err(failed(operation, error)),
        }
    }

    fn rank_number(&self, rank: usize) -> Result<c_int> {
        Membership { rank, ..self.membership }.numbers().map(|(rank, _)| rank)
    }

    fn check_parts(&self, argument: &'static str, all: &Tensor, own: &Tensor) -> Result<()> {
        let (all_size, own_size) = (all.size(), own.size());
        let fits = match (all_size.as_slice(), own_size.as_slice()) {
            ([first, rest @ ..], [own_first, own_rest @ ..]) => {
                *first == own_first * self.world() as i64 && rest == own_rest
            }
            _ => false,
        };
        match fits && all.kind() == own.kind() {
            true => Ok(()),
            false => Err(Error::Argument {
                argument,
                reason: format!(
                    "{own_size:?} of {:?} is not the {}th part of {all_size:?} of {:?}",
                    own.kind(),
                    self.world(),
                    all.kind()
                ),
            }),
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let raw = self.raw.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: made by a constructor and freed once.
        unsafe { ffi::elf_c10d_group_free(raw.as_ptr()) }
    }
}

/// An operation under way. Dropping it does not stop it.
#[derive(Debug)]
#[must_use = "an operation is over only when it has been waited for"]
pub struct Pending {
    work: Work,
    operation: &'static str,
    scale: Option<(Tensor, f64)>,
}

#[derive(Debug)]
struct Work(NonNull<RawWork>);

// SAFETY: c10d's work handles may be waited for on any thread.
unsafe impl Send for Work {}

impl Pending {
    /// Waits for the end. On a GPU what is queued afterwards waits, not the host.
    ///
    /// # Errors
    /// If a process is gone, or has not joined the operation within the group's timeout.
    pub fn wait(mut self) -> Result<()> {
        let mut error = null_mut();
        // SAFETY: the work is alive.
        if !unsafe { ffi::elf_c10d_work_wait(self.work.0.as_ptr(), &mut error) } {
            return Err(failed(self.operation, error));
        }
        if let Some((mut tensor, factor)) = self.scale.take() {
            let scaled = tch::no_grad(|| tensor.f_mul_scalar_(factor));
            let _ = scaled.map_err(|e| Error::Group { operation: self.operation, reason: e.to_string() })?;
        }
        Ok(())
    }

    /// Whether it is over, well or not.
    pub fn is_done(&self) -> bool {
        // SAFETY: the work is alive.
        unsafe { ffi::elf_c10d_work_done(self.work.0.as_ptr()) }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // SAFETY: made by `begin` and freed once; the group keeps a reference of its own while it runs.
        unsafe { ffi::elf_c10d_work_free(self.0.as_ptr()) }
    }
}

fn failed(operation: &'static str, error: *mut c_char) -> Error {
    // SAFETY: called with the text of a call that just failed, once.
    Error::Group { operation, reason: unsafe { ffi::take_text(error) } }
}

fn contiguous(argument: &'static str, tensor: &Tensor) -> Result<Tensor> {
    match tensor.defined() && tensor.is_contiguous() {
        true => Ok(tensor.shallow_clone()),
        false => Err(Error::Argument {
            argument,
            reason: "a process group needs tensors without gaps: copy it with contiguous() first".to_owned(),
        }),
    }
}

fn pointer(tensor: &mut Tensor) -> *mut c_void {
    tensor.as_mut_ptr().cast()
}
