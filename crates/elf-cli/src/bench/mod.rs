//! Measurements of speed: the machine's own ceilings, and what is made of them.

pub mod ceiling;
pub mod http_load;
pub mod serving;
pub mod workload;
