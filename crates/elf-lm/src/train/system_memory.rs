//! What the system says of memory: how much there is, and the most that this process held.

use std::fmt;
use std::fs;
use std::path::Path;

use tch::Device;

use crate::Result;
use crate::error::fail;

/// Bytes that this process held at the most since [`reset_peak`], or since it began where that is not possible; `None` where
/// the system does not say.
pub fn peak_bytes() -> Option<u64> {
    entry("/proc/self/status", "VmHWM:")
}

/// Bytes that this process holds now; `None` where the system does not say.
pub fn resident_bytes() -> Option<u64> {
    entry("/proc/self/status", "VmRSS:")
}

/// Forgets the peak so far. Works on Linux; elsewhere the peak is that of the whole process.
pub fn reset_peak() {
    // `5` resets the peak of the resident set; see proc(5). A refusal leaves the larger peak, which is still true.
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// Bytes that each of so many processes on this machine may have: a share of its memory, or what is free on the process's GPU. `None`
/// where that is not known.
pub fn available(device: Device, processes: u64) -> Option<u64> {
    match device {
        Device::Cpu => Some(total_bytes()? / processes.max(1)),
        Device::Cuda(gpu) => elf_core::device::free_gpu_memory(gpu),
        _ => None,
    }
}

/// Refuses an operation that needs more than the `available` bytes, before it takes any. `what` is the subject of the
/// message, and `remedy` says what to change.
///
/// # Errors
/// If it needs more.
pub fn check(
    what: impl fmt::Display,
    needed: u64,
    available: Option<u64>,
    remedy: impl FnOnce(u64) -> String,
) -> Result<()> {
    match available.filter(|there| needed > *there) {
        Some(there) => fail!(
            setting("batch_size"),
            "{what} needs about {} of memory, and {} are available: {}",
            Size(needed),
            Size(there),
            remedy(there)
        ),
        None => Ok(()),
    }
}

/// Bytes of memory that the processes of this control group may have together, at most those of the machine; where the system says so.
fn total_bytes() -> Option<u64> {
    let read = |path: &Path| fs::read_to_string(path).ok();
    let machine = entry("/proc/meminfo", "MemTotal:");
    machine.into_iter().chain(group_limit(&read)).min()
}

/// The least limit of the control groups that this process is in, of the second version or the first. Containers and batch systems set one.
fn group_limit(read: &dyn Fn(&Path) -> Option<String>) -> Option<u64> {
    let groups = read(Path::new("/proc/self/cgroup"))?;
    let limits = groups.lines().flat_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            names if names.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return Vec::new(),
        };
        // Limits of the groups around it count, too. In a container the path may be one of the host, and only the root is there.
        let group = Path::new(group.trim_start_matches('/'));
        group
            .ancestors()
            .filter_map(|group| read(&Path::new(root).join(group).join(file))?.trim().parse().ok())
            .collect()
    });
    limits.min()
}

fn entry(file: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// A number of bytes as a person says it.
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self.0 {
            bytes @ 1_000_000_000.. => write!(f, "{:.1} GB", bytes as f64 / 1e9),
            bytes => write!(f, "{:.0} MB", bytes as f64 / 1e6),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_limit_of_the_groups_around_counts() {
        let limit = |files: &[(&str, &str)]| {
            let found = |path: &Path| files.iter().find(|(name, _)| Path::new(name) == path);
            group_limit(&|path| found(path).map(|(_, text)| (*text).to_owned()))
        };
        let second = ("/proc/self/cgroup", "0::/jobs/7\n");
        let own = ("/sys/fs/cgroup/jobs/7/memory.max", "max\n");
        assert_eq!(limit(&[second, own]), None);
        assert_eq!(limit(&[second, own, ("/sys/fs/cgroup/jobs/memory.max", "5000\n")]), Some(5000));
        let outer = ("/sys/fs/cgroup/memory.max", "9000\n");
        assert_eq!(limit(&[second, ("/sys/fs/cgroup/jobs/7/memory.max", "70\n"), outer]), Some(70));
        let first = ("/proc/self/cgroup", "9:cpu,memory:/docker/abc\n3:pids:/docker/abc\n0::/\n");
        assert_eq!(limit(&[first, ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "800\n")]), Some(800));
        assert_eq!(limit(&[first, ("/sys/fs/cgroup/pids/memory.limit_in_bytes", "8\n")]), None);
        assert_eq!(limit(&[]), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_large_allocation_shows() {
        // More than all that was ever held at once, so that what other tests free in the meantime does not matter.
        let before = peak_bytes().unwrap();
        let held = std::hint::black_box(vec![1u8; before as usize + (64 << 20)]);
        assert!(peak_bytes().unwrap() >= before + (60 << 20), "{}", held.len());
    }
}
