//! Process groups, and their operations on tensors.

use std::ffi::{c_char, c_int, c_void};
use std::path::Path;
use std::ptr::{NonNull, null, null_mut};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tch::Tensor;

use crate::ffi::{self, RawGroup, RawStore, RawWork};
use crate::store::{milliseconds, text};
use crate::{Error, Result, Store};

/// Number of a Gloo group's threads, and so of its simultaneous operations.
const GLOO_THREADS: c_int = 2;

/// The place of a process in its group, and the group's timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Membership {
    /// This process's number, from 0.
    pub rank: usize,
    /// Number of processes.
    pub world: usize,
    /// Longest wait of an operation for the other processes.
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

/// The address of this host that the other processes connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via<'a> {
    /// The address that the host's own name resolves to, or else the loopback address.
    HostName,
    /// The address of a name or number, such as `127.0.0.1` for processes of one host.
    Address(&'a str),
    /// The address of a network interface, such as `eth0`.
    Interface(&'a str),
}

/// A process group of c10d.
///
/// All processes of the group must call the same operations in the same order with tensors of the same shape and kind. An
/// operation fails if a process has ended or does not join it within the timeout; the group cannot be used afterwards.
///
/// Operations begin at once and run in the background; [`Pending::wait`] waits for them. Until then the tensors must not be
/// written, and their values are undefined.
#[derive(Debug)]
pub struct Group {
    raw: Mutex<NonNull<RawGroup>>,
    membership: Membership,
    // A group of NCCL runs code of this library, which must be dropped after the group.
    _library: Option<libloading::Library>,
}

// SAFETY: c10d's groups do not belong to a thread; the mutex serialises calls.
unsafe impl Send for Group {}
// SAFETY: as above.
unsafe impl Sync for Group {}

impl Group {
    /// A group over TCP for tensors in memory. `store` is used for this group alone (see [`Store::within`]).
    ///
    /// # Errors
    /// If the other processes do not connect within the timeout, or this host has no address as `via` requests.
    pub fn gloo(store: &Store, membership: Membership, via: Via) -> Result<Self> {
        let (rank, world) = membership.numbers()?;
        let (interface, host) = match via {
            Via::HostName => (None, None),
            Via::Address(name) => (None, Some(text("address", name)?)),
            Via::Interface(name) => (Some(text("interface", name)?), None),
        };
        let pointer = |name: &Option<std::ffi::CString>| name.as_ref().map_or(null(), |n| n.as_ptr());
        let mut error = null_mut();
        // SAFETY: store and texts outlive the call; the group holds references to the store's contents.
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
    /// The authors compiled this function and never ran it on a GPU.
    ///
    /// # Errors
    /// If the library cannot be loaded, or as [`Group::gloo`].
    pub fn nccl(store: &Store, membership: Membership, device: usize, library: &Path) -> Result<Self> {
        type Make = unsafe extern "C" fn(*const RawStore, c_int, c_int, i64, c_int, *mut *mut c_char) -> *mut RawGroup;
        let (rank, world) = membership.numbers()?;
        let bad = |e: libloading::Error| Error::Nccl { path: library.to_owned(), reason: e.to_string() };
        // SAFETY: the library belongs to this project; loading it registers and starts nothing.
        let loaded = unsafe { libloading::Library::new(library) }.map_err(bad)?;
        // SAFETY: this is its only function, with this signature.
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

    /// Number of processes.
    pub fn world(&self) -> usize {
        self.membership.world
    }

    /// Longest wait of an operation for the other processes.
    pub fn timeout(&self) -> Duration {
        self.membership.timeout
    }

    /// Replaces a tensor, in place, by that of process `root`.
    ///
    /// # Errors
    /// If the tensor is not contiguous, or a process is known to have ended.
    pub fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Pending> {
        let (mut tensor, root) = (contiguous("broadcast", tensor)?, self.rank_number(root)?);
        self.begin("broadcast", |group, error| {
            // SAFETY: group and tensor are alive; the operation holds references to the tensor.
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

    /// Fills `all`, whose first dimension is the number of processes times that of `own`, with the `own` of every process
    /// in the order of ranks.
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

    /// Sums `all` over all processes and writes this process's part of the sum into `own`: the counterpart of
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

    /// Returns after all processes have called it.
    ///
    /// # Errors
    /// If a process is known to have ended.
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
        // SAFETY: made by a constructor, and freed only here.
        unsafe { ffi::elf_c10d_group_free(raw.as_ptr()) }
    }
}

/// A running operation. Dropping it does not stop the operation.
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
    /// Waits for the operation to end. On a GPU, later queued work waits instead of the host.
    ///
    /// # Errors
    /// If a process has ended or did not join the operation within the group's timeout.
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

    /// Whether the operation has ended, successfully or not.
    pub fn is_done(&self) -> bool {
        // SAFETY: the work is alive.
        unsafe { ffi::elf_c10d_work_done(self.work.0.as_ptr()) }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // SAFETY: made by `begin`, and freed only here; the group holds its own reference while the operation runs.
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
