//! Several processes, on PyTorch's c10d library.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use elf_c10d::{Group, Membership, Store, Via};
use tch::{Device, Kind, Tensor};

use super::gradient_buckets::GradientBuckets;
use super::lifeline::{Lifeline, ranks};
use super::packing::{packed, packs, unpack};
use super::{Comm, GradientSum};
use crate::{Error, Result};

/// The address at which the processes of a run meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeetingPoint {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Whether rank 0 opens the port; otherwise the program that started the processes has done so, as torchrun does.
    pub opened_by_rank_0: bool,
    /// A prefix of all keys, which separates successive runs at one meeting point, such as torchrun's restarts.
    pub prefix: String,
}

/// The settings with which a process joins a run.
#[derive(Debug, Clone)]
pub struct Meeting {
    /// This process's number, from 0.
    pub rank: usize,
    /// The number of processes.
    pub world: usize,
    /// The address at which they meet.
    pub point: MeetingPoint,
    /// The time that any operation waits for the other ranks before the run fails. It must exceed the longest work of a
    /// single rank, which is writing a checkpoint.
    pub timeout: Duration,
    /// The network interface at which other hosts reach this one; `None` for the address of this host's name.
    pub interface: Option<String>,
    /// The device of the tensors.
    pub device: Device,
    /// The library for NCCL groups (`cargo xtask nccl`), for GPUs.
    pub nccl_library: PathBuf,
}

/// The processes of a run on c10d: Gloo for tensors in memory, NCCL for tensors on GPUs.
pub struct C10d {
    rank: u64,
    world: u64,
    lifeline: Arc<Lifeline>,
    // Never freed after a failure: freeing a group waits for operations, which may never end then.
    host: Option<Arc<Group>>,
    device: Option<Arc<Group>>,
}

impl C10d {
    /// Connects to the other processes.
    ///
    /// # Errors
    /// If some do not join within the timeout; the message names them.
    pub fn meet(meeting: &Meeting) -> Result<Self> {
        let Meeting { rank, world, ref point, timeout, .. } = *meeting;
        let bad = |e: elf_c10d::Error| Error::Comm(e.to_string());
        let begun = Instant::now();
        let serves = point.opened_by_rank_0 && rank == 0;
        let root = match serves {
            true => Store::serve(&point.host, point.port, timeout),
            false => Store::join(&point.host, point.port, timeout),
        }
        .map_err(bad)?;
        let port = root.port().unwrap_or(point.port);
        let own_connection = Store::join(&point.host, port, timeout).map_err(bad)?;
        let within = |store: &Store, what: &str| store.within(&format!("{}{what}", point.prefix)).map_err(bad);
        let store = within(&root, "words")?;

        store.set(&format!("here/{rank}"), b"").map_err(bad)?;
        for other in 0..world {
            let left = timeout.saturating_sub(begun.elapsed()).max(Duration::from_millis(1));
            if store.wait(&format!("here/{other}"), left).is_err() {
                let is_missing = |r: &usize| !store.has(&format!("here/{r}")).unwrap_or(false);
                let missing: Vec<usize> = (0..world).filter(is_missing).collect();
                return Err(Error::Comm(format!(
                    "{} of {world} did not come to {}:{port} within {} s",
                    ranks(&missing),
                    point.host,
                    timeout.as_secs()
                )));
            }
        }

        let membership = Membership { rank, world, timeout };
        let via = match &meeting.interface {
            Some(name) => Via::Interface(name),
            None if is_loopback(&point.host) => Via::Address(&point.host),
            None => Via::HostName,
        };
        let host = Group::gloo(&within(&root, "host")?, membership, via).map_err(bad)?;
        let device = match meeting.device {
            Device::Cuda(index) => {
                Some(Group::nccl(&within(&root, "device")?, membership, index, &meeting.nccl_library).map_err(bad)?)
            }
            _ => None,
        };
        let lifeline = Arc::new(Lifeline::start(store, within(&own_connection, "words")?, rank, world));
        Ok(Self {
            rank: rank as u64,
            world: world as u64,
            lifeline,
            host: Some(Arc::new(host)),
            device: device.map(Arc::new),
        })
    }

    /// The group for tensors on `device`.
    fn group(&self, device: Device) -> Result<&Arc<Group>> {
        let group = match device {
            Device::Cpu => self.host.as_ref(),
            _ => self.device.as_ref(),
        };
        group.ok_or_else(|| Error::Comm(format!("the ranks did not meet for tensors on {device:?}")))
    }

