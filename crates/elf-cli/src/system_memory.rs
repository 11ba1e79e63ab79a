//! What the system says of memory: how much there is, and the most that this process held.

use std::fs;

/// Bytes that this process held at the most since [`reset_peak`], or since it began where that is not possible; `None` where
/// the system does not say.
pub fn peak_bytes() -> Option<u64> {
    entry("/proc/self/status", "VmHWM:")
}

/// Forgets the peak so far. Works on Linux; elsewhere the peak is that of the whole process.
pub fn reset_peak() {
    // `5` resets the peak of the resident set; see proc(5). A refusal leaves the larger peak, which is still true.
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// Bytes of memory of this machine, where the system says so.
pub fn total_bytes() -> Option<u64> {
    entry("/proc/meminfo", "MemTotal:")
}

fn entry(file: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn a_large_allocation_shows() {
        let before = entry("/proc/self/status", "VmRSS:").unwrap();
        let held = std::hint::black_box(vec![1u8; 64 << 20]);
        assert!(peak_bytes().unwrap() >= before + (60 << 20), "{}", held.len());
    }
}
