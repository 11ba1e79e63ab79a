//! Measurements of speed: the machine's own ceilings, and what is made of them.

use std::time::Duration;

pub mod ceiling;
pub mod checked;
pub mod count;
pub mod gpu_memory;
pub mod http_load;
pub mod operations;
pub mod serving;
pub mod workload;

/// The middle one, or the later of two.
pub fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