    /// Begins an operation on each pack of tensors, then waits for all of them.
    fn on_packs(
        &self,
        tensors: &[Tensor],
        owners: &[u64],
        operation: impl Fn(&Group, &Tensor, u64) -> elf_c10d::Result<elf_c10d::Pending>,
    ) -> Result<()> {
        self.lifeline.check()?;
        tch::no_grad(|| {
            let mut under_way = Vec::new();
            for pack in packs(tensors, owners) {
                let (flat, owner) = (packed(tensors, &pack)?, owners[pack[0]]);
                self.lifeline.count_operation();
                let pending = operation(self.group(flat.device())?, &flat, owner);
                under_way.push((pack, flat, pending.map_err(|e| self.lifeline.lost(&e))?));
            }
            for (pack, flat, pending) in under_way {
                pending.wait().map_err(|e| self.lifeline.lost(&e))?;
                unpack(&flat, tensors, &pack)?;
            }
            Ok(())
        })
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl Comm for C10d {
    fn rank(&self) -> u64 {
        self.rank
    }

    fn world(&self) -> u64 {
        self.world
    }

    fn sum_tensors(&self, tensors: &mut [Tensor]) -> Result<()> {
        self.on_packs(tensors, &vec![0; tensors.len()], |group, flat, _| group.all_reduce_sum(flat))
    }

    fn sum_numbers(&self, numbers: &mut [f64]) -> Result<()> {
        let sums = Tensor::from_slice(numbers);
        self.sum_tensors(&mut [sums.shallow_clone()])?;
        numbers.copy_from_slice(&Vec::<f64>::try_from(&sums)?);
        Ok(())
    }

    fn share_tensors(&self, tensors: &[Tensor], owners: &[u64]) -> Result<()> {
        self.on_packs(tensors, owners, |group, flat, owner| group.broadcast(flat, owner as usize))
    }

    fn gather_bytes(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.lifeline.check()?;
        let options = (Kind::Int64, Device::Cpu);
        let group = self.group(Device::Cpu)?;
        let gather = |all: &Tensor, own: &Tensor| -> Result<()> {
            self.lifeline.count_operation();
            group.all_gather(all, own).and_then(|p| p.wait()).map_err(|e| self.lifeline.lost(&e))
        };
        let lengths = Tensor::f_zeros([self.world as i64], options)?;
        gather(&lengths, &Tensor::from_slice(&[own.len() as i64]))?;
        let lengths = Vec::<i64>::try_from(&lengths)?;
        let longest = lengths.iter().copied().max().unwrap_or(0).max(1);
        let mut padded = own.to_vec();
        padded.resize(longest as usize, 0);
        let all = Tensor::f_zeros([self.world as i64 * longest], (Kind::Uint8, Device::Cpu))?;
        gather(&all, &Tensor::from_slice(&padded))?;
        let all = Vec::<u8>::try_from(&all)?;
        let of_rank = |(bytes, n): (&[u8], i64)| bytes.iter().copied().take(usize::try_from(n).unwrap_or(0)).collect();
        Ok(all.chunks(longest as usize).zip(lengths).map(of_rank).collect())
    }

    fn agree_on_tensors(&self, what: &str, tensors: &[Tensor]) -> Result<()> {
        let mut hasher = blake3::Hasher::new();
        for tensor in tensors {
            let host =
                tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?.f_to_kind(Kind::Float)?.f_view([-1])?;
            let mut numbers = vec![0f32; host.numel()];
            host.f_copy_data(&mut numbers, host.numel())?;
            numbers.iter().for_each(|x| _ = hasher.update(&x.to_le_bytes()));
        }
        self.agree(&[(what, hasher.finalize().to_hex()[..16].to_owned())])
    }

    fn gradient_sum(&self, leaves: Vec<Tensor>) -> Result<Box<dyn GradientSum>> {
        let device = leaves.first().map_or(Device::Cpu, Tensor::device);
        let group = Arc::clone(self.group(device)?);
        Ok(Box::new(GradientBuckets::new(group, Arc::clone(&self.lifeline), leaves)?))
    }

    fn stopping_for(&self, reason: &str) {
        self.lifeline.store_reason(reason);
    }
}

impl std::fmt::Debug for C10d {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("C10d").field("rank", &self.rank).field("world", &self.world).finish_non_exhaustive()
    }
}

impl Drop for C10d {
    fn drop(&mut self) {
        if self.lifeline.has_failed() {
            std::mem::forget(self.host.take());
            std::mem::forget(self.device.take());
        }
    }
}
